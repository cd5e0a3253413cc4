"""Stage 1 of the tiny editor: a T5 (transformers' class) from scratch on ReasonMini's sentences.

    python -m reasonbrain.train.tiny.t5 -o runs/tiny_editor/t5

It rebuilds sentences of which words are missing. Of the model, FLUX reads the encoder. Writes a folder in the hub's
layout.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from reasonbrain.config.schema import TrainConfig
from reasonbrain.train.loop import Loop
from reasonbrain.train.tiny.batches import samples
from reasonbrain.train.tiny.clip import END, train_tokenizer, wrap

LENGTH = 32  # tokens of a sentence
MISSING = 0.2  # share of the words


def tokenizer_of() -> PreTrainedTokenizerFast:
    """CLIP's words with an end token after every text, as T5's tokenizer adds it."""
    words = train_tokenizer()
    ids = [(END, words.token_to_id(END))]
    words.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=ids)
    return wrap(words, eos_token=END, model_max_length=LENGTH)


def architecture(tokenizer: PreTrainedTokenizerFast) -> T5Config:
    """The configuration of the tiny T5, for this tokenizer."""
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )


def batch(tokenizer: PreTrainedTokenizerFast, step: int, size: int) -> dict[str, Tensor]:
    """Sentences with missing words, and whole, as keyword arguments of T5. Half of them are instructions.

    The encoder sees padding, as FLUX's does."""
    records, rng = samples(step, size, seed=5)
    whole = [s.outcome if i % 2 else s.instruction for i, s in enumerate(records)]
    broken = [" ".join(word for word in text.split() if rng.random() > MISSING) for text in whole]
    told, wanted = (
        tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
        for texts in (broken, whole)
    )
    labels = wanted.masked_fill(wanted == tokenizer.pad_token_id, -100)  # ignored by the loss
    return {"input_ids": told, "labels": labels}


def main() -> None:
    """Trains and writes the T5: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    tokenizer = tokenizer_of()
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(architecture(tokenizer))
    loop = Loop(t5, TrainConfig(steps=args.steps, lr=1e-3, save_every=200, bf16=True), args.output)
    loop.resume()
    loop.fit(lambda step, _: batch(tokenizer, step, args.batch_size), lambda texts: {"loss": t5(**texts).loss})
    loop.engine.use_average()
    t5.eval().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
