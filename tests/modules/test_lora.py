"""LoRA of FLUX's transformer in diffusers' key names, in and out, against FluxTransformer2DModel and plain products."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError

LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "x_embedder")
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(params=["full", "lora", "frozen"])
def pipe(build, wake, settings, request):
    """A pipeline of its own."""
    change = f"model.diffusion.trained={request.param}"
    pipe = ReasonBrainPipeline.from_model(wake(build(change)), settings(change))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def published(pipe):
    """Adapters for three layers of a FLUX as published, whose x_embedder has no inputs of ours."""
    plain, tensors = FluxTransformer2DModel.from_config(pipe.transformer.config), {}
    torch.manual_seed(3)
    for name in LAYERS:
        out, inputs = plain.get_submodule(name).weight.shape
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(4, inputs) * 0.1
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(out, 4)
    return tensors


def edit(pipe, records):
    generator = torch.Generator().manual_seed(0)
    return pipe(records[0].source, "melt it", generator=generator, output_type="pt", preserve=False).images


def test_published_adapters_are_added_to_those_that_are_there(pipe, published, records, tmp_path):
    before = edit(pipe, records)
    keys = pipe.transformer.state_dict().keys()
    save_file(published, tmp_path / FILE)
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    added = edit(pipe, records)
    with pytest.raises(UserError, match="LoRA 'style': there are adapters of this name"):
        pipe.load_lora_weights(tmp_path, adapter_name="style")
    with pytest.raises(UserError, match="LoRA 'style' cannot be saved with the model"):
        pipe.save_pretrained(tmp_path / "out")
    assert not any(p.requires_grad for n, p in pipe.transformer.named_parameters() if ".style." in n)
    pipe.unload_lora_weights()
    assert pipe.transformer.state_dict().keys() == keys and torch.equal(edit(pipe, records), before)
    for name in LAYERS:  # the same as weights
        layer = pipe.transformer.get_submodule(name)
        weight = getattr(layer, "base_layer", layer).weight
        change = published[f"transformer.{name}.lora_B.weight"] @ published[f"transformer.{name}.lora_A.weight"]
        weight.data[:, : change.shape[1]] += change
    torch.testing.assert_close(edit(pipe, records), added, rtol=0, atol=1e-4)
    assert (added - before).abs().max() > 1e-3


def test_kohyas_names_and_alphas(pipe, records):
    """A scale of alpha / rank = 0.5."""
    to_q = pipe.transformer.get_submodule("transformer_blocks.0.attn.to_out.0")
    size = getattr(to_q, "base_layer", to_q).weight.shape
    down, up = torch.randn(4, size[1]) * 0.1, torch.randn(size[0], 4)
    name = "lora_unet_double_blocks_0_img_attn_proj"
    kohya = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    pipe.load_lora_weights(kohya)
    found = edit(pipe, records)
    pipe.unload_lora_weights()
    getattr(to_q, "base_layer", to_q).weight.data += 0.5 * up @ down
    torch.testing.assert_close(edit(pipe, records), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda t: {k.replace("transformer.", "text_encoder.", 1): v for k, v in t.items()}, "no layers of FLUX"),
        (lambda t: t | {f"transformer.{LAYERS[0]}.lora_A.weight": torch.zeros(4, 7)}, "cannot be loaded"),
        (lambda t: "/nowhere/at/all.safetensors", "'/nowhere/at/all.safetensors' cannot be loaded"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(pipe, published, records, broken, said):
    before, keys = edit(pipe, records), pipe.transformer.state_dict().keys()
    with pytest.raises(UserError, match=said):
        pipe.load_lora_weights(broken(published))
    assert pipe.transformer.state_dict().keys() == keys and torch.equal(edit(pipe, records), before)


def test_our_adapters_fit_diffusers_own_transformer(pipe, tmp_path):
    if pipe.diffusion.config.trained != "lora":
        with pytest.raises(UserError, match="has no LoRA adapters"):
            pipe.save_lora_weights(tmp_path)
        return
    pipe.save_lora_weights(tmp_path)
    tensors = load_file(tmp_path / FILE)
    plain = FluxTransformer2DModel.from_config(pipe.transformer.config)
    plain.load_lora_adapter(tensors)
    name = LAYERS[0]
    ours, theirs = pipe.transformer.get_submodule(name), plain.get_submodule(name)
    theirs.base_layer.load_state_dict(ours.base_layer.state_dict())
    x = torch.randn(2, 32)
    assert torch.equal(ours(x), theirs(x)) and not torch.equal(ours(x), ours.base_layer(x))
    assert len(tensors) == 2 * sum("lora_A" in n for n, _ in pipe.transformer.named_parameters())
