"""Precision and offloading: an edit in any dtype, by part and as a whole, and with weights away from the device."""

import accelerate
import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers.hooks.group_offloading import ModuleGroup
from pipelines import save_editor

from reasonbrain.config.loading import make_config
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS

ICE = "docs/samples/ice.png"


def edit(pipe, **call):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = pipe(ICE, "Leave it in the sun.", num_inference_steps=2, reasoning=True, generator=generator, **call)
    return np.asarray(out.images[0]).astype(float) / 255, out.reasoning[0]


@pytest.fixture(scope="module")
def plain():
    return edit(ReasonBrainPipeline.from_pretrained("tiny"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("how", ["torch_dtype", "dtype", "to"])
def test_every_dtype(plain, dtype, how):
    given = {} if how == "to" else {how: dtype}
    pipe = ReasonBrainPipeline.from_pretrained("tiny", **given)
    pipe = pipe.to(dtype) if how == "to" else pipe
    held = {p.dtype for p in pipe.model.parameters()}
    picture, said = edit(pipe)
    assert held == {dtype} and said == plain[1]
    assert np.abs(picture - plain[0]).mean() < {torch.bfloat16: 2e-3, torch.float16: 3e-4}.get(dtype, 1e-5)
    assert dtype != torch.bfloat16 or (picture != plain[0]).any()


@pytest.mark.parametrize("slot", SLOTS)
def test_one_slot_in_another_dtype(plain, slot):
    pipe = ReasonBrainPipeline.from_pretrained("tiny")
    getattr(pipe, slot.replace(".", "_")).to(torch.bfloat16)
    assert np.abs(edit(pipe)[0] - plain[0]).mean() < 2e-3


class Parked:
    """Replaces the tensors of modules that are not on the device by NaN: a CPU has no second device to move them to."""

    def __init__(self):
        self.kept = {}

    def park(self, tensors):
        for t in filter(torch.is_floating_point, tensors):
            self.kept.setdefault(t, t.data)
            t.data = torch.full_like(t.data, torch.nan)

    def fetch(self, tensors):
        for t in filter(torch.is_floating_point, tensors):
            t.data = self.kept[t]


def nothing_there(pipe):
    return not any(p.isfinite().any() for p in pipe.model.parameters())


def offload_models(pipe, monkeypatch):
    parked = Parked()

    class Offload(CpuOffload):
        def init_hook(self, module):
            parked.park(module.parameters())
            return module

        def pre_forward(self, module, *args, **kwargs):
            if self.prev_module_hook is not None:
                self.prev_module_hook.offload()
            parked.fetch(module.parameters())
            return args, kwargs

    monkeypatch.setattr(accelerate.big_modeling, "CpuOffload", Offload)
    pipe.enable_model_cpu_offload(device="cpu")
    return nothing_there


def offload_sequentially(pipe, monkeypatch):
    for part in pipe.model.parts.values():  # what the pipeline's method does, but for a device without a number
        accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    return lambda pipe: all(p.is_meta for p in pipe.model.parameters())


def offload_groups(kind):
    def offload(pipe, monkeypatch):
        parked = Parked()

        def tensors(group):
            of_modules = (t for m in group.modules for t in (*m.parameters(), *m.buffers()))
            return [*of_modules, *group.parameters, *group.buffers]

        monkeypatch.setattr(ModuleGroup, "_offload_to_memory", lambda group: parked.park(tensors(group)))
        monkeypatch.setattr(ModuleGroup, "_onload_from_memory", lambda group: parked.fetch(tensors(group)))
        pipe.enable_group_offload(onload_device="cpu", offload_type=kind, num_blocks_per_group=1)
        return nothing_there

    return offload


@pytest.mark.parametrize(
    "offload",
    [offload_models, offload_sequentially, offload_groups("block_level"), offload_groups("leaf_level")],
    ids=["model", "sequential", "block_level", "leaf_level"],
)
def test_offloading_changes_no_pixel(plain, offload, monkeypatch):
    pipe = ReasonBrainPipeline.from_pretrained("tiny")
    away = offload(pipe, monkeypatch)
    assert away(pipe)
    for _ in range(2):  # the hooks are there again after an edit
        picture, said = edit(pipe)
        assert (picture == plain[0]).all() and said == plain[1]
        assert away(pipe)


@pytest.mark.parametrize("offload", [offload_models, offload_groups("leaf_level")], ids=["model", "leaf_level"])
def test_a_published_editor_is_offloaded_too(tmp_path, offload, monkeypatch):
    """``edit.offload``: model and group."""
    save_editor("black-forest-labs/FLUX.1-Kontext-dev", tmp_path)
    diffusion = {"name": "editor", "pretrained": str(tmp_path), "pixels": 96 * 96, "precision": "float32"}
    cfg = make_config({"model": {"diffusion": diffusion}, "edit": {"preserve": False}})
    pipe = ReasonBrainPipeline.from_model(ReasonBrain.from_config(cfg.model).eval(), cfg)
    plain = edit_with_words(pipe)
    away = offload(pipe, monkeypatch)
    for _ in range(2):
        assert away(pipe)
        assert (edit_with_words(pipe) == plain).all()


def edit_with_words(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return np.asarray(pipe(ICE, "Leave it in the sun.", num_inference_steps=2, generator=generator).images[0])
