"""ReasonBrainPipeline: a picture and a hypothetical instruction in, the edited picture out.

pipe = ReasonBrainPipeline.from_pretrained("tiny")
pipe(image, "What would happen if someone blew on this candle?").images[0].save("out.png")
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from reasonbrain.attention import set_attention
from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.config.schema import Config, EditConfig
from reasonbrain.editing.batch.rows import parse_all, parse_int
from reasonbrain.editing.batch.scheduler import Result, edit_rows
from reasonbrain.editing.core import Core
from reasonbrain.errors import UserError
from reasonbrain.instruction import check_instruction, check_text
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.utils.images import load_image, to_pil

log = logging.getLogger(__name__)

Picture = str | Path | bytes | Image.Image | np.ndarray
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class ReasonBrainOutput(BaseOutput):
    """Each list has one entry per picture."""

    images: list[Any]  # by output_type: PIL, numpy [H, W, 3] in 0..1, or a tensor [3, H, W] in 0..1
    objects: list[list[str]]  # names of the key objects
    reasoning: list[str] | None  # the MLLM's sentences; None unless asked for
    regions: list[np.ndarray]  # label maps [h, w], -1: no region
    focus: list[np.ndarray | None]  # share of attention on each patch [rows, columns]; None without a CME


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises UserError for an override of a section that has no effect on edits."""
    for text in overrides:
        if text.partition("=")[0].partition(".")[0] in ("data", "train"):
            raise UserError(f"override '{text:.100}': an edit depends on model.* and edit.* alone")


