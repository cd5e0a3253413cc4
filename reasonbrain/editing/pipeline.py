"""ReasonBrainPipeline: a picture and a hypothetical instruction in, the edited picture out.

pipe = ReasonBrainPipeline.from_pretrained("tiny")
pipe(image, "What would happen if someone blew on this candle?").images[0].save("out.png")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from reasonbrain.attention import set_attention
from reasonbrain.checkpoint import load_model, save_model
from reasonbrain.config.schema import Config, EditConfig
from reasonbrain.editing.batch.rows import parse_all
from reasonbrain.editing.batch.scheduler import Result, edit_rows
from reasonbrain.editing.core import Core
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.utils.images import load_image, to_pil

Picture = str | Path | Image.Image | np.ndarray
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


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
        """A pipeline around a model in memory."""
        pipe = cls(**dict(model.parts.items()), settings=cfg)
        pipe._model = model
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
        """The components as one model; the same module until a component is replaced."""
        if self._model is None:
            parts = {slot: getattr(self, slot.replace(".", "_")) for slot in SLOTS}
            self._model = ReasonBrain({s: p for s, p in parts.items() if p is not None}, self.settings.model.width)
        return self._model

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._optional_components:  # pipe.cme = None
            self._model = None

    def core(self) -> Core:
        """The steps of an edit with this pipeline's model, which then computes attention as configured."""
        set_attention(self.model, self.settings.model.attention)
        return Core(self.model, self._execution_device, self.progress_bar)

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
        callback_on_step_end: OnStepEnd | None = None,
    ) -> ReasonBrainOutput:
        """Edits one or many pictures, of any sizes; a result has its source's size.

        ``generator``: one for every picture (each then starts from the same noise, so that a picture does not depend
        on its company), or one a picture. ``callback_on_step_end(pipe, step, timestep, {"latents": ...})`` is called
        with the packed latents of a batch of like-sized pictures. ``reasoning``: also say what happens, in a sentence.
        Raises UserError for an empty instruction, no steps, or numbers of pictures and instructions that differ."""
        single = isinstance(image, (str, Path, Image.Image, np.ndarray))
        pictures = [load_image(i) for i in ([image] if single else image)]  # type: ignore
        texts = [instruction] * len(pictures) if isinstance(instruction, str) else list(instruction)
        edit = replace(self.settings.edit)
        edit.steps = edit.steps if num_inference_steps is None else num_inference_steps
        edit.guidance = edit.guidance if guidance_scale is None else guidance_scale
        edit.preserve = edit.preserve if preserve is None else preserve
        _check(pictures, texts, objects, generator, edit, output_type)

        core = self.core()
        blank: list[Any] = [None] * len(pictures)
        said = blank[:] if reasoning and self.mllm is not None else None
        out = ReasonBrainOutput(blank[:], blank[:], said, blank[:], blank[:])
        groups: dict[tuple[int, int], list[int]] = {}
        for row, picture in enumerate(pictures):
            groups.setdefault(picture.size, []).append(row)
        start = generator.get_state() if isinstance(generator, torch.Generator) else None
        for rows in groups.values():
            if start is not None:  # the same noise for every size
                generator.set_state(start)  # type: ignore[union-attr]
            self._edit_group(
                core,
                rows,
                [pictures[r] for r in rows],
                [texts[r] for r in rows],
                None if objects is None else [objects[r] for r in rows],
                [generator[r] for r in rows] if isinstance(generator, (list, tuple)) else generator,
                edit,
                callback_on_step_end,
                out,
            )
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
        return edit_rows(self.core(), self.settings.edit, parse_all(rows), batch_size)

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
        """Edits pictures of one size and puts the results into their ``rows`` of ``out``."""
        sources = core.sources(pictures, edit)
        inputs, condition = core.condition(sources, texts, objects, reasoning=out.reasoning is not None)
        latents = sources.latents
        shape = (1, *latents.shape[1:]) if isinstance(generator, torch.Generator) else latents.shape
        noise = randn_tensor(shape, generator, latents.device, latents.dtype).expand(latents.shape)

        def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if on_step_end is None:
                return latents
            return on_step_end(self, step, timestep, {"latents": latents}).get("latents", latents)

        result = core.draw(sources, condition, noise, edit, on_step)
        for i, row in enumerate(rows):
            out.images[row] = result[i].cpu()
            out.objects[row] = inputs.objects[i]
            out.regions[row] = inputs.regions[i].cpu().numpy()
            if condition.focus is not None:
                out.focus[row] = condition.focus[i].float().cpu().numpy()
            if out.reasoning is not None and inputs.sentences is not None:
                out.reasoning[row] = inputs.sentences[i]


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
