"""Encoders ``clip_states``: what diffusers' pipelines give to the UNet, bit for bit, and the states of no text."""

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from pipelines import save_pix2pix
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Inputs
from reasonbrain.modules.encoders.clip_states import ClipStates

TEXTS = ["melt it", "what would happen if the ice were left in the sun?", ""]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pix2pix")
    save_pix2pix(folder)
    return folder


def inputs(texts, sentences=None):
    count = len(texts)
    regions = torch.zeros(count, 8, 8).long()
    return Inputs(torch.rand(count, 3, 8, 8), texts, [[]] * count, regions, {}, sentences)


def test_states_are_those_of_the_pipeline(published):
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(published, safety_checker=None)
    expected = pipe._encode_prompt(TEXTS, "cpu", 1, True, [""] * 3)
    words, null, _ = expected.chunk(3)
    found = ClipStates(width=32, pretrained=str(published))(inputs(TEXTS))
    torch.testing.assert_close(found.text, words, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.null, null, rtol=1e-5, atol=1e-5)
    assert found.text.shape == (3, 77, 32) and found.text_mask.all() and found.patches.shape == (3, 0, 32)
    assert not torch.allclose(found.text[0], found.text[1])


def test_a_row_does_not_depend_on_its_neighbours(published):
    plug = ClipStates(width=32, pretrained=str(published))
    both = plug(inputs(TEXTS))
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(plug(inputs([text])).text[0], both.text[row], rtol=1e-4, atol=1e-5)


def test_the_sentence_in_place_of_the_instruction(published):
    plug = ClipStates(width=32, pretrained=str(published), reads="sentence")
    found = plug(inputs(["x"] * 3, TEXTS)).text
    assert plug.reads_sentence
    assert torch.equal(found, ClipStates(width=32, pretrained=str(published))(inputs(TEXTS)).text)


def test_saved_and_loaded(published, tmp_path):
    plug = ClipStates(width=32, pretrained=str(published))
    plug.save_pretrained(tmp_path)
    assert torch.equal(ClipStates.from_pretrained(tmp_path)(inputs(TEXTS)).text, plug(inputs(TEXTS)).text)
    assert not any(p.requires_grad for p in plug.parameters())


def test_what_a_long_text_loses(published):
    plug = ClipStates(width=32, pretrained=str(published))
    assert plug.unread("melt it") == "" and plug.unread("melt it " * 99).endswith("melt it ")


def test_a_width_that_does_not_fit_is_named(published):
    with pytest.raises(UserError, match="model.width: 48 is not 32"):
        ClipStates(width=48, pretrained=str(published))


def test_patches_of_a_vision_tower(published, hub, tmp_path):
    """As CLIP's own, without the class token; precomputed ones are used."""
    clip = hub["clip"].models[""]
    plug = ClipStates(width=32, pretrained=str(published), vision=hub["clip"].folder, layer=-2)
    batch = inputs(TEXTS)
    batch.images = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    states = clip.vision_model((batch.images - mean) / std, output_hidden_states=True).hidden_states[-2]
    found = plug(batch)
    torch.testing.assert_close(found.patches, states[:, 1:], rtol=1e-4, atol=1e-5)
    assert found.grid == (4, 4) and list(plug.prepares()) == ["tower"]
    batch.ready = {"encoders": torch.zeros_like(found.patches)}
    assert (plug(batch).patches == 0).all()
    plug.save_pretrained(tmp_path)
    batch.ready = {}
    assert torch.equal(ClipStates.from_pretrained(tmp_path)(batch).patches, found.patches)
