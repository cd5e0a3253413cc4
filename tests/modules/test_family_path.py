"""From the words to the condition of ReasonBrain's family, with tiny models: null conditions and sentences."""

import pytest
import torch
from pipelines import save_pix2pix

from reasonbrain.config.loading import load_config
from reasonbrain.model import ReasonBrain

WIDTH = 32


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pix2pix")
    save_pix2pix(folder)
    return folder


@pytest.fixture(scope="module")
def family(hub, pix2pix):
    """``family("mgie")``: the preset with tiny models, as if trained a little."""
    sd, llava = f"model.diffusion.pretrained={pix2pix}", f"model.mllm.pretrained={hub['llava'].folder}"
    clip = [f"model.encoders.pretrained={pix2pix}", f"model.encoders.vision={hub['clip'].folder}"]
    bim = ["model.cme.patches=32", "model.cme.channels=32", "model.cme.heads=4", "model.connector.heads=4"]
    own = {"mgie": [llava, "model.connector.hidden=32"], "smartedit": [llava, *clip, *bim]}

    def one(name: str) -> ReasonBrain:
        given = [f"model.width={WIDTH}", "model.connector.inputs=32", "model.mllm.precision=float32", sd, *own[name]]
        torch.manual_seed(0)
        model = ReasonBrain.from_config(load_config(name, given).model).eval()
        for key, p in model.named_parameters():
            if "dimension_reduction" in key or key.endswith(("img_in", "img_out")):
                p.data.normal_(std=0.3)
        return model

    return one


@torch.no_grad()
def test_mgies_null_condition_is_the_edit_head_of_the_embeddings_alone(family):
    model = family("mgie")
    inputs = model.make_inputs(
        torch.rand(2, 3, 64, 64), ["melt it", "light the candle"], sentences=["it is out", "ice"]
    )
    condition, lm = model.condition(inputs)
    head, mllm = model.slot("connector"), model.slot("mllm")
    expected = head(mllm.img_in[None])
    for row in range(2):
        torch.testing.assert_close(condition.null[row], expected[0], rtol=1e-4, atol=1e-5)
    guidance = mllm(inputs, model.cues(model.encode(inputs), inputs))
    torch.testing.assert_close(condition.visual, head(guidance.hidden), rtol=1e-4, atol=1e-5)
    assert condition.textual.shape == (2, 0, WIDTH) and condition.map is None
    assert torch.equal(lm, guidance.lm_loss) and condition.prompts == inputs.sentences


@torch.no_grad()
def test_mgies_sentence_is_generated_once_and_before_the_guidance(family):
    model = family("mgie")
    mllm, asked = model.slot("mllm"), []
    plain = mllm.reason
    mllm.__dict__["reason"] = lambda inputs: asked.append(inputs) or plain(inputs, 4)
    images = torch.rand(1, 3, 64, 64)
    condition, _ = model.condition(model.make_inputs(images, ["melt it"]))
    assert len(asked) == 1 and asked[0].sentences is None
    given, _ = model.condition(model.make_inputs(images, ["melt it"], sentences=list(condition.prompts)))
    assert torch.equal(given.visual, condition.visual) and len(asked) == 1
    other, _ = model.condition(model.make_inputs(images, ["melt it"], sentences=["the sun"]))
    assert not torch.allclose(other.visual, condition.visual)


@torch.no_grad()
def test_smartedits_null_condition_is_clip_of_no_words(family):
    model = family("smartedit")
    inputs = model.make_inputs(torch.rand(2, 3, 64, 64), ["melt it", "light the candle"])
    condition, _ = model.condition(inputs)
    features = model.encode(inputs)
    assert torch.equal(condition.null, features.null) and condition.null.shape == condition.visual.shape == (
        2,
        77,
        WIDTH,
    )
    assert condition.textual.shape == (2, 0, WIDTH) and condition.map.shape == (2, 32, 4, 4)
    assert condition.map.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["mgie", "smartedit"])
def test_both_losses_reach_what_trains(family, name):
    """In two passes: what starts at zero first has to move."""
    model = family(name).train()
    inputs = model.make_inputs(torch.rand(2, 3, 64, 64), ["melt it", "light it"], sentences=["it is out", "ice"])
    latents = torch.randn(2, 2, 4, 8, 8).unbind()
    out = model(inputs, *latents, [1, 2], lm_weight=1.0, dm_weight=0.5)
    torch.testing.assert_close(out["loss"], out["lm"] + 0.5 * out["dm"])
    out["loss"].backward()
    silent = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    # no cues; adapters that start at zero; a bias that softmax does not see; inputs of a map that was not moved yet
    expected = ("cue_in", "lora_A", "k_proj.bias", "key.bias")
    assert not [n for n in silent if not any(part in n for part in expected)], silent
