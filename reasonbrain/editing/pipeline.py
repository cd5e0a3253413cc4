"""ReasonBrainPipeline: a picture and a hypothetical instruction in, the edited picture out.

pipe = ReasonBrainPipeline.from_pretrained("tiny")
pipe(image, "What would happen if someone blew on this candle?").images[0].save("out.png")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from torch import Tensor

from reasonbrain.attention import set_attention
from reasonbrain.checkpoint import load_model
from reasonbrain.config.loading import make_config
from reasonbrain.config.schema import Config, EditConfig
from reasonbrain.editing.arguments import (
    Generators,
    Picture,
    check_choices,
    check_count,
    check_generators,
    finite,
    read_instructions,
    read_objects,
    read_pictures,
    read_sentences,
)
from reasonbrain.editing.batch.rows import parse_all, parse_int
from reasonbrain.editing.batch.scheduler import Result, edit_rows
from reasonbrain.editing.core import Core, generators_of, take_rows
from reasonbrain.editing.output import OUTPUT_TYPES, ReasonBrainOutput, as_type
from reasonbrain.editing.quantization import slots_in_4_bits
from reasonbrain.editing.rounds import best, edit_in_rounds, has_rounds
from reasonbrain.editing.saving import Saving
from reasonbrain.editing.steps import Steps
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin import Plugin
from reasonbrain.registry import SLOTS
from reasonbrain.thinking import one_row
from reasonbrain.utils.device import usable_device
from reasonbrain.utils.hub import download, is_repository

log = logging.getLogger(__name__)

OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises UserError for an override of a section that has no effect on edits."""
    for text in overrides:
        if text.partition("=")[0].partition(".")[0] in ("data", "train"):
            raise UserError(f"override '{text:.100}': an edit depends on model.* and edit.* alone")


def _of_diffusion(name: str) -> Any:
    def get(pipe: ReasonBrainPipeline) -> Any:
        return getattr(pipe.diffusion, name)

    def put(pipe: ReasonBrainPipeline, value: Any) -> None:
        setattr(pipe.diffusion, name, value)

    return property(get, put, doc=f"``diffusion.{name}``, where users of diffusers look for it")


