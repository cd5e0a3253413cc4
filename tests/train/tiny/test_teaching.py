"""Stage 3 of the embedded default: ``reason`` generates the sentences that the MLLM is trained on."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from reasonbrain.config.loading import load_config
from reasonbrain.interfaces import Inputs
from reasonbrain.modules.mllm.qwen2_5_vl import Qwen25VL
from reasonbrain.train.tiny.batches import samples
from reasonbrain.train.tiny.mllm import batch
from reasonbrain.utils.images import to_tensor


@pytest.mark.parametrize("full", [False, True])
def test_it_generates_the_outcome_or_the_full_narration(tmp_path, full):
    """The shipped MLLM overfits three records."""
    shipped = load_config("tiny").model.mllm["pretrained"]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(shipped)
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    processor = AutoImageProcessor.from_pretrained(shipped, backend="pil")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    prompts = batch(tokenizer, processor, 0, 3, full)
    for _ in range(80):
        model(**prompts).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for written in (model, tokenizer, processor):
        written.save_pretrained(tmp_path)
    plug = Qwen25VL(128, str(tmp_path), img_tokens=0, lora_rank=0).eval()
    records, _ = samples(0, 3, seed=2)
    asked = [s.instruction for s in records]
    inputs = Inputs(to_tensor([s.source for s in records]), asked, [[]] * 3, torch.zeros(3, 64, 64).long())
    assert plug.reason(inputs) == [(s.narration if full else s.outcome).lower() for s in records]
