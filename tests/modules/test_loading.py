"""Published weights from folders in the hub's layout: sharded safetensors are loaded exactly, tensor by tensor, and the
shipped configurations train, edit, save and load with them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.config.loading import load_config, make_config
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Cues, Inputs
from reasonbrain.model import ReasonBrain, build_plugin
from reasonbrain.registry import plugin
from reasonbrain.train.building import init
from reasonbrain.train.engine import Engine
from reasonbrain.utils.images import to_pil

PARTS = {  # folder of the fixture: slot and name of the plug-in, its submodule with the published weights
    "clip": ("encoders", "clip", "clip"),
    "sam": ("frce.region", "sam", "sam"),
    "qwen": ("mllm", "qwen2_5_vl", "model"),
    "llava": ("mllm", "llava", "model"),
}


def published(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by their names without LoRA."""
    return {k.replace(".base_layer", ""): v for k, v in module.state_dict().items() if "lora_" not in k}


def assert_equal(loaded: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[k], saved[k]) for k in saved)


@pytest.mark.parametrize("name", PARTS)
def test_weights_are_loaded(hub, name) -> None:
    slot, plug, part = PARTS[name]
    folder, models = hub[name]
    assert (Path(folder) / "model.safetensors.index.json").exists()  # it is sharded
    options = {"layers": [-1]} if name == "clip" else {}  # the default layers are those of a deeper tower
    loaded = plugin(slot, plug)(width=48, pretrained=folder, **options)
    assert_equal(published(getattr(loaded, part)), models[""].state_dict())


@pytest.mark.parametrize(("source", "trained"), [("channel", "full"), ("sequence", "lora")])
def test_flux_weights_are_loaded(hub, source, trained) -> None:
    folder, models = hub["flux"]
    assert (Path(folder) / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()
    flux = plugin("diffusion", "flux")(width=48, pretrained=folder, source=source, trained=trained)
    assert_equal(flux.vae.state_dict(), models["vae"].state_dict())
    loaded, saved = published(flux.transformer), models["transformer"].state_dict()
    grown, plain = loaded.pop("x_embedder.weight"), saved.pop("x_embedder.weight")
    assert_equal(loaded, saved)
    inputs = plain.shape[1]
    assert torch.equal(grown[:, :inputs], plain)
    assert grown.shape[1] == inputs + 48 + (inputs if source == "channel" else 0) and not grown[:, inputs:].any()
    assert flux.scheduler.config.shift == 3.0


def test_a_separate_autoencoder(hub) -> None:
    folder, models = hub["flux"]
    flux = plugin("diffusion", "flux")(width=48, pretrained=folder, autoencoder=f"{folder}/vae")
    assert_equal(flux.vae.state_dict(), models["vae"].state_dict())


def build_from(folder, name):
    """The plug-in of a short name with the weights in ``folder``."""
    slot, plug, _ = PARTS.get(name, ("diffusion", "flux", ""))
    layers = {"layers": [-1]} if name == "clip" else {}
    return build_plugin(slot, plugin(slot, plug), 48, {"pretrained": str(folder), **layers})


@pytest.fixture
def copy(hub, name, tmp_path):
    """A copy of a folder, for a test to damage."""
    return Path(shutil.copytree(hub[name].folder, tmp_path / "copy"))


@pytest.mark.parametrize("fault", ["lack", "have in another shape", "have, but the model does not,"])
@pytest.mark.parametrize("name", [*PARTS, "flux"])
def test_weights_that_do_not_fit_are_refused(copy, name, fault) -> None:
    """Libraries only warn, and leave random weights in place."""
    weights = copy / ("transformer" if name == "flux" else "")
    (index,) = weights.glob("*.index.json")
    listed = json.loads(index.read_text())
    tensor = next(n for n in sorted(listed["weight_map"]) if "position" not in n and "weight" in n)
    path = weights / listed["weight_map"][tensor]
    tensors = load_file(path)
    if fault == "lack":
        tensors.pop(tensor), listed["weight_map"].pop(tensor)
    elif fault.startswith("have in"):
        tensors[tensor] = torch.zeros(3)
    else:
        tensor = tensor.rpartition(".")[0] + ".surplus"
        tensors[tensor], listed["weight_map"][tensor] = torch.zeros(3), path.name
    save_file(tensors, path, {"format": "pt"})
    index.write_text(json.dumps(listed))
    with pytest.raises(UserError, match=re.escape(f"in '{copy}' {fault} ") + r"[\w.]+"):
        build_from(copy, name)


@pytest.mark.parametrize("name", [*PARTS, "flux"])
def test_a_tensor_that_only_the_index_names_is_refused(copy, name) -> None:
    weights = copy / ("transformer" if name == "flux" else "")
    (index,) = weights.glob("*.index.json")
    listed = json.loads(index.read_text())["weight_map"]
    tensor = next(n for n in sorted(listed) if n.endswith("norm1.weight") or n.endswith("proj_out.weight"))
    tensors = load_file(weights / listed[tensor])
    save_file({k: v for k, v in tensors.items() if k != tensor}, weights / listed[tensor], {"format": "pt"})
    with pytest.raises(UserError, match=f"lack .*{re.escape(tensor.rpartition('.layers.')[2])}"):
        build_from(copy, name)


@pytest.mark.parametrize("name", [*PARTS, "flux"])
def test_pickled_weights_are_refused(copy, name) -> None:
    """docs/security.md: nothing is unpickled."""
    weights = copy / ("transformer" if name == "flux" else "")
    tensors = {}
    for file in weights.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    next(weights.glob("*.index.json")).unlink()
    torch.save(tensors, weights / ("diffusion_pytorch_model.bin" if name == "flux" else "pytorch_model.bin"))
    with pytest.raises(UserError, match=r"model\.[a-z.]+ '.*copy'.*safetensors"):
        build_from(copy, name)


@pytest.mark.parametrize("name", ["clip", "qwen"])
def test_a_tokenizer_without_its_vocabulary_is_refused(copy, name) -> None:
    """transformers makes an empty tokenizer, which reads no word."""
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=rf"model\.{PARTS[name][0]}\.pretrained '.*copy'.* has no vocabulary"):
        build_from(copy, name)


