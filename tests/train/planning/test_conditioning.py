"""At true size the conditioning path is a small part of an edit's FLOPs, counted on tensors without data."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reasonbrain.config.loading import load_config
from reasonbrain.interfaces import Inputs
from reasonbrain.train.planning.dry import Counter, without_weights

PRESETS = ["reasonbrain_flux_qwen", "reasonbrain_flux_llava", "reasonbrain_flux_kontext", "reasonbrain_kontext_think"]


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_the_conditioning_path_is_at_most_a_twentieth_of_an_edit(preset):
    """An edit at 1024 x 1024, with SAM's image encoder and without the generation of a sentence."""
    cfg = load_config(preset)
    model = without_weights(cfg).eval()
    flops = []

    def counted(work):
        with Counter([]) as counter:
            out = work()
        flops.append(counter.flops)
        return out

    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        for part in model.parts.values():
            part.tie_weights()
        for part in model.parts.values():
            part.stand_in_assets()
            part.prepare_dry_run(1024)
        diffusion, sam = model.slot("diffusion"), model.slot("frce.region").sam
        images, regions = torch.zeros(1, 3, 1024, 1024), torch.zeros(1, 1024, 1024, dtype=torch.long)
        counted(lambda: sam.vision_encoder(images))
        ready = counted(lambda: model.image_features(images))
        inputs = Inputs(images, ["What if someone blew on this?"], [["this"]], regions, ready, ["The flame is out."])
        condition, _ = counted(lambda: model.condition(inputs))
        path = sum(flops)
        latents = counted(lambda: diffusion.encode(images))
        counted(lambda: diffusion.decode(latents))
        rest = sum(flops) - path
        counted(lambda: diffusion.errors(condition, latents, latents, [0]))
    steps = model.edit_settings(cfg.edit).steps
    share = path / (path + rest + steps * flops[-1])
    print(f"{preset}: {path / 1e12:.1f} TFLOP, a step {flops[-1] / 1e12:.1f}, {steps} steps, share {share:.2%}")
    assert flops[0] > 2e12 and flops[-1] > 40e12
    assert share < 0.05
