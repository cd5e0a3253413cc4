"""The steps of an edit, which the pipeline and the batch scheduler share.

pictures     -> Core.sources    -> Sources              once a picture
instructions -> Core.condition  -> Inputs, Condition    once an instruction; Inputs.sentences: what the MLLM said
noise        -> Core.draw       -> edited pictures      once a variant
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from reasonbrain.config.schema import EditConfig
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition, Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.utils.images import pad_to_multiple, to_tensor

OnStep = Callable[[int, Tensor, Tensor], Tensor]  # step, timestep, latents -> latents


class Sources(NamedTuple):
    """The data of B pictures of one size that edits need, independent of the instructions.

    original: [B, 3, H, W] in 0..1. small: [B, 3, h, w], the originals at the size that edits are computed at. regions:
    [B, h, w], label maps. latents: [B, C, h', w']; plain: [B, 3, h, w], the decoded latents. ready: image features by
    slot (``ReasonBrain.image_features``). Without a diffusion model latents and plain are small, and so is plain where
    edits do not ``preserve``."""

    original: Tensor
    small: Tensor
    regions: Tensor
    latents: Tensor
    plain: Tensor
    ready: dict[str, Tensor]


def change_mask(edited: Tensor, source: Tensor, low: float = 0.03, high: float = 0.08) -> Tensor:
    """A soft mask [B, 1, H, W] in 0..1 of what an edit changed, from the decoded edit and the decoded source, both
    [B, 3, H, W] in 0..1.

    Both contain the reconstruction error of the autoencoder, which cancels out. Differences below ``low`` map to 0,
    those above ``high`` to 1. The mask is dilated by one pixel and fades out over the next."""
    difference = (edited - source).abs().amax(1, keepdim=True)
    reached = F.max_pool2d(((difference - low) / (high - low)).clamp(0, 1), 3, 1, 1)
    return F.avg_pool2d(F.pad(reached, (1, 1, 1, 1), mode="replicate"), 3, 1)


@dataclass(frozen=True)
class Core:
    """Edits with a model. device: where pictures go. progress: called with ``total=steps``, returns a context manager
    whose value has ``update()`` (``DiffusionPipeline.progress_bar``)."""

    model: ReasonBrain
    device: torch.device
    progress: Callable[..., Any]

    @torch.no_grad()
    def sources(self, pictures: Sequence[Image.Image], edit: EditConfig) -> Sources:
        """Prepares RGB pictures of one size."""
        original = to_tensor(list(pictures)).to(self.device)
        height, width = original.shape[-2:]
        scale = min(1.0, edit.size / max(height, width)) if edit.size else 1.0
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = original if scale == 1.0 else F.interpolate(original, size, mode="bicubic", antialias=True).clamp(0, 1)
        regions, ready = self.model.segment(small), self.model.image_features(small)
        diffusion = self.model.slot("diffusion")
        if diffusion is None:
            return Sources(original, small, regions, small, small, ready)
        latents = diffusion.encode(pad_to_multiple(small, diffusion.multiple))
        plain = diffusion.decode(latents)[..., : size[0], : size[1]] if edit.preserve else small
        return Sources(original, small, regions, latents, plain, ready)

    @torch.no_grad()
    def condition(
        self,
        sources: Sources,
        instructions: Sequence[str],
        objects: Sequence[Sequence[str] | None] | None = None,
        reasoning: bool = False,
    ) -> tuple[Inputs, Condition]:
        """Runs the conditioning path with one instruction per picture.

        objects: key objects per picture; where None, they are extracted from the instruction. reasoning: also generate
        the MLLM's ``sentences`` in the returned inputs (None without an MLLM)."""
        inputs = self.model.make_inputs(sources.small, instructions, objects, sources.regions, sources.ready)
        if reasoning:
            inputs = self.model.reason(inputs)
        condition, _ = self.model.condition(inputs)
        return inputs, condition

    @torch.no_grad()
    def draw(
        self, sources: Sources, condition: Condition, noise: Tensor, edit: EditConfig, on_step: OnStep | None = None
    ) -> Tensor:
        """The edited pictures [B, 3, H, W] in 0..1, from noise of the latents' shape. ``on_step`` may replace the
        latents after each denoising step."""
        original, diffusion = sources.original, self.model.slot("diffusion")
        if diffusion is None:
            return original
        with self.progress(total=edit.steps) as bar:

            def after_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                bar.update()
                return latents if on_step is None else on_step(step, timestep, latents)

            latents = diffusion.sample(condition, sources.latents, noise, edit.steps, edit.guidance, after_step)
        h, w = size = sources.small.shape[-2:]
        edited = diffusion.decode(latents)[..., :h, :w]
        if not edited.isfinite().all():
            dtype = str(latents.dtype).removeprefix("torch.")
            raise UserError(f"the edit is NaN or infinite: the model's weights diverged, or they overflow in {dtype}")
        mask = change_mask(edited, sources.plain) if edit.preserve else torch.ones_like(edited[:, :1])
        if size != original.shape[-2:]:
            edited, mask = (F.interpolate(x, original.shape[-2:], mode="bicubic").clamp(0, 1) for x in (edited, mask))
        return original + mask * (edited - original)
