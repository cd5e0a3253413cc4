"""``edit.cache`` and ``edit.compile``: less work, nearly the same edit, and nothing kept for the next one."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import save_editor

from reasonbrain.config.schema import CACHES
from reasonbrain.editing.acceleration import CONFIGS
from reasonbrain.editing.placement import open_pipeline
from reasonbrain.errors import UserError

ICE = "docs/samples/ice.png"


def work_of(pipe, block):
    """``edit()``: the pixels of an edit in 0..1, and how often the block computed its attention."""
    calls = []
    block.attn.to_q.register_forward_hook(lambda *_: calls.append(1))

    def edit(image=ICE):
        calls.clear()
        noise = torch.Generator().manual_seed(3)
        return pipe(image, "Melt it.", generator=noise, preserve=False, output_type="np").images[0], len(calls)

    return edit


@pytest.mark.parametrize("cache", ["first_block", "taylor"])
def test_a_cache_leaves_out_work(cache):
    def edit_with(*overrides):
        pipe = open_pipeline("tiny", ["edit.steps=40", *overrides])
        return work_of(pipe, pipe.diffusion.transformer.single_transformer_blocks[-1])

    plain, full = edit_with()()
    edit = edit_with(f"edit.cache={cache}")
    cached, work = edit()
    assert full == 40 > work > 0
    assert 0 < np.abs(cached - plain).mean() < 0.05
    edit("docs/samples/house.png")
    assert (edit()[0] == cached).all()


def published(folder, repository):
    """A configuration file of an editor around a tiny pipeline, and the name of its transformer."""
    save_editor(repository, folder / "editor")
    editor = f"{{name: editor, pretrained: {folder}/editor, pixels: 9216, precision: float32}}"
    (folder / "model.yaml").write_text(f"model: {{width: 8, diffusion: {editor}}}\nedit: {{steps: 8, preserve: false}}")
    return folder / "model.yaml"


def test_a_cache_of_a_published_pipeline(tmp_path):
    pipe = open_pipeline(published(tmp_path, "black-forest-labs/FLUX.2-klein-4B"), ["edit.cache=taylor"])
    edit = work_of(pipe, pipe.diffusion.pipeline.transformer.transformer_blocks[-1])
    first, work = edit()
    assert 0 < work < 8

    def stop(*_):
        raise InterruptedError

    with pytest.raises(InterruptedError):  # whatever ends an edit, the next one starts afresh
        pipe(ICE, "Melt it.", callback_on_step_end=stop)
    assert (edit()[0] == first).all()


def test_a_pipeline_whose_passes_a_cache_would_mix_up(tmp_path):
    config = published(tmp_path, "black-forest-labs/FLUX.1-Kontext-dev")
    with pytest.raises(UserError, match=r"edit.cache: 'FluxKontextPipeline' of diffusers does not support caches"):
        open_pipeline(config, ["edit.cache=taylor"])


def test_every_cache_of_the_configuration_is_known():
    assert tuple(CONFIGS) == CACHES


def test_what_cannot_be_accelerated():
    with pytest.raises(UserError, match=r"edit.cache: 'best' is not one of first_block, taylor, null"):
        open_pipeline("tiny", ["edit.cache=best"])
    with pytest.raises(UserError, match=r"edit.cache: model.diffusion is null"):
        open_pipeline("tiny", ["edit.cache=taylor", "model.diffusion=null"])
    with pytest.raises(UserError, match=r"edit.compile: model.diffusion is null"):
        open_pipeline("tiny", ["edit.compile=true", "model.diffusion=null"])


def test_compiling_without_a_compiler(monkeypatch):
    monkeypatch.setitem(os.environ, "CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"torch.compile needs a C\+\+ compiler, and 'no-such-compiler' is not"):
        open_pipeline("tiny", ["edit.compile=true"])


@pytest.mark.long
def test_a_compiled_edit():
    def edit(*overrides):
        pipe = open_pipeline("tiny", ["edit.steps=2", *overrides])
        made = pipe(Image.open(ICE), "Melt it.", generator=torch.Generator().manual_seed(3), output_type="np").images[0]
        return made, all(block._compiled_call_impl for block in pipe.diffusion.repeated())

    (plain, no), (compiled, yes) = edit(), edit("edit.compile=true")
    assert yes and not no and np.abs(compiled - plain).max() < 1e-3
