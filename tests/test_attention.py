"""``model.attention``: every slot computes with the chosen kernel, with the same result."""

import logging
from dataclasses import replace

import pytest
import torch
from diffusers.models import attention_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from reasonbrain.attention import FLASH, NAMES, choose, set_attention, trouble
from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import ATTENTION
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition


class Fused(TorchDispatchMode):
    """Counts torch's fused attention kernels."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "scaled_dot_product" in func.__name__
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def slot_by_slot(model, inputs):
    """The output of every slot, and how many fused kernels ran in it."""
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found, fused = {}, {}

    def run(name, compute):
        with Fused() as mode:
            out = compute()
        fused[name] = mode.count
        return out

    features = run("encoders", lambda: model.encode(inputs))
    cues = run("frce", lambda: model.cues(features, inputs))
    guidance = run("mllm", lambda: model.guide(inputs, cues))
    aligned = run("connector", lambda: model.align(guidance))
    condition = run("cme", lambda: model.enhance(features, cues, aligned))
    found["features"], found["cues"], found["guidance"] = features.patches, cues.visual, guidance.hidden
    found["aligned"], found["visual"], found["textual"] = aligned, condition.visual, condition.textual
    found["edit"] = run("diffusion", lambda: model.slot("diffusion").sample(condition, latents, latents.flip(0), 2))
    return found, fused


def test_every_slot_uses_the_chosen_kernel_with_the_same_result(build, wake, inputs):
    model = wake(build())
    inputs = replace(inputs, ready=model.image_features(inputs.images))  # which keeps its kernel
    before, fused = slot_by_slot(model, inputs)
    assert all(fused.values()), fused
    assert set_attention(model, "math") == "math"
    assert all(torch.equal(f, inputs.ready[slot]) for slot, f in model.image_features(inputs.images).items())
    plain, none = slot_by_slot(model, inputs)
    assert not any(none.values()), none
    for name, value in before.items():
        torch.testing.assert_close(plain[name], value, rtol=1e-3, atol=1e-4, msg=name)
    other = wake(build())  # a model made afterwards is not touched
    for again in (other, model):
        set_attention(again, "sdpa")
        back, as_before = slot_by_slot(again, inputs)
        assert as_before == fused and all(torch.equal(back[k], before[k]) for k in before)


def test_a_model_built_afterwards_is_not_affected(build, wake, inputs):
    before, fused = slot_by_slot(wake(build()), inputs)
    set_attention(build(), "math")
    after, same = slot_by_slot(wake(build()), inputs)
    assert same == fused and all(torch.equal(after[k], before[k]) for k in before)


def test_auto_selects_an_available_kernel_and_logs_it(build, caplog):
    choose.cache_clear()
    with caplog.at_level(logging.INFO, "reasonbrain.attention"):
        assert set_attention(build(), "auto") == "sdpa"
        assert set_attention(build(), "auto", training=True, autocast=torch.bfloat16) == "math"
    assert [r.getMessage() for r in caplog.records] == [
        "attention: sdpa, on cpu in float32",
        "attention: math, on cpu in bfloat16",
    ]


@pytest.mark.parametrize("name", FLASH)
def test_an_unavailable_kernel_is_an_error_with_the_choices(build, name):
    with pytest.raises(UserError, match=f"model.attention: '{name}' .* cpu .*; choose from auto, sdpa, math"):
        set_attention(build(), name, autocast=torch.bfloat16)


def test_an_unknown_kernel_is_an_error_of_the_configuration():
    with pytest.raises(UserError, match="model.attention: 'flash' is not one of auto, sdpa, math, flash_attention_2"):
        load_config("tiny", ["model.attention=flash"])


def test_every_choice_has_a_name_in_both_libraries():
    assert set(ATTENTION) == {"auto", *NAMES}


def test_flux_calls_a_flash_kernel_with_valid_input(build, wake, monkeypatch):
    """With flash-attn's kernel and CUDA's autocast (norms give float32) played by others: FLUX alone calls the kernel,
    without a mask, and all that it gets is in 16 bits; our own blocks keep torch's."""
    backend, seen = NAMES["flash_attention_2"][0], []

    def kernel(query, key, value, attn_mask=None, **_):
        seen.append((query.dtype, key.dtype, value.dtype, attn_mask))
        out = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value)))
        return out.transpose(1, 2)

    norm = torch.nn.RMSNorm.forward
    monkeypatch.setattr(torch.nn.RMSNorm, "forward", lambda self, x: norm(self, x).float())
    monkeypatch.setitem(FLASH, "flash_attention_2", lambda: True)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN", True)
    monkeypatch.setitem(attention_dispatch._AttentionBackendRegistry._backends, backend, kernel)
    for cached in (choose, trouble):
        cached.cache_clear()
    model = wake(build(*(f"model.{s}=null" for s in ("encoders", "mllm", "connector", "frce.region"))))
    assert set_attention(model, "auto", autocast=torch.bfloat16) == "flash_attention_2" and len(seen) == 1
    latents = torch.randn(3, 4, 16, 16)
    with torch.no_grad(), Fused() as mode, torch.autocast("cpu", torch.bfloat16):
        condition = Condition(torch.randn(3, 6, 32), torch.randn(3, 6, 32), torch.randn(3, 32))
        model.slot("diffusion").errors(condition, latents, latents, seeds=[1, 2, 3])
    blocks = len(model.slot("diffusion").repeated())
    assert seen[1:] == [(torch.bfloat16,) * 3 + (None,)] * blocks
    assert mode.count == blocks + 1  # the player's own, and the image term's
    for cached in (choose, trouble):
        cached.cache_clear()