class ReasonBrainPipeline(DiffusionPipeline):
    """A diffusers pipeline whose components are the slots of a ReasonBrain, with "_" for "." (``frce_patch``)."""

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
        settings: Config | None = None,
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
        self.settings = settings or Config()
        self._model: ReasonBrain | None = None

    @classmethod
    def from_model(cls, model: ReasonBrain, cfg: Config) -> ReasonBrainPipeline:
        """A pipeline that shares the slots of a model in memory."""
        pipe = cls(**dict(model.parts.items()), settings=cfg)
        pipe._model = model
        return pipe

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        overrides: Sequence[str] = (),
        config: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> ReasonBrainPipeline:
        """Loads ``tiny`` (the embedded default), a checkpoint folder or a training run. dtype, or torch_dtype: the
        precision of float32 weights after loading; None keeps it. overrides, config, and the errors raised: as for
        ``checkpoint.load_model``. Raises UserError also like ``check_overrides``."""
        check_overrides(overrides)
        return cls.from_model(*load_model(name, overrides, config, dtype or torch_dtype or torch.float32))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None, **_: Any) -> None:  # type: ignore[override]
        """Writes a folder that ``from_pretrained`` loads, in safetensors. dtype: the precision of stored floats; None
        keeps that of the weights."""
        save_model(self.model, self.settings, Path(folder), dtype)

    @property
    def model(self) -> ReasonBrain:
        """The components as one model; the same module until a component is replaced."""
        if self._model is None:
            parts = {slot: getattr(self, slot.replace(".", "_")) for slot in SLOTS}
            self._model = ReasonBrain({s: p for s, p in parts.items() if p is not None}, self.settings.model.width)
        return self._model

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._optional_components:  # pipe.cme = None
            self._model = None

    @property
    def edit_settings(self) -> EditConfig:
        """A copy of ``settings.edit`` with the diffusion model's own values in place of null."""
        return self.model.edit_settings(self.settings.edit)

    def core(self) -> Core:
        """The steps of an edit with this pipeline's model and device. Sets the attention kernels as configured."""
        set_attention(self.model, self.settings.model.attention, device=self._execution_device)
        return Core(self.model, self._execution_device, self.progress_bar)

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        instruction: str | Sequence[str],
        objects: str | Sequence[Sequence[str] | None] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        reasoning: bool = False,
        preserve: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> ReasonBrainOutput:
        """Edits one or many pictures of any sizes. A result has the size of its source.

        image: paths, encoded or PIL pictures, or arrays (``load_image``). instruction: one for all pictures, or one per
        picture.
        objects: names of the key objects of each picture, or one name for a single object; None extracts them from the
        instruction.
        num_inference_steps, guidance_scale, preserve: None for the values of ``settings.edit``.
        generator: one per picture, or one for all. With one for all, each picture starts from the same noise, so that
        its result does not depend on the other pictures.
        output_type: pil, np or pt.
        reasoning: also return the MLLM's sentence about what happens.
        callback_on_step_end: called as (pipeline, step, timestep, {"latents": packed latents}) for each batch of
        pictures that are edited at one size; may return other latents under the same key.

        Raises UserError for an unreadable picture, an instruction that ``check_instruction`` rejects, a number out of
        range, lists of different lengths, an edit that does not fit into memory, and one that is NaN or infinite."""
        single = isinstance(image, Picture)
        pictures = [load_image(i) for i in ([image] if single else image)]  # type: ignore
        texts = [instruction] * len(pictures) if isinstance(instruction, str) else list(instruction)
        edit = self.edit_settings
        edit.steps = parse_int("steps", edit.steps if num_inference_steps is None else num_inference_steps)
        edit.guidance = edit.guidance if guidance_scale is None else _finite("guidance_scale", guidance_scale)
        if not isinstance(preserve, (bool, NoneType)):
            raise UserError(f"preserve {preserve!r:.60} is not True, False or None")
        edit.preserve = edit.preserve if preserve is None else preserve
        names = None if objects is None else _objects(objects, len(pictures))
        _check(pictures, texts, names, generator, output_type)

        core = self.core()
        for unread in filter(None, map(core.unread, dict.fromkeys(texts))):
            log.warning(f"the text encoder truncates the instruction; it does not read: {unread[:200]}")
        blank: list[Any] = [None] * len(pictures)
        said = blank[:] if self.mllm is not None and (reasoning or core.model.reads_sentence) else None
        out = ReasonBrainOutput(blank[:], blank[:], said, blank[:], blank[:])
        groups: dict[tuple[int, int], list[int]] = {}
        for row, picture in enumerate(pictures):
            groups.setdefault(core.size(*picture.size, edit), []).append(row)
        start = generator.get_state() if isinstance(generator, torch.Generator) else None
        for rows in groups.values():
            if start is not None:  # the same noise in each batch
                generator.set_state(start)  # type: ignore[union-attr]
            self._edit_group(
                core,
                rows,
                [pictures[r] for r in rows],
                [texts[r] for r in rows],
                None if names is None else [names[r] for r in rows],
                [generator[r] for r in rows] if isinstance(generator, (list, tuple)) else generator,
                edit,
                callback_on_step_end,
                out,
            )
        self.maybe_free_model_hooks()
        if output_type == "pil":
            out.images = [to_pil(i[None])[0] for i in out.images]
        elif output_type == "np":
            out.images = [i.permute(1, 2, 0).numpy() for i in out.images]
        return out

    def batch(self, rows: Iterable[Mapping[str, Any]], batch_size: int = 8) -> Iterator[Result]:
        """Edits any number of rows and yields their results as they finish, in no particular order.

        rows: mappings with ``id``, ``image`` and ``instruction``, and optionally ``seed``, ``steps``, ``size``,
        ``reasoning`` and ``n``, the number of variants. They are read as needed. Each variant is one result. Whatever
        is raised for a row becomes the ``error`` of its results. A picture depends only on its row and ``batch_size``.

        Raises RunError if the accelerator fails, and UserError for a ``batch_size`` below 1."""
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size {batch_size!r:.60} is not a whole number of at least 1")
        yield from edit_rows(self.core(), self.edit_settings, parse_all(rows), batch_size)
        self.maybe_free_model_hooks()

    def _edit_group(
        self,
        core: Core,
        rows: list[int],
        pictures: list[Image.Image],
        texts: list[str],
        objects: list[Any] | None,
        generator: Any,
        edit: EditConfig,
        on_step_end: OnStepEnd | None,
        out: ReasonBrainOutput,
    ) -> None:
        """Edits pictures whose edits are computed at one size, and writes the results to their ``rows`` of ``out``."""
        sources = core.sources(pictures, edit)
        inputs, condition = core.condition(sources, texts, objects, reasoning=out.reasoning is not None)
        noise = core.noise(sources, generator)

        def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if on_step_end is None:
                return latents
            return on_step_end(self, step, timestep, {"latents": latents}).get("latents", latents)

        drawn = core.draw(sources, condition, noise, edit, on_step)
        for i, row in enumerate(rows):
            out.images[row] = core.finish(pictures[i], drawn, i)[0].cpu()
            out.objects[row] = inputs.objects[i]
            out.regions[row] = inputs.regions[i].cpu().numpy()
            if condition.focus is not None:
                out.focus[row] = condition.focus[i].float().cpu().numpy()
            if out.reasoning is not None and inputs.sentences is not None:
                out.reasoning[row] = inputs.sentences[i]


def _objects(given: Any, count: int) -> list[list[str] | None]:
    """Lists of object names, one per picture. A string counts as one object."""
    given = [given] * count if isinstance(given, str) else given
    return [None if names is None else [names] if isinstance(names, str) else list(names) for names in given]


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} {value!r:.60} is not a finite number")
    return number


def _check(
    pictures: list[Image.Image],
    texts: list[str],
    objects: list[list[str] | None] | None,
    generator: Any,
    output_type: str,
) -> None:
    if not pictures:
        raise UserError("no image given")
    for one in generator if isinstance(generator, (list, tuple)) else [generator]:
        if not isinstance(one, (torch.Generator, NoneType)):
            raise UserError(f"generator {one!r:.60} is not a torch.Generator, such as torch.Generator().manual_seed(0)")
    for what, given in (("instructions", texts), ("objects", objects), ("generators", generator)):
        if isinstance(given, (list, tuple)) and len(given) != len(pictures):
            raise UserError(f"{len(pictures)} images, but {len(given)} {what}; give one each")
    for text in texts:
        check_instruction(text)
    for name in (name for names in objects or () for name in names or ()):
        check_text("object", name)
    if output_type not in ("pil", "np", "pt"):
        raise UserError(f"output_type '{output_type}' is not one of pil, np, pt")