@pytest.mark.parametrize("name", PARTS)
def test_a_model_of_another_kind_is_refused_before_it_is_built(copy, hub, name) -> None:
    """Without config.json, transformers builds its default architecture, which may be of 72 B parameters."""
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"'.*copy' has no config.json"):
        build_from(copy, name)
    other = "sam" if name == "clip" else "clip"
    with pytest.raises(UserError, match=f"the model in '.*' is a {other}, not a {name}"):
        build_from(hub[other].folder, name)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("name", ["qwen", "llava"])
def test_precision_applies_to_the_base_only(hub, name, tmp_path, precision, dtype) -> None:
    """The MLLMs are published in 16 bits. Parameters trained on top of them are float32."""
    slot, plug, part = PARTS[name]
    folder, models = hub[name]
    half = type(models[""]).from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    for file in Path(folder).glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_bytes((Path(folder) / "preprocessor_config.json").read_bytes())
    loaded = plugin(slot, plug)(width=48, pretrained=str(tmp_path), precision=precision)
    found = published(getattr(loaded, part))
    assert_equal(found, {k: v.to(found[k].dtype) for k, v in half.state_dict().items()})
    assert {p.dtype for n, p in loaded.model.named_parameters() if "lora_" not in n} == {dtype}
    assert {p.dtype for p in loaded.parameters() if p.requires_grad} == {torch.float32}
    inputs = Inputs(torch.rand(1, 3, 56, 56), ["melt"], [[]], torch.full((1, 56, 56), -1))
    cues = Cues(torch.randn(1, 3, 48), torch.ones(1, 3).bool(), torch.randn(1, 2, 48), torch.ones(1, 2).bool())
    with torch.autocast("cpu", torch.bfloat16):
        out = loaded(inputs, cues)
        (out.lm_loss + out.hidden.float().square().mean()).backward()
    grads = [p.grad for n, p in loaded.named_parameters() if p.requires_grad and "lora_A" not in n]
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in grads)  # lora_A waits for lora_B to move


@pytest.mark.parametrize("name", ["qwen", "llava"])
def test_a_checkpoint_keeps_the_published_generation_settings(hub, name, tmp_path) -> None:
    """Qwen is published with two tokens that end a sentence and a penalty on repetitions."""
    slot, plug, _ = PARTS[name]
    shutil.copytree(hub[name].folder, tmp_path / "copy")
    settings = {"eos_token_id": [2, 3], "repetition_penalty": 1.05, "do_sample": True, "temperature": 1e-06}
    (tmp_path / "copy" / "generation_config.json").write_text(json.dumps(settings))
    others = ("encoders", "frce.patch", "frce.region", "frce.text", "connector", "cme", "diffusion")
    mllm = [f"model.mllm.name={plug}", f"model.mllm.pretrained={tmp_path / 'copy'}"]
    cfg = load_config("tiny", [*(f"model.{other}=null" for other in others), *mllm])
    model = ReasonBrain.from_config(cfg.model)
    save_model(model, cfg, tmp_path / "saved")
    found = load_model(tmp_path / "saved")[0].slot("mllm").model.generation_config
    assert {key: getattr(found, key) for key in settings} == settings
    inputs = model.make_inputs(torch.rand(1, 3, 56, 56), ["melt"])
    assert model.slot(slot).reason(inputs) == load_model(tmp_path / "saved")[0].slot("mllm").reason(inputs)


