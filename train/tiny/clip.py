"""Stage 2 of the embedded default: a tokenizer and a CLIP (transformers' CLIPModel) from scratch on ReasonMini.

    python -m reasonbrain.train.tiny.clip -o runs/tiny/clip
    python -m reasonbrain.train.tiny.clip --version 2 --steps 3000 -o runs/tiny2/clip

The contrastive pairs are: the target image with its outcome or instruction, and the source image with the names of its
objects. Writes a folder in the hub's layout.
"""

from __future__ import annotations

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from reasonbrain.config.schema import TrainConfig
from reasonbrain.modules.data.reasonmini.versions import WORLDS
from reasonbrain.train.loop import Loop
from reasonbrain.train.tiny.batches import augment, pictures, samples

LENGTH = 32  # tokens of a text
PATCHES = 8  # along each side of an image
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# END must not have id 2: CLIPTextModel treats that as a legacy configuration and pools at another token
SPECIAL = [PAD, START, "<|vision_start|>", "<|vision_end|>", END, "<|image_pad|>", "<|video_pad|>"]


def train_tokenizer(vocab_size: int = 2048, version: int = 1, records: int = 8000) -> Tokenizer:
    """Trains a lower-casing byte-level BPE on ReasonMini's training texts, with Qwen's special tokens."""
    make = WORLDS[version].make
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [t for i in range(records) for s in [make("train", i)] for t in (s.instruction, s.outcome, *s.objects)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    """Wraps a tokenizer in transformers' class."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, padding_side="right", **special)


def clip_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer that adds a start and an end token to every text, as CLIP's does."""
    ids = [(t, tokenizer.token_to_id(t)) for t in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return wrap(tokenizer, bos_token=START, eos_token=END, model_max_length=LENGTH)


def architecture(tokenizer: PreTrainedTokenizerFast, version: int = 1) -> CLIPConfig:
    """The configuration of the tiny CLIP model, for this tokenizer."""
    size = WORLDS[version].size
    layer = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    return CLIPConfig(
        text_config={
            **layer,
            **ids,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": LENGTH,
            "projection_dim": 128,
        },
        vision_config={**layer, "image_size": size, "patch_size": size // PATCHES, "projection_dim": 128},
        projection_dim=128,
    )


def batch(tokenizer: PreTrainedTokenizerFast, step: int, size: int, version: int = 1) -> dict[str, Tensor]:
    """Image-text pairs, as keyword arguments of CLIPModel."""
    records, rng = samples(step, size, seed=1, version=version)
    images, texts = [], []
    for i, s in enumerate(records):
        after = i % 2 == 0
        images.append(s.target if after else s.source)
        told = augment(s.instruction, rng, version) if rng.random() < 0.5 else s.outcome
        texts.append(told if after else ", ".join(s.objects))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return {
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        "pixel_values": (pictures(images) - mean) / std,
    }


def losses(clip: CLIPModel, pairs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The symmetric contrastive loss, and ``right``, the image-to-text retrieval accuracy in the batch."""
    out = clip(**pairs, return_loss=True)
    right = (out.logits_per_image.argmax(1) == torch.arange(len(out.logits_per_image))).float().mean()
    return {"loss": out.loss, "right": right}


def main() -> None:
    """Trains and writes the CLIP model: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--version", type=int, choices=sorted(WORLDS), default=1, help="of ReasonMini")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    tokenizer = clip_tokenizer(train_tokenizer(version=args.version))
    torch.manual_seed(0)
    clip = CLIPModel(architecture(tokenizer, args.version))
    loop = Loop(clip, TrainConfig(steps=args.steps, lr=1e-3, save_every=200, bf16=True), args.output)
    loop.resume()
    loop.fit(lambda step, _: batch(tokenizer, step, args.batch_size, args.version), partial(losses, clip))
    loop.engine.use_average()
    clip.eval().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
