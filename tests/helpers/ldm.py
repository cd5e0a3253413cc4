"""Names of Stable Diffusion's weights in its authors' .ckpt files, from diffusers' names."""

from __future__ import annotations

import re

from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def of_unet(name: str, layers: int, attends: list[bool]) -> str:
    """The name of a UNet's tensor. layers: ``layers_per_block``. attends: whether each up block has attentions."""
    place = name
    for here, there in OUTSIDE.items():
        if name.startswith(f"{here}."):
            place = there + name.removeprefix(here)
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        side, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            place = f"input_blocks.{(layers + 1) * (block + 1)}.0.{rest.replace('conv', 'op')}"
        elif kind == "upsamplers":
            place = f"output_blocks.{(layers + 1) * block + layers}.{2 if attends[block] else 1}.{rest}"
        else:
            first = (layers + 1) * block + (1 if side == "down" else 0)
            where = "input_blocks" if side == "down" else "output_blocks"
            place = f"{where}.{first + index}.{int(kind == 'attentions')}.{rest}"
    if "resnets" in name:
        for here, there in RESNET.items():
            place = re.sub(rf"\.{here}\.", f".{there}.", place)
    return place


def of_vae(name: str, blocks: int) -> str:
    """The name of an autoencoder's tensor. blocks: the number of its down blocks."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for here, there in ATTENTION.items():
            name = name.replace(f".{here}.", f".{there}.")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def checkpoint(pipe: object) -> dict[str, Tensor]:
    """The tensors of an InstructPix2Pix pipeline as in its authors' file: its UNet as the averaged one, beside another
    that is not averaged."""
    config = pipe.unet.config
    attends = ["CrossAttn" in kind for kind in config.up_block_types]
    found = {}
    for name, value in pipe.unet.state_dict().items():
        there = f"diffusion_model.{of_unet(name, config.layers_per_block, attends)}"
        found[f"model.{there}"] = value + 1
        found["model_ema." + there.replace(".", "")] = value
    for name, value in pipe.vae.state_dict().items():
        matrix = "attentions" in name and value.ndim == 2
        found["first_stage_model." + of_vae(name, len(pipe.vae.config.down_block_types))] = (
            value[:, :, None, None] if matrix else value
        )
    for name, value in pipe.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return found
