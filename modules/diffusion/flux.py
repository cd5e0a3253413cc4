"""Diffusion ``flux``: FLUX.1 (diffusers' transformer and autoencoder) conditioned on the source image.

The parameter ``source`` selects how the source image enters:

    channel   its packed latent is concatenated to z_t on the channel axis; the new inputs of x_embedder are
              zero-initialised (ReasonBrain, arXiv:2507.01908)
    sequence  its tokens are appended to those of z_t, with 1 as the first coordinate of their ids (FLUX.1 Kontext)

The text stream is [R-_V; R-_T]; with ``prompt: t5`` it is FLUX's own encoding of the sentence, and R-_V and R-_T enter
as a residual (``flux_text.py``). The image stream gets R-_V + R-_T: their length differs from that of the image tokens,
so the source tokens cross-attend to them, and the result is concatenated to the inputs of x_embedder, also with
zero-initialised weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from einops import rearrange
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

from reasonbrain.checkpoint import embedded
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.modules.common.layers import CrossBlock
from reasonbrain.modules.common.precision import PublishedBase, base_dtype, cast, computes, hold_base, train_in_float32
from reasonbrain.modules.common.published import load_tokenizer, stored_dtype
from reasonbrain.modules.diffusion.flow import dynamic_shift, schedule
from reasonbrain.modules.diffusion.flux_text import GrownLinear, PromptEncoders, TextTerm
from reasonbrain.modules.diffusion.latents import decode, encode
from reasonbrain.modules.diffusion.lora import add_lora, added, own_lora, remove_lora
from reasonbrain.modules.diffusion.pieces import load_piece, record, with_autoencoder
from reasonbrain.plugin_folder import save_tensors
from reasonbrain.registry import register

log = logging.getLogger(__name__)

SOURCES = ("channel", "sequence")
PROMPTS = (None, "t5")
TRAINED = ("full", "lora", "frozen")
LORA_TARGETS = (  # every linear layer of a block but those that modulate its norms
    r".*transformer_blocks\.\d+\."
    r"(attn\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_\w+)"
)


def pack(latents: Tensor) -> Tensor:
    """Packs latents [B, C, h, w] into FLUX's 2 x 2 patches [B, h w / 4, 4 C]."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack(tokens: Tensor, height: int) -> Tensor:
    """The inverse of ``pack``; ``height`` is the number of rows of the latents."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, p=2, q=2)


def position_ids(height: int, width: int, index: int, device: torch.device) -> Tensor:
    """Position ids [h w / 4, 3] of packed latents [h, w]: (index, row, column)."""
    rows = torch.arange(height // 2, device=device).view(-1, 1).expand(-1, width // 2)
    columns = torch.arange(width // 2, device=device).view(1, -1).expand(height // 2, -1)
    return torch.stack([torch.full_like(rows, index), rows, columns], dim=-1).flatten(0, 1).float()


def position_sinusoids(ids: Tensor, width: int) -> Tensor:
    """Sinusoidal embeddings [L, width] of the rows and columns in ids [L, 3]."""
    frequencies = torch.exp(torch.arange(width // 4, device=ids.device) * (-math.log(100.0) / (width // 4)))
    angles = (ids[:, 1:, None] * frequencies).flatten(1)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * angles.shape[-1]))


class ImageTerm(nn.Module):
    """The condition for the image stream, computed once per edit: source tokens [B, L, C] -> [B, L, D]."""

    def __init__(self, width: int, channels: int, heads: int) -> None:
        super().__init__()
        self.source_in = nn.Linear(channels, width)
        self.block = CrossBlock(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, source: Tensor, ids: Tensor, condition: Condition) -> Tensor:
        visual, textual = condition.visual, condition.textual
        fits = visual.shape == textual.shape
        context = visual + textual if fits else torch.cat([visual, textual], dim=1)
        x = self.source_in(source)
        return self.norm(self.block(x + position_sinusoids(ids, x.shape[-1]).to(x.dtype), context))


def grow_inputs(linear: nn.Linear, extra: int) -> nn.Linear:
    """Returns a copy of ``linear`` with ``extra`` more inputs, whose weights are zero."""
    grown = nn.Linear(linear.in_features + extra, linear.out_features, device=linear.weight.device)
    grown = grown.to(linear.weight.dtype)
    with torch.no_grad():
        grown.weight.copy_(F.pad(linear.weight, (0, extra)))
        grown.bias.copy_(linear.bias)
    return grown


@register("diffusion", "flux")
class Flux(PublishedBase):
    """FLUX.1 conditioned on the source image. The layers added to the transformer are always trained.

    Args:
        pretrained: a FLUX repository (transformer, vae, scheduler): a hub id or a folder
        architecture: configs of ``transformer``, ``vae`` or ``scheduler``; each model listed is built from its config,
            without pretrained weights
        autoencoder: a folder with a VAE that replaces the one of ``pretrained``
        source: how the source image enters: ``channel`` (concatenated to z_t on the channel axis) or ``sequence`` (its
            tokens are appended to those of z_t, as in FLUX.1 Kontext)
        trained: how the transformer is trained: ``full``, ``lora`` or ``frozen``
        lora_rank: rank of the adapters with ``trained: lora``
        heads: number of attention heads in the condition of the image stream, and of the text; must divide ``width``
        precision: precision of the transformer: ``float32``, or without full training ``bfloat16`` or ``nf4``. With
            full training, published weights are in their own precision until a run begins to train them
        prompt: what the text stream is: ``t5``, FLUX's own encoding of the sentence (of the instruction, if there is
            none), to which R-_V and R-_T add a residual that is zero at first, so that an editor such as Kontext edits
            as published until it is trained; null: R-_V and R-_T in its place (ReasonBrain)
        prompt_tokens: number of T5 tokens of a sentence
    """

    weight_sources = ("pretrained", "autoencoder")
    _group_offload_block_modules = ["transformer"]  # diffusers offloads its blocks one group at a time
    preparing = ("vae",)
    published = ("transformer",)
    without_adapters = {"trained": "frozen"}

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        autoencoder: str | None = None,
        source: str = "channel",
        trained: str = "full",
        lora_rank: int = 16,
        heads: int = 8,
        precision: str = "float32",
        prompt: str | None = None,
        prompt_tokens: int = 512,
    ) -> None:
        super().__init__()
        choices = {"source": (source, SOURCES), "trained": (trained, TRAINED), "prompt": (prompt, PROMPTS)}
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                names = ", ".join(choice or "null" for choice in allowed)
                raise UserError(f"model.diffusion.{key}: '{value}' is not one of {names}")
        if trained == "full" and precision != "float32":
            raise UserError(
                f"model.diffusion.precision: '{precision}' needs a frozen base, but model.diffusion.trained=full "
                f"trains it; choose trained={' or '.join(TRAINED[1:])}, or precision=float32"
            )
        known = dict(architecture or {})
        dtype = base_dtype(precision, "diffusion")
        if trained == "full" and pretrained and "transformer" not in known:
            dtype = stored_dtype(pretrained, "transformer")  # half the memory of each process that builds it
        self.transformer = load_piece(FluxTransformer2DModel, known, "transformer", pretrained, "transformer", dtype)
        if trained != "full":
            hold_base(self.transformer, self.repeated(), precision, "diffusion")
        self.vae = load_piece(AutoencoderKL, known, "vae", autoencoder or pretrained, None if autoencoder else "vae")
        self.scheduler = load_piece(FlowMatchEulerDiscreteScheduler, known, "scheduler", pretrained, "scheduler")
        self.words = None
        if prompt:
            self.words = PromptEncoders(known, pretrained, prompt_tokens, base_dtype(precision, "diffusion"))
        self.register_to_config(architecture=known)

        config = self.transformer.config
        channels = config.in_channels
        joined = channels if source == "channel" else 0
        grow = GrownLinear if prompt else grow_inputs
        self.transformer.x_embedder = grow(self.transformer.x_embedder, joined + width)
        if prompt:
            self.text_term = TextTerm(config.joint_attention_dim, width, heads)
        else:
            self.visual_in = nn.Linear(width, config.joint_attention_dim)
            self.textual_in = nn.Linear(width, config.joint_attention_dim)
        self.image_term = ImageTerm(width, channels, heads)
        self.multiple = 2 * 2 ** (len(self.vae.config.block_out_channels) - 1)

        self.freeze(self.vae)
        if self.words:
            self.freeze(self.words)
        if trained != "full":
            self.transformer.requires_grad_(False)
            if trained == "lora":
                lora = LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=LORA_TARGETS)
                inject_adapter_in_model(lora, self.transformer)
            embedder = self.transformer.x_embedder
            (embedder.added if prompt else embedder).requires_grad_(True)
            train_in_float32(self.transformer)

    @classmethod
    def without_weights(cls, params: dict[str, Any]) -> dict[str, Any]:
        """Completes ``architecture`` with the configs of ``autoencoder`` and ``pretrained``."""
        return with_autoencoder(params)

    @classmethod
    def memory_options(cls, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        adapters = {"adapters": {"trained": "lora"}} if params.get("trained", "full") == "full" else {}
        return adapters | super().memory_options(params)

    @property
    def reads_sentence(self) -> bool:
        return self.config.prompt is not None

    @classmethod
    def prompt_settings(cls, params: dict[str, Any]) -> dict[str, Any]:
        return {k: params.get(k) for k in ("pretrained", "prompt", "prompt_tokens")} if params.get("prompt") else {}

    def prompt_features(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        return self.words(prompts, device) if self.words else {}

    def unread(self, text: str) -> str:
        return self.words.unread(text) if self.words else ""

    def save_assets(self, folder: Path) -> None:
        if self.words:
            self.words.save_tokenizers(folder)

    def load_assets(self, folder: Path) -> None:
        if self.words:
            self.words.load_tokenizers(folder)

    def stand_in_assets(self) -> None:
        if self.words:
            self.words.tokenizers = [load_tokenizer(embedded() / "encoders")] * 2

    @property
    def edit_defaults(self) -> dict[str, Any]:
        return {"steps": 28, "guidance": 2.5}

    def repeated(self) -> list[nn.Module]:
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def enable_cache(self, config: Any) -> None:
        self.transformer.enable_cache(config)

    def save_config(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Also records an autoencoder or a scheduler that was put in place of the configured one. Raises UserError for
        adapters of others, which a checkpoint cannot hold."""
        if names := added(self.transformer):
            raise UserError(f"LoRA '{names[0]}' cannot be saved with the model; unload it first")
        self.register_to_config(architecture=record(self.config.architecture, vae=self.vae, scheduler=self.scheduler))
        super().save_config(save_directory, **kwargs)

    def load_lora_weights(
        self, source: str | Path | dict[str, Tensor], adapter_name: str = "lora", **where: Any
    ) -> None:
        """Adds published adapters of a FLUX transformer: ``lora.add_lora``."""
        add_lora(self.transformer, source, adapter_name, **where)

    def unload_lora_weights(self) -> None:
        """Removes all adapters that ``load_lora_weights`` added."""
        for name in added(self.transformer):
            remove_lora(self.transformer, name)

    def save_lora_weights(self, save_directory: str | Path) -> None:
        """Writes the adapters trained here in diffusers' key names, which ComfyUI reads, too. They are a part of what
        was trained: the conditioning path and the inputs added to ``x_embedder`` do not travel with them. Raises
        UserError if there are none."""
        tensors = own_lora(self.transformer)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, Path(save_directory) / LORA_WEIGHT_NAME_SAFE, {"format": "pt"})
        log.warning("the LoRA does not hold the conditioning path and the inputs added to x_embedder")

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> latents [B, C, h, w]: ``latents.encode``."""
        return encode(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, C, h, w] -> images [B, 3, H, W], clamped to 0..1; the inverse of ``encode``."""
        return decode(self.vae, latents)

    def mu(self, tokens: int) -> float:
        """The resolution-dependent shift of the noise schedule."""
        return dynamic_shift(self.scheduler, tokens)

    def conditioning(self, condition: Condition, source: Tensor) -> dict[str, Tensor]:
        """Computes all inputs that do not depend on the noise level, once per edit. source: latents [B, C, h, w]."""
        height, width = source.shape[-2:]
        dtype = self.image_term.source_in.weight.dtype
        tokens = cast(pack(source), dtype)
        condition = condition._replace(visual=cast(condition.visual, dtype), textual=cast(condition.textual, dtype))
        ids = position_ids(height, width, 0, source.device)
        if self.words:
            words = condition.words or self.prompt_features(condition.prompts, source.device)
            text, pooled = cast(words["text"], dtype), words["pooled"]
            text = text + self.text_term(text, torch.cat([condition.visual, condition.textual], dim=1))
        else:
            text = torch.cat([self.visual_in(condition.visual), self.textual_in(condition.textual)], dim=1)
            pooled = condition.pooled
        if pooled.shape[-1] == 0:  # null encoders have no pooled embedding
            pooled = pooled.new_zeros(len(pooled), self.transformer.config.pooled_projection_dim)
        return {
            "source": tokens,
            "term": self.image_term(tokens, ids, condition),
            "text": text,
            "pooled": pooled,
            "ids": ids,
            "source_ids": position_ids(height, width, 1, source.device),
        }

    @computes
    def velocity(self, z: Tensor, sigma: Tensor, known: dict[str, Tensor], guidance: float) -> Tensor:
        """Predicts the velocity (noise - data) [B, L, C] for packed z [B, L, C] at noise levels sigma [B] in 0..1."""
        ids = known["ids"]
        if self.config.source == "channel":
            hidden = torch.cat([z, known["source"], known["term"]], dim=-1)
        else:
            width = known["term"].shape[-1]
            hidden = torch.cat([torch.cat([z, known["term"]], -1), F.pad(known["source"], (0, width))], dim=1)
            ids = torch.cat([ids, known["source_ids"]])
        hidden = cast(hidden, known["text"].dtype)
        embeds = self.transformer.config.guidance_embeds
        out = self.transformer(
            hidden_states=hidden,
            encoder_hidden_states=known["text"],
            pooled_projections=known["pooled"].to(hidden.dtype),
            timestep=sigma.to(hidden.dtype),
            guidance=hidden.new_full((len(z),), guidance) if embeds else None,
            img_ids=ids,
            txt_ids=ids.new_zeros(known["text"].shape[1], 3),
            return_dict=False,
        )[0]
        return out[:, : z.shape[1]].to(z.dtype)

    def errors(
        self, condition: Condition, source: Tensor, target: Tensor, seeds: Sequence[int], draws: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Flow-matching regression on (noise - target): squared errors [B * draws] (mean: L_DM) and noise levels
        [B * draws] in 0..1.

        Noise levels are logit-normal with the resolution-dependent shift. A row's noise and noise levels depend on its
        seed alone, so the loss does not depend on the number of processes. The guidance value is 1.

        Args:
            condition: the condition of B rows
            source: latents [B, C, h, w] of the source images, from ``encode``
            target: latents [B, C, h, w] of the target images
            seeds: a seed per row
            draws: number of noise draws per row
        """
        known = self.conditioning(condition, source)
        repeated = {k: known[k].repeat_interleave(draws, 0) for k in ("source", "term", "text", "pooled")}
        data = pack(target).repeat_interleave(draws, 0)
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn += [torch.randn(data[0].numel() + 1, generator=generator) for _ in range(draws)]
        noise, level = torch.stack(drawn).to(data).split([data[0].numel(), 1], dim=1)
        noise, u = noise.view_as(data), level[:, 0].sigmoid()
        shift = math.exp(self.mu(data.shape[1]))
        sigma = shift * u / (1 + (shift - 1) * u)
        z = (1 - sigma[:, None, None]) * data + sigma[:, None, None] * noise
        predicted = self.velocity(z, sigma, known | repeated, guidance=1.0)
        return (predicted.float() - (noise - data).float()).square().mean((1, 2)), sigma

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        source: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float = 2.5,
        on_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        before_step: Callable[[int, Tensor], float | None] | None = None,
    ) -> Tensor:
        """Samples edited latents [B, C, h, w].

        Args:
            condition: the condition of B rows
            source: latents [B, C, h, w] of the source images, from ``encode``
            noise: initial noise [B, C, h, w]
            steps: number of denoising steps
            guidance: FLUX.1-dev's distilled guidance value
            on_step: called with (index, timestep, packed latents) after every step, returns the latents to use
            before_step: called with (index, all timesteps) before every step, returns the guidance value of the step,
                or None to leave it out
        """
        z = pack(noise)
        known = self.conditioning(condition, source)
        scheduler = schedule(self.scheduler, steps, z.shape[1], z.device)
        try:
            for i, t in enumerate(scheduler.timesteps):
                scale = guidance if before_step is None else before_step(i, scheduler.timesteps)
                if scale is None:
                    continue
                sigma = (t / scheduler.config.num_train_timesteps).expand(len(z))
                with self.transformer.cache_context("cond"):
                    velocity = self.velocity(z, sigma, known, scale)
                z = scheduler.step(velocity, t, z, return_dict=False)[0]
                if on_step is not None:
                    z = on_step(i, t, z)
        finally:  # what diffusers' caches keep fits this call only
            self.transformer._reset_stateful_cache()
        return unpack(z, noise.shape[-2])
