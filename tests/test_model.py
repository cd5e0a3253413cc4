"""The whole model: trained parameters, the sum of the losses, null slots, independence of the batch."""

import pytest
import torch

from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.utils.images import to_tensor

LATENTS = (3, 4, 16, 16)
FROZEN = ("parts.encoders.clip.", "parts.mllm.model.", "parts.diffusion.vae.")
ALL_NULL = [f"model.{slot}=null" for slot in SLOTS]


def trains(name):
    """The parameters that train in the tiny configuration, by name: all but CLIP, the MLLM's base and the VAE."""
    return "lora_" in name or not name.startswith(FROZEN)


@pytest.fixture(scope="module")
def latents():
    torch.manual_seed(4)
    return torch.randn(LATENTS), torch.randn(LATENTS)


def test_gradients_reach_exactly_the_trained_parameters(build, wake, inputs, latents):
    model = wake(build()).train()
    model(inputs, *latents, range(3))["loss"].backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == trains(name), name
        if trains(name):
            assert p.grad is not None and p.grad.abs().sum() > 0, name
        else:
            assert p.grad is None, name
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {
        s.replace(".", "_") for s in SLOTS
    }


def test_steps_change_trained_parameters_and_no_others(build, inputs, latents):
    """From initialisation, where LoRA and FLUX's new inputs are zero. All have changed after two steps."""
    model = build().train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model(inputs, *latents, range(3))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != trains(name), name


def test_the_loss_is_the_sum_of_both(model, inputs, latents):
    with torch.no_grad():
        torch.manual_seed(0)
        out = model(inputs, *latents, range(3))
        torch.manual_seed(0)
        weighed = model(inputs, *latents, range(3), lm_weight=0.25, dm_weight=3.0)
    torch.testing.assert_close(out["loss"], out["lm"] + out["dm"])
    torch.testing.assert_close(weighed["loss"], 0.25 * out["lm"] + 3 * out["dm"])
    assert out["lm"] > 0 and out["dm"] > 0


