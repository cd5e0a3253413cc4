"""``precision``: a published base in 16 or 4 bits is saved, loaded and kept in that precision; LoRA trains on it."""

import shutil
import sys

import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.errors import UserError
from reasonbrain.modules.common.nf4 import Nf4Linear
from reasonbrain.modules.common.precision import hold_base

LATENTS = (3, 4, 16, 16)
BASES = {"mllm": "model", "diffusion": "transformer"}


@pytest.fixture(scope="module")
def wide(parts, tmp_path_factory):
    """Overrides for an MLLM and a FLUX whose layers are multiples of 64 wide, as the published ones are."""
    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(parts / "mllm", folder, dirs_exist_ok=True)
    raw = Qwen2_5_VLConfig.from_pretrained(folder).to_dict()
    raw["text_config"] |= {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    raw["vision_config"] |= {"out_hidden_size": 64}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(raw))
    for name, p in model.named_parameters():  # lively: the input matters, and so do the blocks' different scales
        p.data.mul_(4.0 if p.ndim > 1 and "embed" not in name else 1.0)
    model.save_pretrained(folder)
    flux = "model.diffusion.architecture.transformer.num_attention_heads=4"
    return [f"model.mllm.pretrained={folder}", "model.diffusion.trained=lora", flux]


@pytest.fixture(scope="module")
def chosen(wide):
    """``chosen("nf4")``: overrides for a model whose MLLM and FLUX have LoRA on bases of this precision."""
    return lambda precision: [*wide, *(f"model.{slot}.precision={precision}" for slot in BASES)]


@pytest.fixture(scope="module")
def held(build, wake, chosen):
    """``held("nf4")``: such a model."""
    return lambda precision: wake(build(*chosen(precision)))


def decoded(layer):
    """A reference for NF4: two codes per byte, one scale per 64 of them, and the scales in 8 bits."""
    codes, state = layer.weight.data.flatten(), layer.weight.quant_state
    values = state.code[torch.stack([codes >> 4, codes & 15], dim=1).flatten().long()]
    scales = state.state2.code[state.absmax.long()] * state.state2.absmax.repeat_interleave(256)[: len(state.absmax)]
    return (values.view(-1, 64) * (scales + state.offset)[:, None]).view(layer.out_features, layer.in_features)


def base(model, slot):
    """The frozen parameters of a slot's published model."""
    part = getattr(model.slot(slot), BASES[slot])
    return {n: p for n, p in part.named_parameters() if not p.requires_grad}


