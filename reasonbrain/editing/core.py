"""The steps of an edit, which the pipeline and the batch scheduler share.

pictures     -> Core.sources    -> Sources              once per picture
instructions -> Core.condition  -> Inputs, Condition    once per instruction; Inputs.sentences: the MLLM's sentences
generators   -> Core.noise      -> Noise                once per variant
noise        -> Core.draw       -> latents              once per variant
             -> Core.decode     -> Drawn
             -> Core.finish     -> edited pictures      one at a time, at the size of the source
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from reasonbrain.config.schema import EditConfig
from reasonbrain.data.crop import edit_size
from reasonbrain.errors import UserError, out_of_memory
from reasonbrain.interfaces import Condition, Inputs, Noise
from reasonbrain.model import ReasonBrain
from reasonbrain.utils.images import to_tensor

OnStep = Callable[[int, Tensor, Tensor], Tensor]  # step, timestep, latents -> latents
BeforeStep = Callable[[int, Tensor], float | None]  # step, all timesteps -> guidance, or None to leave the step out


class Sources(NamedTuple):
    """What edits need of B pictures, independent of the instructions. All B are edited at one size (h, w).

    small: [B, 3, h, w] in 0..1, the pictures scaled to that size. regions: [B, h, w], label maps. latents:
    [B, C, h', w']. plain: [B, 3, h, w], the decoded latents. ready: image features by slot
    (``ReasonBrain.image_features``). Without a diffusion model, latents and plain equal small. Without
    ``edit.preserve``, plain equals small."""

    small: Tensor
    regions: Tensor
    latents: Tensor
    plain: Tensor
    ready: dict[str, Tensor]


class Drawn(NamedTuple):
    """source: [B, 3, h, w] in 0..1, ``Sources.small``. edited: the same shape. mask: [B, 1, h, w], the share of each
    pixel that the edit replaces."""

    source: Tensor
    edited: Tensor
    mask: Tensor


Parts = TypeVar("Parts", Condition, Sources)


def take_rows(parts: Parts, rows: Sequence[int]) -> Parts:
    """These rows of named tuples of tensors and lists, as copies: a view would keep all rows in memory."""
    return _map(lambda part: part[list(rows)] if isinstance(part, Tensor) else [part[r] for r in rows if part], parts)


def join_rows(batches: Sequence[Parts]) -> Parts:
    """Concatenates named tuples of tensors and lists."""

    def join(*same: Any) -> Any:
        return torch.cat(same) if isinstance(same[0], Tensor) else [one for part in same for one in part]

    return _map(join, *batches)


def generators_of(
    given: torch.Generator | Sequence[torch.Generator] | None, rows: int, copies: int
) -> list[torch.Generator | None]:
    """A generator per row. Of one for all, every picture gets the same ``copies``."""
    if not isinstance(given, torch.Generator):
        return list(given or [None] * rows)
    if copies == 1:
        return [*(given.clone_state() for _ in range(rows - 1)), given]
    seeds = torch.randint(2**63 - 1, (copies,), generator=given).tolist() * (rows // copies)
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _map(work: Callable[..., Any], *parts: Parts) -> Parts:
    """Applies ``work`` field by field, and to dicts in them by name. None and empty lists stay."""

    def of_field(*values: Any) -> Any:
        if isinstance(values[0], dict):
            return {name: work(*(value[name] for value in values)) for name in values[0]}
        return None if values[0] is None else work(*values)

    return type(parts[0])(*(of_field(*values) for values in zip(*parts, strict=True)))


Method = TypeVar("Method", bound=Callable[..., Any])


def fits_memory(method: Method) -> Method:
    """Decorates a step so that it raises UserError when memory runs out."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
        raise UserError("the edit does not fit into memory; use a smaller image, edit.size or batch size")

    return call  # type: ignore[return-value]


