"""ReasonBrainPipeline: a picture and a hypothetical instruction in, the edited picture out.

pipe = ReasonBrainPipeline.from_pretrained("tiny")
pipe(image, "What would happen if someone blew on this candle?").images[0].save("out.png")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from reasonbrain.attention import set_attention
from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.config.loading import make_config
from reasonbrain.config.schema import Config, EditConfig
from reasonbrain.editing.batch.rows import parse_all
from reasonbrain.editing.batch.scheduler import Result, edit_rows
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.utils.images import load_image, pad_to_multiple, to_pil, to_tensor

Picture = str | Path | Image.Image | np.ndarray


@dataclass
class ReasonBrainOutput(BaseOutput):
    """``images``: PIL, or numpy [H, W, 3] / a tensor [3, H, W] in 0..1 by ``output_type``. The rest, a row a picture:
    the objects looked for, the reasoning sentence if asked for, the label map of the regions [h, w] (-1: none), and
    the share of attention on each patch [rows, columns] (None without a CME)."""

    images: list[Any]
    objects: list[list[str]]
    reasoning: list[str] | None
    regions: list[np.ndarray]
    focus: list[np.ndarray | None]


class Sources(NamedTuple):
    """What edits need of B pictures of one size, whatever the instructions: ``original`` [B, 3, H, W] in 0..1,
    ``small`` [B, 3, h, w], at the size that is computed at, its ``regions`` [B, h, w], its ``latents`` [B, C, h', w'],
    these decoded again, ``plain`` [B, 3, h, w], and ``ready``, its image features by slot. What is not needed is
    ``small``: without a diffusion model latents and plain, and ``plain`` where edits do not ``preserve``."""

    original: Tensor
    small: Tensor
    regions: Tensor
    latents: Tensor
    plain: Tensor
    ready: dict[str, Tensor]


def change_mask(edited: Tensor, source: Tensor, low: float = 0.03, high: float = 0.08) -> Tensor:
    """Where an edit changed the picture: [B, 1, H, W] in 0..1, from the decoded edit and the decoded source.

    What the autoencoder itself does to a picture is in both and cancels out. The mask reaches one pixel beyond the
    change and fades over the next, and leaves out changes below ``low`` (0..1)."""
    difference = (edited - source).abs().amax(1, keepdim=True)
    reached = F.max_pool2d(((difference - low) / (high - low)).clamp(0, 1), 3, 1, 1)
    return F.avg_pool2d(F.pad(reached, (1, 1, 1, 1), mode="replicate"), 3, 1)


class ReasonBrainPipeline(DiffusionPipeline):
    """A diffusers pipeline around the slots of a ReasonBrain; components are named after the slots (frce_patch)."""

    model_cpu_offload_seq = "encoders->frce_patch->frce_region->frce_text->mllm->connector->cme->diffusion"
    _optional_components = [slot.replace(".", "_") for slot in SLOTS]

    def __init__(
        self,
        encoders: Any = None,
        frce_patch: Any = None,
        frce_region: Any = None,
        frce_text: Any = None,
        mllm: Any = None,
        connector: Any = None,
        cme: Any = None,
        diffusion: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            encoders=encoders,
            frce_patch=frce_patch,
            frce_region=frce_region,
            frce_text=frce_text,
            mllm=mllm,
            connector=connector,
            cme=cme,
            diffusion=diffusion,
        )
        self.settings: Config = make_config(config or {})

    @classmethod
    def from_model(cls, model: ReasonBrain, cfg: Config) -> ReasonBrainPipeline:
        """A pipeline around a model in memory."""
        pipe = cls(**dict(model.parts.items()))
        pipe.settings = cfg
        return pipe

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        overrides: Sequence[str] = (),
        config: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
    ) -> ReasonBrainPipeline:
        """``tiny`` (the embedded default), a checkpoint folder or a training run; see ``checkpoint.load_model``."""
        return cls.from_model(*load_model(name, overrides, config, torch_dtype))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None, **_: Any) -> None:  # type: ignore[override]
        """Writes a folder that ``from_pretrained`` takes, in safetensors. ``dtype``: store floats in this precision."""
        save_model(self.model, self.settings, Path(folder), dtype)

    @property
    def model(self) -> ReasonBrain:
        """The slots as a ReasonBrain."""
        parts = {slot: getattr(self, slot.replace(".", "_")) for slot in SLOTS}
        return ReasonBrain({s: p for s, p in parts.items() if p is not None}, self.settings.model.width)

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        instruction: str | Sequence[str],
        objects: Sequence[Sequence[str] | None] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        reasoning: bool = False,
        preserve: bool | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> ReasonBrainOutput:
        """Edits one or many pictures, of any sizes; a result has its source's size.

        ``generator``: one for every picture (each then starts from the same noise, so that a picture does not depend
        on its company), or one a picture. ``callback_on_step_end(pipe, step, timestep, {"latents": ...})`` is called
        with the packed latents of a batch of like-sized pictures. ``reasoning``: also say what happens, in a sentence.
        Raises UserError for an empty instruction, no steps, or numbers of pictures and instructions that differ."""
        set_attention(self.model, self.settings.model.attention)
        single = isinstance(image, (str, Path, Image.Image, np.ndarray))
        pictures = [load_image(i) for i in ([image] if single else image)]  # type: ignore
        texts = [instruction] * len(pictures) if isinstance(instruction, str) else list(instruction)
        edit = EditConfig(**asdict(self.settings.edit))
        edit.steps = edit.steps if num_inference_steps is None else num_inference_steps
        edit.guidance = edit.guidance if guidance_scale is None else guidance_scale
        edit.preserve = edit.preserve if preserve is None else preserve
        _check(pictures, texts, objects, generator, edit, output_type)

        blank: list[Any] = [None] * len(pictures)
        out = ReasonBrainOutput(blank[:], blank[:], blank[:], blank[:], blank[:])
        groups: dict[tuple[int, int], list[int]] = {}
        for row, picture in enumerate(pictures):
            groups.setdefault(picture.size, []).append(row)
        start = generator.get_state() if isinstance(generator, torch.Generator) else None
        for rows in groups.values():
            if start is not None:  # the same noise for every size
                generator.set_state(start)  # type: ignore[union-attr]
            self._edit_group(
                rows,
                [pictures[r] for r in rows],
                [texts[r] for r in rows],
                None if objects is None else [objects[r] for r in rows],
                [generator[r] for r in rows] if isinstance(generator, (list, tuple)) else generator,
                edit,
                reasoning,
                callback_on_step_end,
                out,
            )
        if not reasoning or self.mllm is None:
            out.reasoning = None
        if output_type == "pil":
            out.images = [to_pil(i[None])[0] for i in out.images]
        elif output_type == "np":
            out.images = [i.permute(1, 2, 0).numpy() for i in out.images]
        return out

    def batch(self, rows: Iterable[Mapping[str, Any]], batch_size: int = 8) -> Iterator[Result]:
        """Edits any number of rows and yields their results as they finish, in no particular order.

        A row has ``id``, ``image`` and ``instruction``, and may have ``seed``, ``steps``, ``size``, ``reasoning`` and
        ``n``: so many variants, each a result of its own. Rows are taken as they are needed, and a row that cannot be
        edited is a result with an error. A row's picture depends on the row alone, not on the others."""
        return edit_rows(self, parse_all(rows), batch_size)

    @torch.no_grad()
    def _edit_group(
        self,
        rows: list[int],
        pictures: list[Image.Image],
        texts: list[str],
        objects: list[Any] | None,
        generator: Any,
        edit: EditConfig,
        reasoning: bool,
        on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None,
        out: ReasonBrainOutput,
    ) -> None:
        """Edits pictures of one size and puts the results into their ``rows`` of ``out``."""
        sources = self.sources(pictures, edit)
        inputs = self.model.make_inputs(sources.small, texts, objects, sources.regions, sources.ready)
        condition, _ = self.model.condition(inputs)
        shape = sources.latents.shape
        if isinstance(generator, torch.Generator):
            shape = torch.Size((1, *shape[1:]))
        noise = randn_tensor(shape, generator, sources.latents.device, sources.latents.dtype)
        result = self.draw(sources, condition, noise.expand(sources.latents.shape), edit, on_step_end)
        said = self.mllm.reason(inputs) if reasoning and self.mllm is not None else [""] * len(rows)
        for i, row in enumerate(rows):
            out.images[row] = result[i].cpu()
            out.objects[row] = inputs.objects[i]
            out.reasoning[row] = said[i]  # type: ignore[index]
            out.regions[row] = inputs.regions[i].cpu().numpy()
            if condition.focus is not None:
                out.focus[row] = condition.focus[i].float().cpu().numpy()

    @torch.no_grad()
    def sources(self, pictures: Sequence[Image.Image], edit: EditConfig) -> Sources:
        """Of pictures of one size."""
        original = to_tensor(list(pictures)).to(self._execution_device)
        height, width = original.shape[-2:]
        scale = min(1.0, edit.size / max(height, width)) if edit.size else 1.0
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = original if scale == 1.0 else F.interpolate(original, size, mode="bicubic", antialias=True).clamp(0, 1)
        regions = self.model.segment(small)
        ready = self.model.image_features(small)
        if self.diffusion is None:
            return Sources(original, small, regions, small, small, ready)
        latents = self.diffusion.encode(pad_to_multiple(small, self.diffusion.multiple))
        plain = self.diffusion.decode(latents)[..., : size[0], : size[1]] if edit.preserve else small
        return Sources(original, small, regions, latents, plain, ready)

    @torch.no_grad()
    def draw(
        self,
        sources: Sources,
        condition: Condition,
        noise: Tensor,
        edit: EditConfig,
        on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> Tensor:
        """The edited pictures [B, 3, H, W] in 0..1, from noise of the latents' shape."""
        original = sources.original
        if self.diffusion is None:
            return original
        with self.progress_bar(total=edit.steps) as progress:

            def on_step(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
                progress.update()
                if on_step_end is None:
                    return latents
                return on_step_end(self, index, timestep, {"latents": latents}).get("latents", latents)

            latents = self.diffusion.sample(condition, sources.latents, noise, edit.steps, edit.guidance, on_step)
        h, w = size = sources.small.shape[-2:]
        edited = self.diffusion.decode(latents)[..., :h, :w]
        mask = change_mask(edited, sources.plain) if edit.preserve else torch.ones_like(edited[:, :1])
        if size != original.shape[-2:]:
            edited, mask = (F.interpolate(x, original.shape[-2:], mode="bicubic").clamp(0, 1) for x in (edited, mask))
        return original + mask * (edited - original)


def _check(
    pictures: list[Image.Image],
    texts: list[str],
    objects: Sequence[Any] | None,
    generator: Any,
    edit: EditConfig,
    output_type: str,
) -> None:
    if not pictures:
        raise UserError("no image is given")
    for what, given in (("instructions", texts), ("objects", objects), ("generators", generator)):
        if isinstance(given, (list, tuple)) and len(given) != len(pictures):
            raise UserError(f"{len(pictures)} images, but {len(given)} {what}; give one each")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"instruction {text!r} is empty; say what happens: 'What if the ice were left in the sun?'")
    if edit.steps < 1:
        raise UserError(f"steps must be 1 or more, not {edit.steps}")
    if output_type not in ("pil", "np", "pt"):
        raise UserError(f"output_type '{output_type}' is not one of pil, np, pt")
