"""Diffusion ``sd``: a UNet of Stable Diffusion (1.5 or XL) that reads the source image on the channel axis
(InstructPix2Pix, arXiv:2211.09800).

    UNet input        [z_t, source latent]; the source latent is not scaled. A UNet without inputs for the source gets
                      them with zero weights, so that it starts as it was
    text sequence     the condition's sequences, unchanged: ``model.width`` is the width that the UNet attends to
    spatial map       ``Condition.map``, scaled to the latents and added to the first hidden map

Training leaves out words and source at random, so that edits have two scales of classifier-free guidance:

    e = e(0, 0) + image_guidance (e(I, 0) - e(0, 0)) + guidance (e(I, H) - e(I, 0))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.modules.common.precision import cast
from reasonbrain.modules.common.published import architectures
from reasonbrain.modules.diffusion.latents import decode, encode, unscaled
from reasonbrain.modules.diffusion.pieces import load_piece, record, with_autoencoder
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register

PREDICTIONS = ("epsilon", "v_prediction")


class ConvIn(nn.Conv2d):
    """The first layer of a UNet. Channels of its input beyond ``in_channels`` are added to its output."""

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input[:, : self.in_channels])
        return out + input[:, self.in_channels :] if input.shape[1] > self.in_channels else out


def grow_conv(conv: nn.Conv2d, channels: int) -> ConvIn:
    """A copy of ``conv`` with ``channels`` inputs, of which the new ones have zero weights. It keeps its bias."""
    grown = ConvIn(channels, conv.out_channels, conv.kernel_size, padding=conv.padding, device=conv.weight.device)  # type: ignore[arg-type]
    grown = grown.to(conv.weight.dtype)
    with torch.no_grad():
        grown.weight.copy_(F.pad(conv.weight, (0, 0, 0, 0, 0, channels - conv.in_channels)))
        grown.bias.copy_(conv.bias)
    return grown


class Known(NamedTuple):
    """What does not depend on the noise level. words, null: [B, L, D], the text sequence and that of no instruction.
    source: [B, C, h, w], unscaled. map: [B, M, h, w] or None. pooled: [B, P]."""

    words: Tensor
    null: Tensor
    source: Tensor
    map: Tensor | None
    pooled: Tensor

    def rows(self, draws: int) -> Known:
        """Each row ``draws`` times."""
        return Known(*(None if part is None else part.repeat_interleave(draws, 0) for part in self))  # type: ignore[arg-type]

    def without(self, words: Tensor, source: Tensor) -> Known:
        """Without the words and the source of the rows where these bool tensors [B] are true."""
        text = torch.where(words[:, None, None], self.null, self.words)
        picture = self.source * ~source[:, None, None, None]
        return self._replace(words=text, source=picture, pooled=self.pooled * ~words[:, None])


@register("diffusion", "sd")
class StableDiffusion(Plugin):
    """A UNet of Stable Diffusion 1.5 or XL that reads the source image on the channel axis, as in InstructPix2Pix.

    Args:
        pretrained: a repository of Stable Diffusion or InstructPix2Pix (unet, vae, scheduler): a hub id or a folder
        architecture: configs of ``unet``, ``vae`` or ``scheduler``; each model listed is built from its config, without
            pretrained weights
        autoencoder: a folder with a VAE that replaces the one of ``pretrained``
        dropout: in training, the share of rows without words, of rows without the source, and of rows without both
    """

    weight_sources = ("pretrained", "autoencoder")
    preparing = ("vae",)
    published = ("unet",)

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        autoencoder: str | None = None,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        if not 0 <= dropout <= 1 / 3:
            raise UserError(f"model.diffusion.dropout: {dropout} is not from 0 to 1/3")
        known = dict(architecture or {})
        self.unet = load_piece(UNet2DConditionModel, known, "unet", pretrained, "unet")
        self.vae = load_piece(AutoencoderKL, known, "vae", autoencoder or pretrained, None if autoencoder else "vae")
        self.scheduler = load_piece(EulerAncestralDiscreteScheduler, known, "scheduler", pretrained, "scheduler")
        self.register_to_config(architecture=known)
        if width != self.unet.config.cross_attention_dim:
            raise UserError(
                f"model.width: {width} is not {self.unet.config.cross_attention_dim}, the width of what the UNet of "
                f"model.diffusion attends to"
            )
        channels = 2 * self.vae.config.latent_channels
        if self.unet.config.in_channels not in (channels // 2, channels):
            raise UserError(
                f"model.diffusion: the UNet has {self.unet.config.in_channels} input channels, but its latents have "
                f"{channels // 2}, or {channels} with those of the source"
            )
        self.unet.conv_in = grow_conv(self.unet.conv_in, channels)
        self.multiple = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.freeze(self.vae)

    @classmethod
    def without_weights(cls, params: dict[str, Any]) -> dict[str, Any]:
        """Completes ``architecture`` with the configs of ``autoencoder`` and ``pretrained``."""
        return with_autoencoder(params)

    @classmethod
    def is_whole(cls, params: dict[str, Any]) -> bool:
        """Whether the published UNet has inputs for the source."""
        try:
            known = architectures(params["pretrained"])
            return known["unet"]["in_channels"] == 2 * known["vae"]["latent_channels"]
        except (UserError, KeyError):
            return False

    @property
    def edit_defaults(self) -> dict[str, Any]:
        return {"steps": 100, "guidance": 7.5, "image_guidance": 1.5}

    def repeated(self) -> list[nn.Module]:
        return [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]

    def save_config(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Also records an autoencoder or a scheduler that was put in place of the configured one."""
        self.register_to_config(architecture=record(self.config.architecture, vae=self.vae, scheduler=self.scheduler))
        super().save_config(save_directory, **kwargs)

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> latents [B, C, h, w]: ``latents.encode``."""
        return encode(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, C, h, w] -> images [B, 3, H, W], clamped to 0..1; the inverse of ``encode``."""
        return decode(self.vae, latents)

    def conditioning(self, condition: Condition, source: Tensor) -> Known:
        """Computes all inputs that do not depend on the noise level, once per edit. source: latents [B, C, h, w].

        Raises UserError if the sequences do not fit the null condition, or the pooled embedding does not fit the
        UNet."""
        words = torch.cat([condition.visual, condition.textual], dim=1)
        null = torch.zeros_like(words) if condition.null is None else condition.null
        if null.shape != words.shape:
            raise UserError(
                f"model.diffusion: the condition has {words.shape[1]} tokens, but the null condition has "
                f"{null.shape[1]}; both must have the same number"
            )
        extra = condition.map
        if extra is not None:
            extra = F.interpolate(extra, source.shape[-2:], mode="bilinear")
        return Known(words, null, unscaled(self.vae, source), extra, self._pooled(condition.pooled))

    def _pooled(self, pooled: Tensor) -> Tensor:
        """The pooled embedding that SDXL reads; zeros without encoders."""
        config = self.unet.config
        if config.addition_embed_type != "text_time":
            return pooled
        size = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        if pooled.shape[-1] not in (0, size):
            raise UserError(
                f"model.diffusion: the UNet reads a pooled text embedding of width {size}, but model.encoders gives "
                f"{pooled.shape[-1]}"
            )
        return pooled if pooled.shape[-1] else pooled.new_zeros(len(pooled), size)

    def predict(self, z: Tensor, t: Tensor, known: Known) -> Tensor:
        """The UNet's prediction [B, C, h, w] for z [B, C, h, w], scaled as its scheduler says, at timesteps t [B]."""
        dtype = self.unet.dtype
        extra = [] if known.map is None else [known.map]
        added = None
        if self.unet.config.addition_embed_type == "text_time":
            size = [side * self.multiple for side in z.shape[-2:]]
            ids = torch.tensor([[*size, 0, 0, *size]], device=z.device).expand(len(z), -1)
            added = {"text_embeds": cast(known.pooled, dtype), "time_ids": cast(ids, dtype)}
        inputs = cast(torch.cat([z, known.source.to(z), *extra], dim=1), dtype)
        return self.unet(inputs, t, cast(known.words, dtype), added_cond_kwargs=added).sample

    def errors(
        self, condition: Condition, source: Tensor, target: Tensor, seeds: Sequence[int], draws: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of the predicted noise, or of v, per draw, and the noise level in 0..1: [B * draws] each.

        Timesteps are uniform. Words and source are left out in training mode only.

        Args:
            condition: the condition of B rows
            source: latents [B, C, h, w] of the source images, from ``encode``
            target: latents [B, C, h, w] of the target images
            seeds: a seed per row, of its noise, timesteps and what is left out
            draws: number of noise draws per row
        """
        scheduler, share = self.scheduler, self.config.dropout if self.training else 0.0
        alphas = signal_shares(scheduler).to(target.device)
        noise, drawn = [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            noise += [torch.randn(target.shape[1:], generator=generator) for _ in range(draws)]
            drawn += [torch.rand(2, generator=generator) for _ in range(draws)]
        e, (u, level) = torch.stack(noise).to(target), torch.stack(drawn).to(target.device).T
        t = (level * len(alphas)).long()
        known = self.conditioning(condition, source).rows(draws)
        known = known.without(words=u < 2 * share, source=(share <= u) & (u < 3 * share))
        data = target.repeat_interleave(draws, 0)
        a = alphas[t][:, None, None, None].to(data)
        predicted = self.predict(a.sqrt() * data + (1 - a).sqrt() * e, t, known)
        wanted = e if scheduler.config.prediction_type == "epsilon" else a.sqrt() * e - (1 - a).sqrt() * data
        return (predicted.float() - wanted.float()).square().mean((1, 2, 3)), (t + 1) / len(alphas)

    def guided(self, z: Tensor, t: Tensor, known: Known, words: float, picture: float) -> Tensor:
        """The prediction with both scales of guidance. Passes that count for nothing are left out."""
        all_rows = torch.ones(len(z), dtype=torch.bool, device=z.device)
        passes = [
            (words, known),
            (picture - words, known.without(words=all_rows, source=~all_rows)),
            (1 - picture, known.without(words=all_rows, source=all_rows)),
        ]
        factors, parts = zip(*[(factor, part) for factor, part in passes if factor], strict=True)
        joined = Known(*(None if same[0] is None else torch.cat(same) for same in zip(*parts, strict=True)))  # type: ignore[arg-type]
        found = self.predict(z.repeat(len(parts), 1, 1, 1), t.expand(len(parts) * len(z)), joined).chunk(len(parts))
        return sum(factor * part.float() for factor, part in zip(factors, found, strict=True)).to(z.dtype)  # type: ignore[union-attr]

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        source: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float = 7.5,
        image_guidance: float = 1.5,
        on_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        before_step: Callable[[int, Tensor], float | None] | None = None,
    ) -> Tensor:
        """Samples edited latents [B, C, h, w].

        Args:
            condition: the condition of B rows
            source: latents [B, C, h, w] of the source images, from ``encode``
            noise: initial noise [B, C, h, w]; also seeds the noise that the scheduler adds in its steps
            steps: number of denoising steps
            guidance: scale of the words
            image_guidance: scale of the source
            on_step: called with (index, timestep, latents) after every step, returns the latents to use
            before_step: called with (index, all timesteps) before every step, returns ``guidance`` of the step, or None
                to leave it out
        """
        known = self.conditioning(condition, source)
        signal_shares(self.scheduler)
        scheduler = deepcopy(self.scheduler)  # it counts steps
        scheduler.set_timesteps(steps, device=noise.device)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        more = {"generator": step_generators(noise)} if draws else {}
        z = noise * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps):
            scale = guidance if before_step is None else before_step(i, scheduler.timesteps)
            if scale is None:
                continue
            predicted = self.guided(scheduler.scale_model_input(z, t), t, known, scale, image_guidance)
            z = scheduler.step(predicted, t, z, **more, return_dict=False)[0]
            if on_step is not None:
                z = on_step(i, t, z)
        return z


def signal_shares(scheduler: Any) -> Tensor:
    """The share of the signal's variance at each timestep, alpha-bar [T]. Raises UserError for a scheduler that is not
    for the prediction of noise or v."""
    name, kind = type(scheduler).__name__, scheduler.config.get("prediction_type")
    if not hasattr(scheduler, "alphas_cumprod") or kind not in PREDICTIONS or name.startswith("FlowMatch"):
        raise UserError(
            f"scheduler '{name}' predicts {kind}; choose one with prediction_type {' or '.join(PREDICTIONS)}"
        )
    return scheduler.alphas_cumprod


def step_generators(noise: Tensor) -> list[torch.Generator]:
    """A generator per row for the noise of ancestral schedulers, seeded by the row's initial noise, so that an edit
    depends on its own seed alone."""
    seeds = noise.flatten(1)[:, :2].float().cpu().contiguous().view(torch.int64)[:, 0].tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
