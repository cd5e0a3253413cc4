"""Encoders ``clip``: several layers of patches, tokens with masks, independence of other rows."""

import pytest
import torch
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reasonbrain.interfaces import Inputs


@pytest.fixture(scope="module")
def clip(model):
    return model.slot("encoders")


def inputs(texts, objects=None, images=None):
    images = torch.rand(len(texts), 3, 64, 64) if images is None else images
    return Inputs(images, texts, objects or [[]] * len(texts), torch.zeros(len(texts), 64, 64).long())


def test_image_features_are_clips_own_layers_without_the_class_token(clip, parts, records):
    picture = records[0].source
    reference = CLIPModel.from_pretrained(parts / "clip").eval()
    pixels = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        states = reference.vision_model(pixels, output_hidden_states=True).hidden_states
    tensor = torch.tensor(list(picture.tobytes())).view(1, 64, 64, 3).permute(0, 3, 1, 2) / 255
    found = clip.image_features(tensor)
    assert found.shape == (1, 16, 2 * 32)  # 4 x 4 patches, layers -1 and -2
    torch.testing.assert_close(found, torch.cat([states[-1][:, 1:], states[-2][:, 1:]], -1), rtol=1e-4, atol=1e-5)


def test_patches_come_row_by_row(clip):
    """A change at the right of the first row of patches affects patch 3 more than patch 12."""
    picture = torch.full((1, 3, 64, 64), 0.5)
    other = picture.clone()
    other[..., :16, 48:] = 1
    moved = (clip.image_features(other) - clip.image_features(picture)).norm(dim=-1)[0]
    assert moved.argmax() == 3


@pytest.mark.parametrize("size", [(48, 80), (200, 120)])
def test_any_size_of_picture(clip, size):
    out = clip(inputs(["melt it"], images=torch.rand(1, 3, *size)))
    assert out.patches.shape == (1, 16, 32) and out.grid == (4, 4) and torch.isfinite(out.patches).all()


def test_a_row_does_not_depend_on_its_neighbours(clip):
    texts = ["melt it", "what would happen if the ice were left in the sun for a day?"]
    objects = [["ice"], ["ice cube", "blue plate"]]
    both = inputs(texts, objects)
    out = clip(both)
    for row in range(2):
        alone = clip(inputs(texts[row : row + 1], objects[row : row + 1], both.images[row : row + 1]))
        for name in ("patches", "text", "text_mask", "pooled", "objects", "objects_mask"):
            torch.testing.assert_close(getattr(out, name)[row], getattr(alone, name)[0], rtol=1e-4, atol=1e-5)


def test_masks_cover_the_words_and_nothing_else(clip):
    out = clip(inputs(["melt it", "", "grow " * 100], [["ice"], [], ["a b c d e f g h i j k l m n o p"]]))
    words = len(clip.tokenizer("melt it").input_ids)
    assert out.text_mask.sum(1).tolist() == [words, 0, 32]
    assert out.objects_mask.sum(1).tolist()[1:] == [0, 8]
    assert (out.text[~out.text_mask] == 0).all() and (out.objects[~out.objects_mask] == 0).all()
    assert (out.text[out.text_mask] != 0).any(-1).all()


def test_only_the_adapters_train(clip):
    trained = {n.partition(".")[0] for n, p in clip.named_parameters() if p.requires_grad}
    assert trained == {"image_adapter", "text_adapter"}
    assert not clip.train().clip.training
    clip.eval()


def test_pooled_reads_the_whole_instruction(clip):
    """Also a last word whose id is smaller than another's: where END's id is 2, transformers' CLIP looks for the
    largest id instead of END."""
    words = sorted(("candle", "lit", "out", "sun", "ice", "what"), key=lambda w: clip.tokenizer(w).input_ids[1])
    pooled = clip(inputs([f"{words[-1]} {w}" for w in words[:-1]])).pooled
    assert torch.pdist(pooled).min() > 1e-3


@pytest.mark.parametrize("special", ["<|im_end|>", "<|endoftext|>", "<|im_start|>"])
def test_special_tokens_in_an_instruction_are_text(clip, special):
    """An end token written by a user must not end the instruction."""
    assert special in clip.tokenizer.all_special_tokens
    words = [f"{special} leave the ice in the sun", f"{special} let snow fall on the roof"]
    pooled = clip(inputs(words)).pooled
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    ids = clip.tokenizer(words, split_special_tokens=True).input_ids
    assert all(row.count(clip.tokenizer.convert_tokens_to_ids(special)) <= 1 for row in ids)


def test_what_a_long_text_has_unread_is_what_does_not_change_its_tokens(clip):
    """A text that just fits is read to its end; one word more is unread, and so is the end of a far longer one."""
    length = clip.clip.config.text_config.max_position_embeddings
    words = ["grow"] * length
    while len(clip.tokenizer(" ".join(words)).input_ids) > length:
        words.pop()
    full = " ".join(words)
    assert len(clip.tokenizer(full).input_ids) == length and clip.unread(full) == "" == clip.unread("melt it")
    assert clip.unread(f"{full} ice").strip() == "ice"
    far = f"{full} {'and then it melts ' * 9}"
    read = far.removesuffix(clip.unread(far))
    same = clip(inputs([far, read]))
    assert torch.equal(same.text[0], same.text[1]) and read.strip() == full
