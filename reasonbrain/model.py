"""The ReasonBrain model (arXiv:2507.01908): runs the slots in order and computes L = L_MLLM + L_DM.

    encode -> cues -> guide -> align -> enhance -> diffuse

A null slot is None here. Its output is an empty sequence, which the other slots accept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from reasonbrain.config.schema import EditConfig, ModelConfig, ThinkingConfig, slot_config
from reasonbrain.errors import UserError, first_line, out_of_memory, reason
from reasonbrain.interfaces import Condition, Cues, Features, Guidance, Inputs, no_mask, no_tokens
from reasonbrain.objects import find_objects
from reasonbrain.plugin import Plugin
from reasonbrain.registry import SLOTS, plugin
from reasonbrain.thinking import question, think
from reasonbrain.utils.bounds import TENSORS, at_most
from reasonbrain.utils.hub import hub_trouble


class ReasonBrain(nn.Module):
    """The whole model.

    slots: the plug-ins by slot name (``registry.SLOTS``), without the null slots. width: D, the width of all sequences
    between slots. thinking: how the MLLM is asked for a sentence; None: with the instruction alone."""

    def __init__(self, slots: dict[str, Plugin], width: int, thinking: ThinkingConfig | None = None) -> None:
        super().__init__()
        self.width, self.thinking = width, thinking
        self.parts = nn.ModuleDict({name.replace(".", "_"): module for name, module in slots.items()})

    @classmethod
    def from_config(
        cls, cfg: ModelConfig, weights: bool = True, made: Callable[[str, Plugin], None] | None = None
    ) -> ReasonBrain:
        """Builds every slot.

        weights: False initialises published models randomly instead of loading them (``Plugin.without_weights``), for
        the meta device or for loading other weights afterwards. made: called as ``made(slot, plug-in)`` after each slot
        is built and before the next one.

        Raises UserError if published weights cannot be loaded."""
        slots = {}
        seed = int(torch.randint(1 << 62, (), device="cpu"))
        for number, name in enumerate(SLOTS):
            params = slot_config(cfg, name)
            if params is None:
                continue
            torch.manual_seed(seed + number)  # the initial weights of a slot do not depend on the other slots
            params = dict(params)
            plug = plugin(name, params.pop("name"))
            slots[name] = build_plugin(name, plug, cfg.width, params if weights else plug.without_weights(params))
            if made:
                made(name, slots[name])
        return cls(slots, cfg.width, cfg.thinking)

    def slot(self, name: str) -> Plugin | None:
        """The plug-in in a slot, or None."""
        key = name.replace(".", "_")
        return self.parts[key] if key in self.parts else None

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def segment(self, images: Tensor) -> Tensor:
        """Segments images [B, 3, H, W] in 0..1. Returns label maps [B, H, W] long, all -1 without a region branch."""
        region = self.slot("frce.region")
        if region is None:
            return torch.full((len(images), *images.shape[-2:]), -1, device=images.device)
        return region.segment(images)

    def make_inputs(
        self,
        images: Tensor,
        instructions: Sequence[str],
        objects: Sequence[Sequence[str] | None] | None = None,
        regions: Tensor | None = None,
        ready: dict[str, Tensor] | None = None,
        sentences: list[str] | None = None,
    ) -> Inputs:
        """Makes a batch on the device of the images.

        images: [B, 3, H, W] in 0..1. objects: key objects per row; where None, they are extracted from the instruction.
        regions: label maps [B, H, W]; if None, the images are segmented. ready: precomputed ``image_features`` of the
        images. sentences: what the MLLM would otherwise be asked for."""
        given = objects if objects is not None else [None] * len(instructions)
        found = [find_objects(i) if o is None else list(o) for i, o in zip(instructions, given, strict=True)]
        regions = self.segment(images) if regions is None else regions.to(images.device).long()
        ready = {slot: features.to(images.device) for slot, features in (ready or {}).items()}
        return Inputs(images, list(instructions), found, regions, ready, sentences)

    def image_features(self, images: Tensor) -> dict[str, Tensor]:
        """``Plugin.image_features`` [B, ...] of images [B, 3, H, W] in 0..1, by slot. Slots whose features depend on
        trainable modules are left out."""
        found = {slot: part.image_features(images) for slot, part in self.prepared_slots().items()}
        return {slot: features for slot, features in found.items() if features is not None}

    def prepared_slots(self) -> dict[str, Plugin]:
        """The plug-ins whose ``image_features`` are computed by frozen modules only, by slot."""
        found = {slot: part for slot in SLOTS if (part := self.slot(slot))}
        return {slot: part for slot, part in found.items() if len(part.prepares()) == len(part.preparing)}

    @property
    def reads_sentence(self) -> bool:
        """Whether a slot reads the sentence that the MLLM generates instead of the instruction, or after it (MGIE's
        expressive instruction, arXiv:2309.17102)."""
        return any(part.reads_sentence for part in self.parts.values())

    def reason(self, inputs: Inputs) -> Inputs:
        """Returns the inputs with ``sentences``, generated by the MLLM unless already there. Without an MLLM they stay
        None."""
        mllm = self.slot("mllm")
        if mllm is None or inputs.sentences is not None:
            return inputs
        if self.thinking is not None:
            return think(self.thinking, mllm, inputs)
        return replace(inputs, sentences=mllm.reason(inputs))

    def text_lengths(self, instruction: str) -> tuple[int, ...]:
        """What instructions must share so that their rows do not depend on each other in a batch: the
        ``Mllm.text_length`` of the instruction, and of the question about it."""
        mllm = self.slot("mllm")
        if mllm is None:
            return ()
        asked = [instruction] if self.thinking is None else [instruction, question(self.thinking, instruction)]
        return tuple(map(mllm.text_length, asked))

    def encode(self, inputs: Inputs) -> Features:
        """E_I(I) and E_T(H). With ``reads_sentence``, E_T encodes the MLLM's sentence in place of H."""
        encoders = self.slot("encoders")
        if encoders is not None:
            return encoders(self.reason(inputs) if self.reads_sentence else inputs)
        empty = inputs.images.new_zeros(len(inputs.images), 0, self.width)
        mask = no_mask(empty)
        return Features(empty, (0, 0), empty, mask, empty.new_zeros(len(empty), 0), empty, mask)

    def cues(self, features: Features, inputs: Inputs) -> Cues:
        """FRCE: R_V from the patch branch and the region branch, then R_T."""
        patch, region, text = (self.slot(f"frce.{b}") for b in ("patch", "region", "text"))
        none = features.patches.new_zeros(len(features.patches), 0, self.width)
        patches = patch(features) if patch else none
        regions, regions_mask = region(features, inputs.regions) if region else (none, no_mask(none))
        patches_mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        visual = torch.cat([patches, regions], dim=1)
        visual_mask = torch.cat([patches_mask, regions_mask], dim=1)
        textual, textual_mask = text(features, visual, visual_mask) if text else (none, no_mask(none))
        return Cues(visual, visual_mask, textual, textual_mask)

    def guide(self, inputs: Inputs, cues: Cues) -> Guidance:
        """The MLLM's hidden states V of the [IMG] tokens, and L_MLLM. Without an MLLM, no tokens and a loss of 0."""
        mllm = self.slot("mllm")
        if mllm is not None:
            return mllm(inputs, cues)
        return Guidance(no_tokens(cues.visual), cues.visual.new_zeros(()))

    def align(self, guidance: Guidance) -> Tensor:
        """V -> V^. Without a connector, V unchanged."""
        connector = self.slot("connector")
        return connector(guidance.hidden) if connector is not None else guidance.hidden

    def enhance(self, features: Features, cues: Cues, aligned: Tensor) -> Condition:
        """R-_V and R-_T. Without a CME, the guidance and the text tokens unchanged."""
        cme = self.slot("cme")
        if cme is not None:
            return cme(features, cues, aligned)
        return Condition(aligned, features.text, features.pooled)

    def edit_settings(self, edit: EditConfig) -> EditConfig:
        """``edit`` with the diffusion model's own values in place of null.

        Raises UserError for a scale that it does not take."""
        diffusion, given = self.slot("diffusion"), asdict(edit)
        own: dict[str, Any] = {"steps": 28} if diffusion is None else diffusion.edit_defaults
        for key in ("guidance", "image_guidance"):
            if diffusion is not None and given[key] is not None and key not in own:
                raise UserError(f"edit.{key}: '{diffusion.plugin_name}' does not take it here; set it to null")
        return replace(edit, **{key: value for key, value in own.items() if given[key] is None})

    def scales(self, edit: EditConfig) -> dict[str, Any]:
        """The scales of ``edit`` that the diffusion model takes, as arguments of its ``sample``."""
        diffusion = self.slot("diffusion")
        return {} if diffusion is None else {k: getattr(edit, k) for k in diffusion.edit_defaults if k != "steps"}

    def condition(self, inputs: Inputs) -> tuple[Condition, Tensor]:
        """Runs the conditioning path, everything before the diffusion model. Returns the condition and L_MLLM."""
        condition, lm, _ = self._condition(inputs)
        return condition, lm

    def _condition(self, inputs: Inputs) -> tuple[Condition, Tensor, Tensor]:
        """``condition``, and V^."""
        if self.reads_sentence:
            inputs = self.reason(inputs)
        features = self.encode(inputs)
        cues = self.cues(features, inputs)
        guidance = self.guide(inputs, cues)
        rows = len(guidance.hidden)
        if guidance.null is not None:
            guidance = guidance._replace(hidden=torch.cat([guidance.hidden, guidance.null]))
        aligned, of_nothing = self.align(guidance).tensor_split([rows])
        nulls = [part.expand(rows, -1, -1) for part in (of_nothing, features.null) if part is not None and len(part)]
        null = torch.cat(nulls, dim=1) if nulls else None
        condition = self.enhance(features, cues, aligned)
        prompts = inputs.sentences or inputs.instructions
        return condition._replace(prompts=prompts, words=inputs.words, null=null), guidance.lm_loss, aligned

    def align_loss(self, aligned: Tensor, prompts: Sequence[str]) -> Tensor:
        """The mean squared difference of V^ and the text encoder's states of the prompts, a scalar.

        Raises UserError if these have another length or width."""
        encoders = self.slot("encoders")
        if encoders is None:
            raise UserError("train.align_weight: model.encoders is null, so there are no text states to align with")
        states = encoders.text_states(prompts, aligned.device)
        if states.shape != aligned.shape:
            (tokens, wide), (has, width) = states.shape[1:], aligned.shape[1:]
            raise UserError(
                f"train.align_weight: the text encoder has {tokens} states of width {wide}, but V^ has {has} of width "
                f"{width}; set model.connector.queries={tokens} and model.width={wide}"
            )
        return F.mse_loss(aligned.float(), states.float())

    def forward(
        self,
        inputs: Inputs,
        source: Tensor,
        target: Tensor,
        seeds: Sequence[int],
        draws: int = 1,
        lm_weight: float = 1.0,
        dm_weight: float = 1.0,
        align_weight: float = 0.0,
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch as scalars: ``loss`` = lm_weight x ``lm`` + dm_weight x ``dm`` +
        align_weight x ``align``, and ``dm/0.00-0.25`` to ``dm/0.75-1.00``, the diffusion loss per range of noise levels
        (NaN if no draw falls into the range). ``align`` is left out if its weight is 0. ``dm`` is 0 if its weight is 0,
        and in rows without ``Inputs.edits``.

        source, target: latents [B, C, h, w] from the diffusion plug-in's ``encode``. seeds: one per row; the noise of a
        row depends on its seed only. draws: noise levels per target, which share one run of the conditioning path."""
        condition, lm, aligned = self._condition(inputs)
        loss, named = lm_weight * lm, {"lm": lm, "dm": lm.new_zeros(())}
        if align_weight:
            named["align"] = self.align_loss(aligned, condition.prompts)
            loss = loss + align_weight * named["align"]
        diffusion = self.slot("diffusion")
        if diffusion is None or not dm_weight:
            return {"loss": loss, **named}
        errors, sigma = diffusion.errors(condition, source, target, seeds, draws)
        counts = torch.ones_like(sigma, dtype=torch.bool)
        if inputs.edits is not None:
            counts = inputs.edits.repeat_interleave(draws)
            errors = errors * counts
        named["dm"] = errors.mean()
        for low in (0.0, 0.25, 0.5, 0.75):
            inside = (low < sigma) & (sigma <= low + 0.25) & counts
            named[f"dm/{low:.2f}-{low + 0.25:.2f}"] = (errors.detach() * inside).sum() / inside.sum()
        return {"loss": loss + dm_weight * named["dm"], **named}


def build_plugin(slot: str, plug: Any, width: int, params: dict[str, Any]) -> Plugin:
    """Builds one plug-in and loads its published weights, if any. Raises UserError if they cannot be loaded, if
    ``params`` ask for more than ``TENSORS`` tensors, and for whatever the plug-in raises for ``params``."""
    try:
        with at_most(TENSORS, f"model.{slot}"):
            return plug(width=width, **params)
    except UserError:
        raise
    except Exception as e:
        told = _user_error(slot, plug, params, e)
        if told is None:
            raise
        raise told from e


def _user_error(slot: str, plug: Any, params: dict[str, Any], error: Exception) -> UserError | None:
    """What to tell the user of an error that parameters or weights led to; None if it is neither's fault."""
    sources = {key: params[key] for key in plug.weight_sources if params.get(key)}
    of_files = isinstance(error, (OSError, SafetensorError))
    for key, source in sources.items():
        if Path(source).is_dir():
            continue
        is_path = source.count("/") > 1 or source[0] in "./~"  # a hub id is owner/name
        if is_path and of_files:
            return UserError(
                f"model.{slot}.{key}: folder '{source}' does not exist; give one that holds weights, or a hub id"
            )
        if not is_path and (trouble := hub_trouble(error, source)):
            return UserError(f"model.{slot}.{key} '{source}': {trouble}")
    if of_files:
        given = " and ".join(f"model.{slot}.{key} '{source}'" for key, source in sources.items())
        return UserError(f"{given} cannot be loaded: {first_line(error)}")
    of_parameters = (ValueError, TypeError, AssertionError, ArithmeticError, LookupError, RuntimeError)
    if isinstance(error, of_parameters) and not out_of_memory(error):
        return UserError(f"model.{slot}: '{plug.plugin_name}' cannot be built from its parameters: {reason(error)}")
    return None