def size(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def losses(model, inputs):
    torch.manual_seed(5)
    source, target = torch.randn(LATENTS), torch.randn(LATENTS)
    return model(inputs, source, target, seeds=[1, 2, 3])


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("slot", BASES)
def test_bytes_of_the_base(held, slot):
    full, half, nf4 = (base(held(p), slot) for p in ("float32", "bfloat16", "nf4"))
    assert {p.dtype for p in full.values()} == {torch.float32} and size(full.values()) == 2 * size(half.values())
    quantised = [n for n, p in nf4.items() if p.dtype == torch.uint8]
    blocks = held("float32").slot(slot).repeated()
    linears = [m for b in blocks for m in b.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    assert len(quantised) == len(linears) > 0
    assert 8 * size(nf4[n] for n in quantised) == size(m.weight for m in linears)
    assert {p.dtype for n, p in nf4.items() if n not in quantised} == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_trained_parameters_and_positions_are_float32(held, precision):
    model = held(precision)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_outputs_agree_with_float32_on_the_same_weights(held, inputs, precision):
    """Up to bfloat16 rounding."""
    full, low = held("float32"), held(precision)
    for slot in BASES:
        exact = dict(full.slot(slot).named_modules())
        for name, module in low.slot(slot).named_modules():
            if isinstance(module, Nf4Linear):
                weight, kept = exact[name].weight, decoded(module)
                assert 0.01 < error(kept, weight) < 0.12, name  # four bits
                weight.data.copy_(kept)
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cues = full.cues(full.encode(inputs), inputs)
        hidden, expected = low.guide(inputs, cues).hidden, full.guide(inputs, cues).hidden
        condition, _ = full.condition(inputs)
        edit, wanted = (m.slot("diffusion").sample(condition, latents, latents.flip(0), 2) for m in (low, full))
    for found, right in ((hidden, expected), (edit, wanted)):
        assert found.dtype == torch.float32 and 1e-5 < error(found, right) < 0.05


def train(model, inputs):
    """How far L_MLLM and L_DM fall while LoRA overfits one batch."""
    lora = [p for n, p in model.named_parameters() if "lora_" in n]
    optimizer = torch.optim.Adam(lora, lr=2e-2)
    history = []
    for _ in range(25):
        out = losses(model, inputs)
        history.append(torch.stack([out["lm"], out["dm"]]).detach())
        out["loss"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in lora)
        optimizer.step()
        optimizer.zero_grad()
    return history[0] - history[-1]


@pytest.fixture(scope="module")
def fall(held, inputs):
    return train(held("float32").train(), inputs)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_lora_trains_as_on_float32_and_the_base_does_not_change(held, inputs, fall, precision, checkpointed):
    model = held(precision).train()
    model.slot("mllm").reason(inputs, 2)  # a pass without gradients must not cost the next one its gradients
    if checkpointed:
        for slot in BASES:
            model.slot(slot).enable_gradient_checkpointing()
    before = {(s, n): p.clone() for s in BASES for n, p in base(model, s).items()}
    fell = train(model, inputs)
    assert (fall > 0.1).all() and (fell > 0.8 * fall).all(), (fell, fall)
    assert all(torch.equal(before[s, n], p) for s in BASES for n, p in base(model, s).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_saving_and_loading_changes_nothing(held, settings, chosen, inputs, tmp_path, precision, dtype):
    model = held(precision)
    save_model(model, settings(*chosen(precision)), tmp_path)
    again, cfg = load_model(tmp_path, dtype=dtype)
    assert cfg.model.mllm["precision"] == cfg.model.diffusion["precision"] == precision
    ways = [again]
    if precision == "bfloat16":  # one tensor at a time, as ZeRO-3 loads them
        ways.append(load_model(tmp_path, dtype=dtype, partition=lambda p: None)[0])
    for way, slot in ((way, slot) for way in ways for slot in BASES):
        loaded = base(way, slot)
        for name, p in base(model, slot).items():
            assert loaded[name].dtype == p.dtype and torch.equal(loaded[name], p), name
    if dtype == torch.float32:
        with torch.no_grad():
            for name, value in losses(model, inputs).items():
                torch.testing.assert_close(losses(again, inputs)[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    if precision == "nf4":
        pairs = zip(model.modules(), again.modules(), strict=True)
        layers = [(a, b) for a, b in pairs if isinstance(a, Nf4Linear)]
        assert layers and all(torch.equal(decoded(a), decoded(b)) for a, b in layers)


def test_a_trained_base_is_not_quantised(build):
    for precision in ("bfloat16", "nf4"):
        with pytest.raises(UserError, match=f"model.diffusion.precision: '{precision}' .*trained=lora or frozen"):
            build("model.diffusion.trained=full", f"model.diffusion.precision={precision}")


@pytest.mark.parametrize("slot", BASES)
def test_an_unknown_precision_is_an_error(build, slot):
    with pytest.raises(UserError, match=f"model.{slot}.precision: 'int8' is not one of float32, bfloat16, nf4"):
        build("model.diffusion.trained=lora", f"model.{slot}.precision=int8")


def test_layers_that_do_not_fit_nf4_are_kept_and_a_model_of_only_these_is_an_error():
    block = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 8))
    hold_base(block, [block], "nf4", "mllm")
    assert isinstance(block[1], Nf4Linear) and block[0].weight.dtype == torch.bfloat16
    with pytest.raises(
        UserError, match="model.mllm.precision: 'nf4' needs layers whose input size is a multiple of 64"
    ):
        hold_base(block, [block[:1]], "nf4", "mllm")


def test_without_bitsandbytes_the_extra_is_named(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    monkeypatch.delitem(sys.modules, "reasonbrain.modules.common.nf4")
    with pytest.raises(UserError, match=r"model.mllm.precision: 'nf4' needs bitsandbytes.*reasonbrain\[train\]"):
        build("model.mllm.precision=nf4")
