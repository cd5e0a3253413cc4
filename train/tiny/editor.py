"""Stage 2 of the tiny editor: a FLUX.1 Kontext (diffusers' classes) from scratch that follows explicit sentences.

    python -m reasonbrain.train.tiny.editor --t5 runs/tiny_editor/t5 -o runs/tiny_editor/kontext

It learns to draw the outcome of a ReasonMini scene from the sentence that describes it, "the candle lies beside its
holder", and never reads an instruction. Autoencoder and CLIP are those of the embedded default. Writes a
FluxKontextPipeline, which ``diffusion: editor`` uses as it is (configs/think_tiny.yaml) and ``flux`` with
``prompt: t5`` starts from (configs/tiny_kontext_think.yaml).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from reasonbrain.checkpoint import embedded
from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import TrainConfig
from reasonbrain.interfaces import Condition
from reasonbrain.modules.common.published import load_tokenizer
from reasonbrain.modules.diffusion.flux import Flux
from reasonbrain.train.loop import Loop
from reasonbrain.train.tiny.batches import pictures, samples
from reasonbrain.train.tiny.t5 import LENGTH

DRAWS = 2  # noise levels per record
WIDTH = 4  # of a condition that is empty

Batch = tuple[Condition, Tensor, Tensor, list[int]]  # condition, latents of source and target, seeds


def architecture() -> dict[str, Any]:
    """The transformer and the scheduler of configs/tiny.yaml."""
    return load_config("tiny").model.diffusion["architecture"]


def untrained(t5: Path, vae: Path, clip: Path) -> FluxKontextPipeline:
    """The pipeline before training, with text encoders and an autoencoder from these folders."""
    known = architecture()
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(known["scheduler"]),
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=CLIPTextModel.from_pretrained(clip),
        tokenizer=load_tokenizer(clip),
        text_encoder_2=T5EncoderModel.from_pretrained(t5),
        tokenizer_2=load_tokenizer(t5),
        transformer=FluxTransformer2DModel.from_config(known["transformer"]),
    )


def plug_in(pipe: FluxKontextPipeline) -> Flux:
    """The plug-in ``flux`` with the pipeline's models, of which the transformer trains. What the plug-in adds to it
    does not, so that it stays a Kontext."""
    with TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        flux = Flux(width=WIDTH, heads=1, pretrained=folder, source="sequence", prompt="t5", prompt_tokens=LENGTH)
    for part in (flux.text_term, flux.image_term):
        part.requires_grad_(False)
    flux.transformer.x_embedder.added.requires_grad_(False)
    return flux.train()


def batch(flux: Flux, step: int, size: int) -> Batch:
    """Sources, targets and the sentences that describe the targets."""
    records, rng = samples(step, size, seed=6)
    images = pictures([s.source for s in records] + [s.target for s in records])
    source, target = flux.encode(images).chunk(2)
    none = torch.zeros(size, 0, WIDTH)
    condition = Condition(none, none, torch.zeros(size, 0), prompts=[s.outcome for s in records])
    return condition, source, target, rng.integers(0, 1 << 32, size).tolist()


def losses(flux: Flux, given: Batch) -> dict[str, Tensor]:
    """L_DM."""
    errors, _ = flux.errors(*given, draws=DRAWS)
    return {"loss": errors.mean()}


def main() -> None:
    """Trains and writes the editor: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--t5", type=Path, required=True)
    parser.add_argument("--clip", type=Path, default=embedded() / "parts" / "clip")
    parser.add_argument("--vae", type=Path, default=embedded() / "parts" / "vae")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    torch.manual_seed(0)
    pipe = untrained(args.t5, args.vae, args.clip)
    flux = plug_in(pipe)
    cfg = TrainConfig(steps=args.steps, optimizer="muon", lr=1e-3, warmup=200, ema=0.998, save_every=250, bf16=True)
    loop = Loop(flux, cfg, args.output)
    loop.resume()
    loop.fit(lambda step, _: batch(flux, step, args.batch_size), lambda given: losses(flux, given))
    loop.engine.use_average()
    state = flux.transformer.state_dict()
    del state["x_embedder.added"]
    pipe.transformer.load_state_dict(state)
    pipe.save_pretrained(args.output)


if __name__ == "__main__":
    main()