class ReasonBrainPipeline(Saving, Steps, DiffusionPipeline):
    """A diffusers pipeline whose components are the slots of a ReasonBrain, with "_" for "." (``frce_patch``)."""

    transformer, vae, scheduler = (_of_diffusion(name) for name in ("transformer", "vae", "scheduler"))
    load_lora_weights, unload_lora_weights, save_lora_weights = (
        _of_diffusion(f"{verb}_lora_weights") for verb in ("load", "unload", "save")
    )
    _callback_tensor_inputs = ["latents"]
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
        settings: Config | Mapping[str, Any] | None = None,
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
        if settings is None:
            settings = Config()
            widths = (part.config.width for part in self._slots().values())
            settings.model.width = next(widths, settings.model.width)
        # DiffusionPipeline.from_pretrained hands over what it finds in model_index.json
        self.settings = settings if isinstance(settings, Config) else make_config(dict(settings), reads_data=False)
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
        torch_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        variant: str | None = None,
        device_map: str | torch.device | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        quantization_config: PipelineQuantizationConfig | None = None,
        **components: Any,
    ) -> ReasonBrainPipeline:
        """Loads ``tiny`` (the embedded default), a checkpoint folder, a training run, or a repository of the hub.
        overrides, config: as for ``checkpoint.load_model``. dtype, or torch_dtype: the precision of float32 weights
        after loading, for all or by component and ``default``; None keeps it. variant: of the files that
        ``save_pretrained`` wrote with this name. device_map: the device to move all to. revision, cache_dir, token,
        local_files_only: of a repository, as for ``utils.hub.download``. quantization_config: as for
        ``slots_in_4_bits``. components: slots to use in place of those of the checkpoint, which are not read; None
        leaves one out.

        Raises UserError like ``checkpoint.load_model`` and ``check_overrides``, and for a device that is not there."""
        check_overrides(overrides)
        if is_repository(name):
            name = download(str(name), revision, cache_dir, token, local_files_only)
        elif revision is not None:
            raise UserError(f"revision: '{name}' is no repository of the hub, so it has no revision '{revision}'")
        check_choices("component", list(components), cls._optional_components)
        empty = [f"model.{slot}=null" for slot in SLOTS if slot.replace(".", "_") in components]
        dtype = dtype or torch_dtype or torch.float32
        pipe = cls.from_model(*load_model(name, [*overrides, *empty], config, dtype, variant=variant))
        for component, part in components.items():
            setattr(pipe, component, part)
        if quantization_config is not None:
            for slot in slots_in_4_bits(quantization_config, cls._optional_components):
                if (part := getattr(pipe, slot)) is not None:
                    part.compress("nf4")
        return pipe if device_map is None else pipe.to(usable_device("device_map", device_map))

    @classmethod
    def from_pipe(cls, pipeline: ReasonBrainPipeline, **changes: Any) -> ReasonBrainPipeline:
        """A pipeline with the settings and the components of another one, which they share. changes: other components
        by name, ``settings``, or ``dtype`` for all weights."""
        dtype = changes.pop("dtype", None) or changes.pop("torch_dtype", None)
        pipe = cls(**(pipeline.components | changes))
        return pipe if dtype is None else pipe.to(dtype)

    @property
    def components(self) -> dict[str, Any]:
        """The arguments of a pipeline that shares the slots and the settings of this one."""
        return super().components | {"settings": self.settings}

    @property
    def model(self) -> ReasonBrain:
        """The components as one model; the same module until a component is replaced."""
        if self._model is None:
            model = self.settings.model
            self._model = ReasonBrain(self._slots(), model.width, model.thinking)
        return self._model

    def _slots(self) -> dict[str, Plugin]:
        found = {slot: getattr(self, slot.replace(".", "_")) for slot in SLOTS}
        return {slot: part for slot, part in found.items() if part is not None}

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
        instruction: str | Sequence[str] | None = None,
        objects: str | Sequence[Sequence[str] | None] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators | None = None,
        output_type: str = "pil",
        reasoning: bool | str | Sequence[str] = False,
        preserve: bool | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        latents: Tensor | Sequence[Tensor] | None = None,
        return_dict: bool = True,
    ) -> ReasonBrainOutput:
        """Edits one or many pictures of any sizes. A result has the size of its source.

        image: paths, encoded or PIL pictures, arrays or tensors (``read_pictures``). Pictures are read in 8 bits.
        instruction, or prompt, which means the same: one for all pictures, or one per picture.
        objects: names of the key objects of each picture, or one name for a single object; None extracts them from the
        instruction.
        num_inference_steps, guidance_scale, preserve: None for the values of ``settings.edit``.
        num_images_per_prompt: the number of edits of each picture. The edits of one picture follow one another.
        generator: one per edit, or one for all. With one for all, each picture starts from the same noise, so that its
        result does not depend on the other pictures.
        latents: the initial noise of each edit, [N, C, h, w] as ``output_type="latent"`` returns them, or a list of
        [C, h, w]; None draws it.
        output_type: pil, np, pt, or latent for latents of the diffusion model, which ``diffusion.decode`` decodes.
        reasoning: also return the MLLM's sentence about what happens; or the sentences to use in place of the MLLM's,
        for a model that reads them, one for all pictures or one per picture.
        callback_on_step_end: called as (pipeline, step, timestep, {"latents": packed latents}) for each batch of
        pictures that are edited at one size; may return other latents under the same key.
        callback_on_step_end_tensor_inputs: which tensors it is given; of ``_callback_tensor_inputs``.
        return_dict: False returns the fields of ``ReasonBrainOutput`` as a tuple.

        Raises UserError for an unreadable picture, an instruction that ``check_instruction`` rejects, a number out of
        range, lists of different lengths, an edit that does not fit into memory, and one that is NaN or infinite."""
        pictures = read_pictures(image)
        if not pictures:
            raise UserError("no image given")
        copies = parse_int("n", num_images_per_prompt, "num_images_per_prompt")
        count = len(pictures) * copies
        texts = read_instructions(instruction, prompt, len(pictures))
        names = read_objects(objects, len(pictures))
        check_generators(generator, count)
        check_count("latents", latents, count, "images")
        check_choices("output_type", [output_type], OUTPUT_TYPES)
        check_choices("callback tensor", callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        if not isinstance(preserve, (bool, NoneType)):
            raise UserError(f"preserve {preserve!r:.60} is not True, False or None")
        edit = self.edit_settings
        edit.steps = parse_int("steps", edit.steps if num_inference_steps is None else num_inference_steps)
        edit.preserve = edit.preserve if preserve is None else preserve
        edit.guidance = edit.guidance if guidance_scale is None else finite("guidance_scale", guidance_scale)
        self._guidance_scale = edit.guidance
        self._interrupt = False
        if has_rounds(edit) and (latents is not None or output_type == "latent"):
            raise UserError("latents are neither taken nor returned with edit.rounds or edit.candidates")

        def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            given = {name: latents for name in callback_on_step_end_tensor_inputs}  # there are no others
            return callback_on_step_end(self, step, timestep, given).get("latents", latents)

        core = self.core()
        sentences = None if isinstance(reasoning, bool) else read_sentences(reasoning, len(pictures), core.model)
        blank: list[Any] = [None] * count
        asked = self.mllm is not None and (reasoning or core.model.reads_sentence)
        said = blank[:] if asked or sentences is not None else None
        out = ReasonBrainOutput(
            images=blank[:],
            objects=blank[:],
            reasoning=said,
            notes=[""] * count,
            unfamiliar=blank[:],
            rounds=[[] for _ in blank],
            regions=blank[:],
            focus=blank[:],
        )
        groups: dict[tuple[int, int], list[int]] = {}
        for i, picture in enumerate(pictures):
            groups.setdefault(core.size(*picture.size, edit), []).append(i)
        start = generator.get_state() if isinstance(generator, torch.Generator) else None
        for group in groups.values():
            if start is not None:  # the same noise in each batch
                generator.set_state(start)  # type: ignore[union-attr]
            rows = [i * copies + k for i in group for k in range(copies)]
            own = [generator[r] for r in rows] if isinstance(generator, (list, tuple)) else generator
            sources = core.sources([pictures[i] for i in group], edit)
            unfamiliar = core.unfamiliar(sources, edit)
            inputs, condition = core.condition(
                sources,
                [texts[i] for i in group],
                [names[i] for i in group],
                said is not None,
                None if sentences is None else [sentences[i] for i in group],
            )
            words = zip(inputs.instructions, inputs.sentences or [None] * len(group), strict=True)
            for unread in filter(None, (core.unread(*both) for both in dict.fromkeys(words))):
                log.warning(f"the text encoder truncates its text; it does not read: {unread[:200]}")
            if copies > 1:
                each = [i for i in range(len(group)) for _ in range(copies)]
                sources, condition = take_rows(sources, each), take_rows(condition, each)
            if has_rounds(edit):
                for i, (row, one) in enumerate(zip(rows, generators_of(own, len(rows), copies), strict=True)):
                    asked_of = take_rows(sources, [i]), one_row(inputs, i // copies), take_rows(condition, [i])
                    out.rounds[row] = edit_in_rounds(
                        core, pictures[row // copies], *asked_of, one, edit, on_step, self._before_step
                    )
                edited = [best(out.rounds[row]).image[0] for row in rows]
            else:
                noise = (
                    core.noise(sources, own, copies) if latents is None else self._given(latents, rows, sources.latents)
                )
                drawn = core.draw(sources, condition, noise, edit, on_step, self._before_step)
                if output_type == "latent":
                    edited = list(drawn.cpu())
                else:
                    decoded = core.decode(sources, drawn, edit)
                    edited = [core.finish(pictures[r // copies], decoded, i)[0].cpu() for i, r in enumerate(rows)]
            for i, row in enumerate(rows):
                out.images[row] = edited[i]
                out.objects[row] = inputs.objects[i // copies]
                out.unfamiliar[row] = unfamiliar[i // copies]
                out.regions[row] = inputs.regions[i // copies].cpu().numpy()
                if condition.focus is not None:
                    out.focus[row] = condition.focus[i].float().cpu().numpy()
                if out.reasoning is not None and inputs.sentences is not None:
                    out.reasoning[row] = inputs.sentences[i // copies]
                    if out.rounds[row]:
                        out.reasoning[row] = best(out.rounds[row]).sentence
                if inputs.notes:
                    out.notes[row] = inputs.notes[i // copies]
        self._call.timestep = None
        self.maybe_free_model_hooks()
        out.images = as_type(out.images, output_type)
        return out if return_dict else tuple(vars(out).values())  # type: ignore[return-value]

    def batch(self, rows: Iterable[Mapping[str, Any]], batch_size: int = 8) -> Iterator[Result]:
        """Edits any number of rows and yields their results as they finish, in no particular order.

        rows: mappings with ``id``, ``image`` and ``instruction``, and optionally ``seed``, ``steps``, ``size``,
        ``reasoning`` and ``n``, the number of variants. They are read as needed. Each variant is one result. Whatever
        is raised for a row becomes the ``error`` of its results. A picture depends only on its row and ``batch_size``.

        Raises RunError if the accelerator fails, Unavailable if a service does that the MLLM is behind, and UserError
        for a ``batch_size`` below 1."""
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size {batch_size!r:.60} is not a whole number of at least 1")
        yield from edit_rows(self.core(), self.edit_settings, parse_all(rows), batch_size)
        self.maybe_free_model_hooks()

    @staticmethod
    def _given(latents: Tensor | Sequence[Tensor], rows: list[int], like: Tensor) -> Tensor:
        """The initial noise of these rows. Raises UserError for another shape than that of ``like``."""
        if wrong := next((latents[r].shape for r in rows if latents[r].shape != like.shape[1:]), None):
            raise UserError(f"latents have the shape {list(wrong)}, but the edit has {list(like.shape[1:])}")
        return torch.stack([latents[r] for r in rows]).to(like)