def test_both_losses_train_the_lora(build, wake, inputs, latents):
    for loss in ("lm", "dm"):
        model = wake(build())
        model(inputs, *latents, range(3))[loss].backward()
        grads = [p.grad for n, p in model.named_parameters() if "lora_A" in n]
        assert all(g is not None and g.abs().sum() > 0 for g in grads), loss
        assert (model.slot("cme").visual_queries.grad is None) == (loss == "lm")


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(model, records, inputs):
    both, _ = model.condition(inputs)
    for i, sample in enumerate(records):
        one = model.make_inputs(to_tensor([sample.source]), [sample.instruction], [sample.objects])
        alone, _ = model.condition(one)
        for name in ("visual", "textual", "pooled", "focus"):
            torch.testing.assert_close(getattr(both, name)[i], getattr(alone, name)[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_instruction_and_the_picture_matter(model, inputs):
    """Each changes both sides of the condition."""
    before, _ = model.condition(inputs)
    other = model.make_inputs(inputs.images, inputs.instructions[::-1], inputs.objects, inputs.regions)
    flipped = model.make_inputs(inputs.images.flip(-1), inputs.instructions, inputs.objects, inputs.regions)
    for changed in (other, flipped):
        after, _ = model.condition(changed)
        for name in ("visual", "textual"):
            assert (getattr(after, name) - getattr(before, name))[0].abs().max() > 1e-4


def test_make_inputs_computes_missing_inputs(model, records):
    images = to_tensor([r.source for r in records])
    texts = ["What if the red candle were lit?"] * 3
    found = model.make_inputs(images, texts, [None, [], ["wick"]])
    assert found.objects == [["red candle"], [], ["wick"]]
    assert torch.equal(found.regions, model.slot("frce.region").segment(images))
    given = torch.zeros(3, 64, 64, dtype=torch.int16)
    assert model.make_inputs(images, texts, regions=given).regions.dtype == torch.int64


NULLS = [[f"model.{s}=null"] for s in (*SLOTS, "frce")] + [ALL_NULL, ALL_NULL[:-1]]


@pytest.mark.parametrize("null", NULLS, ids=str)
def test_null_slots(build, settings, records, latents, tmp_path, null):
    """Loss, edit, save and load work without one slot, without any slot, and with FLUX only."""
    torch.manual_seed(0)
    model = build(*null)
    named = {o.split("=")[0].removeprefix("model.") for o in null}
    missing = {slot for slot in SLOTS if {slot, slot.split(".")[0]} & named}
    assert {s for s in SLOTS if model.slot(s) is None} == missing
    images = to_tensor([r.source for r in records])
    inputs = model.make_inputs(images, [r.instruction for r in records])
    out = model(inputs, *latents, range(3))
    assert torch.isfinite(out["loss"])
    assert (out["lm"] > 0) == ("mllm" not in missing) and (out["dm"] > 0) == ("diffusion" not in missing)
    if out["loss"].requires_grad:
        out["loss"].backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())

    pipe = ReasonBrainPipeline.from_model(model, settings(*null))
    pipe.save_pretrained(tmp_path)
    again = ReasonBrainPipeline.from_pretrained(tmp_path)
    assert {s for s in SLOTS if again.model.slot(s) is None} == missing
    edits = [
        p(records[0].source, "melt it", generator=torch.Generator().manual_seed(1), output_type="pt").images[0]
        for p in (pipe, again)
    ]
    assert torch.equal(*edits) and edits[0].shape == (3, 64, 64)
    if "diffusion" in missing:
        assert torch.equal(edits[0], images[0])


@pytest.mark.parametrize("null", ["cme", "frce"])
def test_null_of_a_trained_slot_keeps_the_rest(model, settings, tmp_path, null):
    """A checkpoint can be loaded without one of its slots, or without the whole FRCE (ablation)."""
    ReasonBrainPipeline.from_model(model, settings()).save_pretrained(tmp_path)
    pipe = ReasonBrainPipeline.from_pretrained(tmp_path, [f"model.{null}=null"])
    assert {s for s in SLOTS if pipe.model.slot(s) is None} == {s for s in SLOTS if s.startswith(null)}
    for name, p in pipe.connector.named_parameters():
        assert torch.equal(p, model.slot("connector").get_parameter(name))


def test_without_weights_published_models_come_from_their_architecture(settings):
    """``weights=False`` opens no weights file."""
    cfg = settings("model.encoders=null", "model.mllm=null", "model.diffusion=null").model
    with torch.device("meta"):
        model = ReasonBrain.from_config(cfg, weights=False)
    assert model.device.type == "meta"


def test_visual_cues_and_their_masks_are_patches_then_regions(model, inputs):
    """With a mask in another order, absent regions would be used and present patches would not."""
    with torch.no_grad():
        features = model.encode(inputs)
        cues = model.cues(features, inputs)
        patches = model.slot("frce.patch")(features)
        regions, present = model.slot("frce.region")(features, inputs.regions)
    assert 0 < present.sum() < present.numel()  # both kinds are there, or the test says nothing
    count = patches.shape[1]
    assert torch.equal(cues.visual[:, :count], patches) and torch.equal(cues.visual[:, count:], regions)
    assert cues.visual_mask[:, :count].all()
    assert torch.equal(cues.visual_mask[:, count:], present)


def test_the_loss_by_noise_level_is_the_mean_of_its_draws(model, inputs, latents):
    seeds = [11, 12, 13]
    with torch.no_grad():
        out = model(inputs, *latents, seeds, draws=8)
        condition, _ = model.condition(inputs)
        errors, sigma = model.slot("diffusion").errors(condition, *latents, seeds, 8)
    torch.testing.assert_close(out["dm"], errors.mean())
    seen = 0
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (low < sigma) & (sigma <= low + 0.25)
        seen += int(inside.sum())
        if inside.any():
            torch.testing.assert_close(out[f"dm/{low:.2f}-{low + 0.25:.2f}"], errors[inside].mean())
    assert seen == len(sigma) == 24
