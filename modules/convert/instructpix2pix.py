"""InstructPix2Pix (arXiv:2211.09800): the authors' .ckpt file, also MagicBrush's and other fine-tunes in that layout.

    model.diffusion_model.*  model_ema.*  first_stage_model.*  cond_stage_model.transformer.*

The averaged weights (EMA) are taken, under which the authors sample. The tokenizer is that of the preset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.modules.common.published import load_tokenizer
from reasonbrain.modules.convert.tensors import Report, empty, fill, read, take

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


def convert(source: Path, overrides: tuple[str, ...], report: Report) -> tuple[Config, ReasonBrain]:
    """The configuration and the model of a .ckpt file. Raises UserError like ``fill``, and for a folder."""
    if source.is_dir():
        raise UserError(
            f"'{source}' is a folder; if it is in diffusers' layout, it needs no conversion: "
            f"--config instructpix2pix model.encoders.pretrained={source} model.diffusion.pretrained={source}"
        )
    cfg = load_config("instructpix2pix", overrides)
    tensors = read(source)
    params: dict[str, Any] = {slot: slot_config(cfg.model, slot) for slot in ("encoders", "diffusion")}
    encoders, sd = (empty(slot, params[slot], cfg.model.width) for slot in params)
    encoders.tokenizer = load_tokenizer(params["encoders"]["pretrained"], "tokenizer")
    unet, averaged = take(tensors, UNET), take(tensors, "model_ema.")
    ema = {name: averaged.pop(flat, None) for name in unet if (flat := _flat(name))}
    if not all(value is None for value in ema.values()):
        unet = {name: value for name, value in ema.items() if value is not None}
    report.unused += [f"model_ema.{name}" for name in averaged]
    of_unet = convert_ldm_unet_checkpoint({UNET + name: value for name, value in unet.items()}, sd.unet.config)
    fill("diffusion.unet", sd.unet, of_unet, report)
    of_vae = convert_ldm_vae_checkpoint({VAE + n: v for n, v in take(tensors, VAE).items()}, sd.vae.config)
    fill("diffusion.vae", sd.vae, of_vae, report)
    words = take(tensors, TEXT)
    words.pop("text_model.embeddings.position_ids", None)  # libraries compute it now
    fill("encoders.clip", encoders.clip, fit(words, "text_model.", encoders.clip), report)
    report.unused += tensors  # the noise schedule
    for slot in params:
        params[slot]["pretrained"] = None
    return cfg, ReasonBrain({"encoders": encoders, "diffusion": sd}, cfg.model.width)


def _flat(name: str) -> str:
    """The name in ``model_ema`` of a tensor of the UNet: that in the whole model, without dots."""
    return f"diffusion_model.{name}".replace(".", "")


def fit(tensors: dict[str, Any], prefix: str, module: Any) -> dict[str, Any]:
    """``tensors`` without a prefix that older versions of transformers have in their names."""
    has = any(name.startswith(prefix) for name in module.state_dict())
    return tensors if has else {name.removeprefix(prefix): value for name, value in tensors.items()}