FOLDERS = {"encoders": "clip", "frce.region": "sam", "diffusion": "flux"}
SMALL = [
    "model.width=48",
    "model.encoders.layers=[-1,-2]",
    "model.connector.layers=1",
    "model.connector.queries=7",
    "model.cme.blocks=1",
    "model.cme.queries=7",
    "model.mllm.img_tokens=5",
    "model.frce.region.max_regions=6",
    "model.frce.region.points_per_side=3",
    "model.frce.region.iou_threshold=-1e9",
    "model.frce.region.stability_threshold=0",
    "edit.steps=2",
    "edit.size=64",
]


def published_config(hub, name: str) -> list[str]:
    mllm = "llava" if "llava" in name else "qwen"
    return SMALL + [f"model.{slot}.pretrained={hub[part].folder}" for slot, part in {**FOLDERS, "mllm": mllm}.items()]


@pytest.mark.parametrize("name", ["reasonbrain_flux_qwen", "reasonbrain_flux_llava", "reasonbrain_flux_kontext"])
def test_shipped_configuration_on_small_parts(hub, name, tmp_path) -> None:
    """All slots of the large configurations: gradients of a step, an edit, saving, loading, the same edit."""
    cfg = load_config(name, published_config(hub, name))
    torch.manual_seed(0)
    model = ReasonBrain.from_config(cfg.model)
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    inputs = model.make_inputs(images, ["What if the ice melts?", "What would a candle do in the wind of a fan?"])
    assert inputs.regions.amax() >= 1
    latents = model.slot("diffusion").encode(images)
    out = model(inputs, latents, latents.flip(0), range(len(latents)))
    out["loss"].backward()
    assert torch.isfinite(out["loss"]) and out["lm"] > 0
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)
    assert all(p.requires_grad for p in model.parameters() if p.grad is not None)

    pipe = ReasonBrainPipeline.from_model(model.eval(), cfg)
    pipe.set_progress_bar_config(disable=True)
    picture = to_pil(images[:1])[0]

    def edit(pipe: ReasonBrainPipeline) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        out = pipe(picture, "melt", generator=generator, output_type="pt", reasoning=True)
        assert out.images[0].shape == (3, 48, 64) and torch.isfinite(out.images[0]).all()
        return out.images[0]

    first = edit(pipe)
    pipe.save_pretrained(tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    again, _ = load_model(tmp_path)
    pipe = ReasonBrainPipeline.from_model(again, cfg)
    pipe.set_progress_bar_config(disable=True)
    assert_equal(again.state_dict(), model.state_dict())
    # not bit-identical: tensors of a sharded file are unaligned in memory, for which kernels round differently
    assert torch.allclose(edit(pipe), first, atol=1e-5)


def test_weights_published_in_bfloat16_are_float32_once_they_are_trained(hub, tmp_path) -> None:
    """Until then they take half the memory, in each of the processes that build the model, and half the disk."""
    folder = tmp_path / "flux"
    shutil.copytree(hub["flux"].folder, folder)
    for file in folder.rglob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, {"format": "pt"})
    params = {"name": "flux", "pretrained": str(folder), "heads": 4}
    cfg = make_config({"model": {"width": 48, "diffusion": params}})
    model = ReasonBrain.from_config(cfg.model)
    flux = model.slot("diffusion")
    assert {p.dtype for p in flux.transformer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in flux.vae.parameters()} == {torch.float32}
    published = {k: v.clone() for k, v in flux.transformer.state_dict().items()}
    init(cfg, tmp_path / "start")
    (stored,) = (tmp_path / "start" / "diffusion").glob("*.safetensors")
    assert load_file(stored)["transformer.proj_out.weight"].dtype == torch.bfloat16
    started, _ = load_model(tmp_path / "start")
    for made in (model, started):
        engine = Engine(made, cfg.train)
        assert {p.dtype for p in engine.trained.values()} == {torch.float32}
        assert_equal(made.slot("diffusion").transformer.state_dict(), {k: v.float() for k, v in published.items()})
    engine.trained["parts.diffusion.transformer.proj_out.weight"].data += 1e-6  # lost in bfloat16
    save_model(started, cfg, tmp_path / "trained", trained_only=True)
    again, _ = load_model(tmp_path / "trained")
    assert_equal(again.state_dict(), started.state_dict())
