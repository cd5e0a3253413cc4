"""Stage 3 of the embedded default: a Qwen2.5-VL (transformers' class) from scratch, trained to describe the outcome.

    python -m reasonbrain.train.tiny.mllm -o runs/tiny/mllm
    python -m reasonbrain.train.tiny.mllm --version 2 --steps 3000 -o runs/tiny2/mllm
    python -m reasonbrain.train.tiny.mllm --full -o runs/tiny/mllm_full  # for `reasonbrain ablate instruction_summary`

The model gets an image and a hypothetical instruction in the prompt of the plug-in ``qwen2_5_vl``, and answers with one
sentence that describes the outcome; with ``--full``, with the full narration that the sentence summarises. Writes a
folder in the hub's layout.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from reasonbrain.config.schema import TrainConfig
from reasonbrain.modules.data.reasonmini.versions import WORLDS
from reasonbrain.modules.mllm.qwen2_5_vl import Qwen25VL
from reasonbrain.train.loop import Loop
from reasonbrain.train.tiny.batches import augment, samples
from reasonbrain.train.tiny.clip import END, PATCHES, train_tokenizer, wrap

MERGE = 2  # patches along each side of an image token


def architecture(tokenizer: PreTrainedTokenizerFast, version: int = 1) -> Qwen2_5_VLConfig:
    """The configuration of the tiny Qwen2.5-VL model, for this tokenizer."""
    size = WORLDS[version].size
    special = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in special}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": size // PATCHES,
            "spatial_merge_size": MERGE,
            "window_size": size,
            "fullatt_block_indexes": [0, 1, 2],
        },
        tie_word_embeddings=True,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )


def image_processor(version: int = 1) -> Qwen2VLImageProcessorPil:
    """The image processor of the tiny Qwen2.5-VL model."""
    size = WORLDS[version].size
    patch = size // PATCHES
    limits = {"shortest_edge": (patch * MERGE) ** 2, "longest_edge": size**2}
    return Qwen2VLImageProcessorPil(patch_size=patch, merge_size=MERGE, size=limits)


def batch(
    tokenizer: PreTrainedTokenizerFast,
    processor: Qwen2VLImageProcessorPil,
    step: int,
    size: int,
    full: bool,
    version: int = 1,
) -> dict[str, Tensor]:
    """Prompts and answers as keyword arguments of Qwen's model. Labels cover the answer."""
    records, rng = samples(step, size, seed=2, version=version)
    pixels = processor(
        images=[np.asarray(s.source) for s in records], input_data_format="channels_last", return_tensors="pt"
    )
    before, between, after = (tokenizer(p, add_special_tokens=False).input_ids for p in Qwen25VL.prompt)
    picture = [tokenizer.convert_tokens_to_ids(Qwen25VL.image_token)] * (PATCHES // MERGE) ** 2
    rows, starts = [], []
    for s in records:
        words = tokenizer(augment(s.instruction, rng, version), add_special_tokens=False).input_ids
        prompt = before + picture + between + words + after
        answer = tokenizer(s.narration if full else s.outcome, add_special_tokens=False).input_ids
        rows.append(prompt + answer + [tokenizer.eos_token_id])
        starts.append(len(prompt))
    length = max(map(len, rows))
    ids = torch.tensor([r + [tokenizer.pad_token_id] * (length - len(r)) for r in rows])
    column = torch.arange(length)
    used = column < torch.tensor([len(r) for r in rows])[:, None]
    answered = used & (column >= torch.tensor(starts)[:, None])
    return {
        "input_ids": ids,
        "attention_mask": used.long(),
        "mm_token_type_ids": (ids == picture[0]).int(),
        "labels": ids.masked_fill(~answered, -100),  # ignored by the loss
        **pixels,
    }


def main() -> None:
    """Trains and writes the MLLM: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--full", action="store_true", help="answer with the full narration instead of one sentence")
    parser.add_argument("--version", type=int, choices=sorted(WORLDS), default=1, help="of ReasonMini")
    args = parser.parse_args()
    if args.full and args.version != 1:
        parser.error("--full: only version 1 has narrations")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    tokenizer = wrap(train_tokenizer(version=args.version), eos_token=END)
    processor = image_processor(args.version)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(architecture(tokenizer, args.version))
    loop = Loop(model, TrainConfig(steps=args.steps, lr=1e-3, save_every=200, bf16=True), args.output)
    loop.resume()
    loop.fit(
        lambda step, _: batch(tokenizer, processor, step, args.batch_size, args.full, args.version),
        lambda prompts: {"loss": model(**prompts).loss},
    )
    loop.engine.use_average()
    model.eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    processor.save_pretrained(args.output)


if __name__ == "__main__":
    main()
