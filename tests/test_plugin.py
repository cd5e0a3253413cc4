"""Activation checkpointing and compilation of the repeated blocks of every plug-in."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

LATENTS = (3, 4, 16, 16)
SLOTS = ["frce.patch", "frce.region", "frce.text", "mllm", "connector", "cme", "diffusion"]


@pytest.fixture(scope="module")
def several(build, wake):
    """``several()``: a fresh model with more than one block in every slot, and LoRA in FLUX."""
    blocks = [f"model.{slot}=2" for slot in ("connector.layers", "cme.blocks", "frce.patch.layers")]
    blocks += ["model.frce.region.layers=2", "model.frce.text.layers=2", "model.diffusion.trained=lora"]
    return lambda: wake(build(*blocks)).train()


def step(model, inputs):
    """The losses of one step with all gradients, and the bytes that autograd kept for the backward pass."""
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    torch.manual_seed(7)
    source, target = torch.randn(LATENTS), torch.randn(LATENTS)
    with saved_tensors_hooks(pack, lambda t: t):
        out = model(inputs, source, target, seeds=[1, 2, 3])
    weights = {p.data_ptr() for p in model.parameters()}
    out["loss"].backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return out, grads, sum(size for pointer, size in kept.items() if pointer not in weights)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, equal_nan=True, msg=name)


@pytest.fixture(scope="module")
def plain(several, inputs):
    return step(several(), inputs)


@pytest.mark.parametrize("slot", SLOTS)
def test_checkpointing_saves_memory_and_changes_no_gradient(several, plain, inputs, slot):
    model = several()
    assert len(model.slot(slot).repeated()) >= 2
    model.slot(slot).enable_gradient_checkpointing()
    out, grads, kept = step(model, inputs)
    assert_same(out, plain[0])
    assert_same(grads, plain[1])
    assert kept < plain[2]


def test_repeated_blocks_save_most_of_the_activations(several, plain, inputs):
    model = several()
    for slot in SLOTS:
        model.slot(slot).enable_gradient_checkpointing()
    _, grads, kept = step(model, inputs)
    assert_same(grads, plain[1])
    assert kept < 0.3 * plain[2]


def test_a_copy_computes_with_its_own_weights(several, inputs):
    model = several()
    model.slot("cme").enable_gradient_checkpointing()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model.condition(inputs)[0].visual
        for p in twin.slot("cme").repeated()[0].parameters():
            p.zero_()
        assert torch.equal(model.condition(inputs)[0].visual, before)
        assert not torch.equal(twin.condition(inputs)[0].visual, before)


def test_a_slot_without_blocks_is_unchanged(several, plain, inputs):
    model = several()
    encoders = model.slot("encoders")
    assert encoders.repeated() == []
    encoders.enable_gradient_checkpointing()
    encoders.compile_blocks()
    assert_same(step(model, inputs)[1], plain[1])


@pytest.fixture
def compiled(several):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield several()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2, "FLUX's two kinds of block are not compiled"


@pytest.mark.long
def test_compiled_flux_gives_the_same_edit(several, compiled, inputs):
    compiled.slot("diffusion").compile_blocks()
    with torch.no_grad():
        condition, latents = compiled.condition(inputs)[0], torch.randn(LATENTS)
        edits = [m.slot("diffusion").sample(condition, latents, latents.flip(0), 2) for m in (compiled, several())]
    torch.testing.assert_close(*edits, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_compiled_flux_gives_the_same_losses_and_still_recomputes(several, compiled, plain, inputs):
    eager = several()
    eager.slot("diffusion").enable_gradient_checkpointing()
    saved = plain[2] - step(eager, inputs)[2]
    compiled.slot("diffusion").enable_gradient_checkpointing()
    compiled.slot("diffusion").compile_blocks()
    out, grads, kept = step(compiled, inputs)
    for found, expected in ((out, plain[0]), (grads, plain[1])):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, equal_nan=True, msg=name)
    assert plain[2] - kept > 0.8 * saved > 0
