"""Diffusion ``editor``: a published editing pipeline of diffusers, used as it is. Pixels and words in, pixels out.

It reads the sentence of the MLLM ("think, then edit") and nothing else of the condition, so the slots that make cues
and guidance may be null. ``rules.py`` has the classes of pipelines.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.configuration_utils import register_to_config
from diffusers.models.cache_utils import CacheMixin
from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import is_torchvision_available

from reasonbrain.errors import UserError, reason
from reasonbrain.interfaces import Condition
from reasonbrain.modules.common.precision import PublishedBase, base_dtype, hold_base
from reasonbrain.modules.common.published import load_published
from reasonbrain.modules.diffusion.rules import find_rule
from reasonbrain.registry import register
from reasonbrain.utils.hub import is_cached, tell_licence
from reasonbrain.utils.images import to_pil

INDEX = "model_index.json"
IMAGE_TOKEN = "<|image_pad|>"  # of Qwen2-VL
LARGEST_ASPECT = 8  # of a picture as it is drawn; FLUX.2 takes no more


@register("diffusion", "editor")
class Editor(PublishedBase):
    """A published editing pipeline of diffusers, such as FLUX.2-klein or Qwen-Image-Edit, used as it is.

    It draws every picture at about the number of pixels that it was trained for, in the picture's own aspect, and
    scales the edit back to the picture's size. Checkpoints hold a reference to it, never its weights.

    Args:
        pretrained: the pipeline: a hub id or a folder
        pixels: number of pixels at which pictures are drawn; null: as many as the pipeline was trained for
        precision: precision of all its models: ``float32``, ``bfloat16`` or ``nf4``
    """

    weight_sources = ("pretrained",)
    reference = True
    edits_pixels = True
    reads_sentence = True  # type: ignore[assignment]
    multiple = 1

    @register_to_config
    def __init__(
        self, width: int, pretrained: str | None = None, pixels: int | None = None, precision: str = "bfloat16"
    ) -> None:
        super().__init__()
        source = self.needs_weights(pretrained)
        dtype = base_dtype(precision, self.slot)
        new = not Path(source).is_dir() and not is_cached(source, INDEX)
        index = read_index(source)
        cls, self.rule = find_rule(index.get("_class_name"), f"model.diffusion.pretrained '{source}'")
        if new:
            tell_licence(source)
        self.pipeline = load_pipeline(cls, source, index, dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
        hold_base(self, self.repeated(), precision, self.slot)
        self.freeze(*self.children())

    @classmethod
    def is_whole(cls, params: dict[str, Any]) -> bool:
        return True

    @classmethod
    def without_weights(cls, params: dict[str, Any]) -> dict[str, Any]:
        raise UserError("model.diffusion: 'editor' is a published pipeline, which is not planned, trained or timed")

    @property
    def edit_defaults(self) -> dict[str, Any]:
        return self.rule.defaults(self.pipeline)

    @property
    def draws_rows_alone(self) -> bool:  # type: ignore[override]
        return not self.rule.together

    def gives_loss(self) -> bool:
        return False

    def repeated(self) -> list[nn.Module]:
        """The blocks that diffusers and transformers name as repeated, of all its models but the autoencoder."""
        found = []
        for part in (part for part in self.children() if not hasattr(part, "decode")):
            names = getattr(part, "_repeated_blocks", None) or getattr(part, "_no_split_modules", None) or ()
            lists = (module for module in part.modules() if isinstance(module, nn.ModuleList))  # without embeddings
            found += [block for blocks in lists for block in blocks if type(block).__name__ in names]
        return found

    def unread(self, text: str) -> str:
        """The end that even the text encoder with the longest input leaves out: CLIP, where a pipeline has no other."""
        parts = self.pipeline.components.values()
        tokenizers = [part for part in parts if isinstance(part, transformers.PreTrainedTokenizerBase)]
        longest = max(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
        tokens = longest(self.rule.prompt.format(text), return_offsets_mapping=True)
        if len(tokens.input_ids) <= longest.model_max_length:
            return ""
        return text[tokens.offset_mapping[longest.model_max_length - 1][0] :]  # the last token ends a text

    def enable_cache(self, config: Any) -> None:
        """Raises UserError also for a pipeline whose passes a cache would mix up."""
        called = inspect.unwrap(type(self.pipeline).__call__).__code__.co_names
        if not self._cached() or "cache_context" not in called:
            raise UserError(f"edit.cache: '{type(self.pipeline).__name__}' of diffusers does not support caches")
        for part in self._cached():
            part.enable_cache(config)

    def _cached(self) -> list[Any]:
        return [part for part in self.children() if isinstance(part, CacheMixin)]

    def encode(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """The images themselves."""
        return latents

    def errors(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        raise UserError("model.diffusion: 'editor' is not trained; train another diffusion model")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which a picture is drawn: about ``pixels``, in its aspect, in whole multiples."""
        aspect = min(max(height / width, 1 / LARGEST_ASPECT), LARGEST_ASPECT)
        area, step = self.config.pixels or self.rule.area, self.rule.multiple
        sides = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        return tuple(max(step, round(side / step) * step) for side in sides)  # type: ignore[return-value]

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        source: Tensor,
        noise: Sequence[torch.Generator | None],
        steps: int,
        guidance: float | None = None,
        image_guidance: float | None = None,
        on_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        before_step: Callable[[int, Tensor], float | None] | None = None,
    ) -> Tensor:
        """Edits images [B, 3, H, W] in 0..1.

        Args:
            condition: its ``prompts``, one per row
            source: images [B, 3, H, W] in 0..1
            noise: a generator per row, or None for the global one
            steps: number of denoising steps
            guidance: scale of the words
            image_guidance: scale of the source
            on_step: called with (index, timestep, latents) after every step, returns the latents to use; not called by
                a pipeline without such callbacks
            before_step: called like ``on_step``, with (index, all timesteps); if it returns None, the steps left are
                not taken. Another value does not change the scale
        """
        settings = {"steps": steps, "guidance": guidance, "image_guidance": image_guidance}
        pictures = to_pil(F.interpolate(source, self.size(*source.shape[-2:]), mode="bicubic", antialias=True))
        rows = list(zip(pictures, map(self._plain, condition.prompts), noise, strict=True))
        drawn = []
        for some in [rows] if self.rule.together else [[row] for row in rows]:
            shown, prompts, generators = (list(part) for part in zip(*some, strict=True))
            random = None if None in generators else generators
            devices = [source.device] if source.is_cuda else []
            with torch.random.fork_rng(devices, enabled=random is not None):
                if random:  # OmniGen encodes the source with the global generator
                    torch.manual_seed(random[0].initial_seed())
                call = self.rule.arguments(shown, prompts, settings) | self._callback(on_step, before_step)
                try:
                    drawn.append(self.pipeline(**call, generator=random, output_type="pt"))
                finally:  # what diffusers' caches keep fits this call only
                    for part in self._cached():
                        part._reset_stateful_cache()
        if any(flag for out in drawn for flag in getattr(out, "nsfw_content_detected", None) or ()):
            raise UserError("the editor's safety checker withheld the picture")
        edited = torch.cat([out.images for out in drawn]).to(source)
        return F.interpolate(edited, source.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)

    def _plain(self, prompt: str) -> str:
        """A prompt without the marks that mean something else to a tokenizer: pictures, the end of a text."""
        parts = self.pipeline.components.values()
        tokenizers = [part for part in parts if isinstance(part, transformers.PreTrainedTokenizerBase)]
        marks = {mark for tokenizer in tokenizers for mark in tokenizer.all_special_tokens if mark[0] == "<"}
        return re.sub("|".join([r"<\|\w+\|>", *map(re.escape, sorted(marks))]), "", prompt)

    def _callback(self, on_step: Any, before_step: Any) -> dict[str, Any]:
        """The argument by which the pipeline calls ``on_step`` and ``before_step``, if it has one."""
        known = inspect.signature(type(self.pipeline).__call__).parameters
        if "callback_on_step_end" not in known:
            return {"callback": on_step} if on_step and "callback" in known else {}  # its result is not used

        def step_end(pipeline: Any, index: int, timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
            latents = given["latents"] if on_step is None else on_step(index, timestep, given["latents"])
            if before_step is not None and before_step(index, pipeline.scheduler.timesteps) is None:
                pipeline._interrupt = True
            return {"latents": latents}

        return {"callback_on_step_end": step_end}


def read_index(source: str) -> dict[str, Any]:
    """model_index.json of a folder or a repository of the hub: the class of a pipeline and of its components.

    Raises UserError for a folder without one, OSError for a folder that does not exist, and whatever
    ``huggingface_hub`` raises."""
    path = Path(source) / INDEX
    if not Path(source).is_dir():
        try:
            path = Path(hf_hub_download(source, INDEX, local_files_only=is_offline_mode()))
        except HFValidationError:
            raise FileNotFoundError(f"no folder, and no hub id: {source}") from None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        index = None
    if not isinstance(index, dict):
        raise UserError(f"model.diffusion.pretrained '{source}' has no readable {INDEX}, so it is not a pipeline")
    return index


def load_pipeline(cls: Any, source: str, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline of class ``cls`` in ``source``. Each of its models is loaded whole, or not at all.

    Raises UserError like ``load_published``, and whatever the libraries raise."""
    local: dict[str, Any] = {"local_files_only": is_offline_mode()}
    parts: dict[str, Any] = {}
    for name, (library, kind) in ((n, v) for n, v in index.items() if isinstance(v, list) and len(v) == 2):
        model = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), str(kind), None)
        if isinstance(model, type) and issubclass(model, nn.Module):
            precision = {"torch_dtype" if library == "diffusers" else "dtype": dtype}
            parts[name] = load_published(model, source, subfolder=name, **precision, **local)
        elif kind == "Qwen2VLProcessor" and not is_torchvision_available():  # which it needs for videos alone
            parts[name] = PictureProcessor.load(source, name, **local)
    try:
        return cls.from_pretrained(source, torch_dtype=dtype, use_safetensors=True, **local, **parts)
    except (ImportError, NameError) as e:  # diffusers and transformers leave out imports of packages that are missing
        raise UserError(
            f"model.diffusion.pretrained '{source}': {cls.__name__} needs a package that is not installed "
            f"({reason(e)}); most likely torchvision, in the version that fits torch {torch.__version__}"
        ) from None


class PictureProcessor(transformers.ProcessorMixin):
    """Qwen2-VL's processor without videos: the words with one token per merged patch, and the patches."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        super().__init__(image_processor, tokenizer)

    @classmethod
    def load(cls, source: str, folder: str, **options: Any) -> PictureProcessor:
        # not the Auto classes, which offline ask the hub for a config.json that this folder does not have
        kinds = (transformers.Qwen2VLImageProcessorPil, transformers.Qwen2Tokenizer)
        return cls(*(kind.from_pretrained(source, subfolder=folder, **options) for kind in kinds))

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """text: one or many, with an image token per picture. images: their pictures, in order."""
        seen = self.image_processor(images, return_tensors="pt")
        counts = iter((seen["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist())
        texts = []
        for one in [text] if isinstance(text, str) else text:
            first, *rest = one.split(IMAGE_TOKEN)
            texts.append(first + "".join(IMAGE_TOKEN * next(counts) + part for part in rest))
        return transformers.BatchFeature({**self.tokenizer(texts, **options), **seen})
