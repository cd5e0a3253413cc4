"""Stages 2 and 3 of the embedded default on ReasonMini 2: 128 x 128 pixels are as many patches as 64 x 64."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel, Qwen2_5_VLForConditionalGeneration

from reasonbrain.train.tiny import clip, mllm
from reasonbrain.train.tiny.batches import augment, samples


@pytest.fixture(scope="module")
def tokenizer():
    return clip.train_tokenizer(400, version=2, records=40)


def falls(losses, model):
    """Whether the loss of one batch falls in four steps."""
    optimizer, seen = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(4):
        loss = losses()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen[-1] < seen[0]


def test_clip(tokenizer):
    words = clip.clip_tokenizer(tokenizer)
    torch.manual_seed(0)
    model = CLIPModel(clip.architecture(words, version=2))
    pairs = clip.batch(words, 3, 4, version=2)
    assert pairs["pixel_values"].shape == (4, 3, 128, 128)
    assert model.vision_model.embeddings.num_patches == 64
    assert falls(lambda: clip.losses(model, pairs)["loss"], model)


def test_mllm(tokenizer):
    words = clip.wrap(tokenizer, eos_token=clip.END)
    processor = mllm.image_processor(version=2)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(mllm.architecture(words, version=2))
    prompts = mllm.batch(words, processor, 3, 4, False, version=2)
    assert (prompts["mm_token_type_ids"].sum(1) == 16).all() and prompts["image_grid_thw"].tolist() == [[1, 8, 8]] * 4
    for row, sample in enumerate(samples(3, 4, seed=2, version=2)[0]):
        answer = prompts["labels"][row]
        said = words.decode(answer[answer != -100], skip_special_tokens=True).strip()
        assert said == sample.outcome.lower()
    assert falls(lambda: model(**prompts).loss, model)


def test_words_are_replaced_by_words_of_the_same_version():
    rng = np.random.default_rng(0)
    first = {augment("zzz " * 40, rng, version=1) for _ in range(20)}
    second = {augment("zzz " * 40, rng, version=2) for _ in range(20)}
    new = [{word for text in texts for word in text.split()} - {"zzz"} for texts in (first, second)]
    assert all(new) and new[0] != new[1]
