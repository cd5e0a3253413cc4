"""The configurations of ReasonBrain's family, built at true size on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reasonbrain.config.loading import load_config
from reasonbrain.interfaces import Condition, Features, Guidance, Inputs
from reasonbrain.model import ReasonBrain

UNET, VAE, TEXT = 859_532_484, 83_653_863, 123_060_480
EDIT_HEAD, QFORMER, BIM = 31_958_784, 65_015_040, 29_211_200
LLAVA, LLAMA = 7_063_427_072, 6_738_415_616
SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def meta(name: str, *overrides: str) -> ReasonBrain:
    with torch.device("meta"):
        return ReasonBrain.from_config(load_config(name, list(overrides)).model, weights=False)


def count(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize("start", [[], [f"model.diffusion.pretrained={SD}"]])
def test_instructpix2pix(start) -> None:
    """Also from Stable Diffusion 1.5, whose UNet has no inputs for the source."""
    model = meta("instructpix2pix", *start)
    sd = model.slot("diffusion")
    assert count(sd.unet) == UNET and count(sd.vae) == VAE
    assert count(model.slot("encoders")) == TEXT
    assert count(model, trained=True) == UNET
    with torch.device("meta"):
        latents, words = sd.encode(torch.rand(1, 3, 256, 256)), torch.rand(1, 77, 768)
        assert latents.shape == (1, 4, 32, 32)
        condition = Condition(words[:, :0], words, torch.rand(1, 768), null=words)
        assert [t.shape for t in sd.errors(condition, latents, latents, [1], 2)] == [(2,), (2,)]


def images_to_loss(model: ReasonBrain, side: int = 256) -> None:
    """The shapes of the path behind the MLLM, whose tokenizer is not at hand."""
    with torch.device("meta"):
        mllm, sd = model.slot("mllm"), model.slot("diffusion")
        hidden, null = mllm.guide(torch.rand(1, 1 + len(mllm.img_in), mllm.img_in.shape[1]))
        aligned = model.align(Guidance(hidden, torch.rand(()), null))
        assert aligned.shape == (1, 77, 768)
        patches, none, no = torch.rand(1, 256, 1024), torch.rand(1, 0, 768), torch.rand(1, 0) > 0
        features = Features(patches, (16, 16), none, no, torch.rand(1, 768), none, no)
        cues = model.cues(features, Inputs(torch.rand(1, 3, side, side), [""], [[]], torch.zeros(1, side, side)))
        assert mllm.cue_in(cues.visual).shape == (1, 0, 4096)
        condition = model.enhance(features, cues, aligned)
        latents = sd.encode(torch.rand(1, 3, side, side))
        assert [t.shape for t in sd.errors(condition, latents, latents, [1])] == [(1,), (1,)]


@pytest.mark.parametrize(("name", "size"), [("mgie", LLAVA), ("lgie", LLAMA)])
def test_mgie_and_lgie(name, size) -> None:
    model = meta(name)
    assert count(model.slot("connector")) == EDIT_HEAD and count(model.slot("diffusion").unet) == UNET
    mllm = model.slot("mllm")
    assert count(mllm.model) == size and mllm.img_in.shape == (8, 4096) and mllm.reads_sentence
    tables = [mllm.model.get_input_embeddings(), mllm.model.get_output_embeddings()]
    trained = sum(map(count, tables)) + 2 * 8 * 4096 + count(mllm.cue_in)
    assert count(mllm, trained=True) == trained
    assert count(model, trained=True) == trained + EDIT_HEAD + UNET
    images_to_loss(model)


def test_llava_v1() -> None:
    """One linear projector, 16 x 16 patches."""
    model = meta("mgie", "model.mllm.pretrained=liuhaotian/LLaVA-Lightning-7B-delta-v1-1").slot("mllm")
    projector = model.model.model.multi_modal_projector
    assert count(projector) == 1024 * 4096 + 4096
    assert model.model.get_input_embeddings().weight.shape == (32003, 4096)
    embeds = model.image_embeds({"pixel_values": torch.zeros(1, 3, 224, 224, device="meta")})
    assert embeds.shape == (1, 1, 256, 4096)


@pytest.mark.parametrize("name", ["mgie_fz", "mgie_ft"])
def test_the_ablations_of_mgie_train_the_unet_alone(name) -> None:
    model = meta(name)
    assert model.reads_sentence and count(model, trained=True) == UNET


def test_smartedit() -> None:
    model = meta("smartedit")
    assert count(model.slot("connector")) == QFORMER and count(model.slot("cme")) == BIM
    assert count(model.slot("encoders").tower) == 303_179_776 and count(model.slot("diffusion").unet) == UNET
    assert model.slot("mllm").img_in.shape == (32, 4096)
    images_to_loss(model)