def change_mask(edited: Tensor, source: Tensor, edit: EditConfig) -> Tensor:
    """A soft mask [B, 1, H, W] in 0..1 of what an edit changed.

    edited, source: the decoded edit and the decoded source, [B, 3, H, W] in 0..1. Both contain the reconstruction error
    of the autoencoder, which cancels out. Mean colours of square cells, ``preserve_cells`` along the shorter side, are
    compared, so that a texture drawn anew is no change, and the same picture has the same mask at every size.
    Differences below ``preserve_low`` map to 0, those above ``preserve_high`` to 1. The mask is dilated by one cell and
    fades out over the next."""
    size = edited.shape[-2:]
    side = max(1, min(size) // edit.preserve_cells)
    means = F.avg_pool2d(edited - source, side, ceil_mode=True, count_include_pad=False)
    difference = means.abs().amax(1, keepdim=True)
    low, high = edit.preserve_low, edit.preserve_high
    dilated = F.max_pool2d(((difference - low) / (high - low)).clamp(0, 1), 3, 1, 1)
    faded = F.avg_pool2d(F.pad(dilated, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return F.interpolate(faded, scale_factor=side, mode="bilinear")[..., : size[0], : size[1]]


@dataclass(frozen=True)
class Core:
    """The steps of an edit with one model. device: where tensors of pictures are placed. progress: called with
    ``total=steps``; returns a context manager whose value has ``update()`` and ``total``
    (``DiffusionPipeline.progress_bar``)."""

    model: ReasonBrain
    device: torch.device
    progress: Callable[..., Any]

    def size(self, width: int, height: int, edit: EditConfig) -> tuple[int, int]:
        """The (height, width) at which the edit of a picture is computed (``edit_size``), or given to a model that
        edits pixels: the picture's own, at most ``edit.size`` squared pixels. Raises UserError for a picture with more
        than ``edit.max_pixels``."""
        if width * height > edit.max_pixels:
            raise UserError(
                f"the image has {width} x {height} pixels, more than edit.max_pixels={edit.max_pixels}; "
                f"scale it down, or raise that limit if memory allows"
            )
        diffusion = self.model.slot("diffusion")
        if diffusion is not None and diffusion.edits_pixels:  # it chooses the size at which it draws
            scale = min(1.0, edit.size / math.sqrt(width * height)) if edit.size else 1.0
            return max(1, round(height * scale)), max(1, round(width * scale))
        columns, rows = edit_size((width, height), edit.size, diffusion.multiple if diffusion else 1)
        return rows, columns

    @fits_memory
    @torch.no_grad()
    def sources(self, pictures: Sequence[Image.Image], edit: EditConfig) -> Sources:
        """Prepares RGB pictures. ``size`` must be the same for all of them."""
        size = self.size(*pictures[0].size, edit)
        small = torch.cat([self._scale(picture, size) for picture in pictures])
        regions, ready = self.model.segment(small), self.model.image_features(small)
        diffusion = self.model.slot("diffusion")
        if diffusion is None:
            return Sources(small, regions, small, small, ready)
        latents = diffusion.encode(small)
        plain = diffusion.decode(latents) if edit.preserve else small
        return Sources(small, regions, latents, plain, ready)

    def _scale(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        original = to_tensor([picture]).to(self.device)
        return original if original.shape[-2:] == size else self._resize(original, size)

    @staticmethod
    def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp_(0, 1)

    @staticmethod
    def unfamiliar(sources: Sources, edit: EditConfig) -> list[bool]:
        """Of each picture, whether it is unlike those in training, by ``edit.familiar``. Needs ``edit.preserve``."""
        error = (sources.plain - sources.small).abs().mean((1, 2, 3))
        return (error > (1 if edit.familiar is None else edit.familiar)).tolist()

    def unread(self, instruction: str, sentence: str | None = None) -> str:
        """The end of the instruction that a text encoder truncates, or of the sentence if it reads that; empty if it
        reads all. The MLLM always reads all of the instruction."""
        for part in (self.model.slot("diffusion"), self.model.slot("encoders")):
            text = sentence if sentence and part is not None and part.reads_sentence else instruction
            if part is not None and (cut := part.unread(text)):
                return cut
        return ""

    @fits_memory
    @torch.no_grad()
    def condition(
        self,
        sources: Sources,
        instructions: Sequence[str],
        objects: Sequence[Sequence[str] | None] | None = None,
        reasoning: bool = False,
        sentences: list[str] | None = None,
    ) -> tuple[Inputs, Condition]:
        """Runs the conditioning path with one instruction per picture.

        objects: key objects per picture; where None, they are extracted from the instruction. reasoning: also generates
        the MLLM's ``sentences`` in the returned inputs (None without an MLLM), even if no slot reads them. sentences:
        used in place of the MLLM's."""
        small, regions, ready = sources.small, sources.regions, sources.ready
        inputs = self.model.make_inputs(small, instructions, objects, regions, ready, sentences)
        if reasoning or self.model.reads_sentence:
            inputs = self.model.reason(inputs)
        condition, _ = self.model.condition(inputs)
        return inputs, condition

    def noise(
        self, sources: Sources, generator: torch.Generator | Sequence[torch.Generator] | None, copies: int = 1
    ) -> Noise:
        """What ``draw`` starts from: noise of the latents' shape, or generators if the diffusion model draws its own.

        generator: one per row; or one for all, which gives each picture the same noise; or None, for the global one.
        copies: the rows of each picture, which follow one another and get different noise."""
        latents, diffusion = sources.latents, self.model.slot("diffusion")
        one = isinstance(generator, torch.Generator)
        if diffusion is None or not diffusion.edits_pixels:
            shape = (copies, *latents.shape[1:]) if one else tuple(latents.shape)
            noise = randn_tensor(shape, generator, latents.device, latents.dtype)  # type: ignore[arg-type]
            return noise.repeat(len(latents) // copies, 1, 1, 1) if one else noise
        return generators_of(generator, len(latents), copies)

    @fits_memory
    @torch.no_grad()
    def draw(
        self,
        sources: Sources,
        condition: Condition,
        noise: Noise,
        edit: EditConfig,
        on_step: OnStep | None = None,
        before_step: BeforeStep | None = None,
    ) -> Tensor:
        """Edits the sources. Returns latents; without a diffusion model, those of the sources.

        noise: from ``noise``. edit: from ``ReasonBrain.edit_settings``. ``on_step`` may replace the latents after each
        denoising step. ``before_step`` decides each step's guidance; None: ``edit.guidance``. Raises UserError if the
        result is NaN or infinite."""
        diffusion = self.model.slot("diffusion")
        if diffusion is None:
            return sources.latents
        scales = self.model.scales(edit)
        calls = len(sources.small) if diffusion.draws_rows_alone else 1
        with self.progress(total=edit.steps * calls) as bar:  # type: ignore[operator]

            def after_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                bar.update()
                return latents if on_step is None else on_step(step, timestep, latents)

            def guidance(step: int, timesteps: Tensor) -> float | None:
                bar.total = len(timesteps) * calls  # some schedulers have more than ``edit.steps``
                return scales.get("guidance", 0.0) if before_step is None else before_step(step, timesteps)

            hooks = {"on_step": after_step, "before_step": guidance}
            latents = diffusion.sample(condition, sources.latents, noise, edit.steps, **hooks, **scales)
        return _finite(latents)

    @fits_memory
    @torch.no_grad()
    def decode(self, sources: Sources, latents: Tensor, edit: EditConfig) -> Drawn:
        """The edit at the size of the sources. Raises UserError if it is NaN or infinite."""
        small, diffusion = sources.small, self.model.slot("diffusion")
        if diffusion is None:
            return Drawn(small, small, torch.zeros_like(small[:, :1]))
        edited = _finite(diffusion.decode(latents))
        mask = change_mask(edited, sources.plain, edit) if edit.preserve else torch.ones_like(edited[:, :1])
        return Drawn(small, edited, mask)

    @fits_memory
    @torch.no_grad()
    def finish(self, picture: Image.Image, drawn: Drawn, row: int) -> Tensor:
        """The edited picture [1, 3, H, W] in 0..1 of one row of ``drawn``, at the size of ``picture``.

        Takes one picture at a time and converts it to a tensor only here, because a picture may have a hundred times
        the pixels of its edit."""
        original, edited, mask = (part[row : row + 1] for part in drawn)
        if original.shape[-2:] != (size := picture.size[::-1]):
            original = to_tensor([picture]).to(self.device)
            edited, mask = (self._resize(part, size) for part in (edited, mask))
        return (edited - original).mul_(mask).add_(original)


def _finite(edited: Tensor) -> Tensor:
    if not edited.isfinite().all():
        dtype = str(edited.dtype).removeprefix("torch.")
        raise UserError(f"the edit is NaN or infinite: the model's weights diverged, or they overflow in {dtype}")
    return edited
