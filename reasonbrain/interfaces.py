"""The data that passes between the slots, and one Protocol per slot.

    Inputs -> encoders -> Features -> frce -> Cues -> mllm -> Guidance -> connector -> V^ -> cme -> Condition
    Condition, latents or images -> diffusion -> loss, or edited latents or images

Shapes: B images, N image patches, T text tokens, K object tokens, M visual cues, r [IMG] tokens, Q queries, D the
common width (``model.width``). All sequences between slots have width D; each plug-in projects to and from it.
Outputs of modules are named tuples because ZeRO-3's hooks find tensors in these, but not in dataclasses.
Masks are bool, true for valid tokens. Any sequence may have length 0; a null slot returns such a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Noise: TypeAlias = Tensor | Sequence[torch.Generator | None]  # what ``Diffusion.sample`` starts from


@dataclass
class Inputs:
    """A batch for the model. All images of a batch have the same size.

    images: [B, 3, H, W] in 0..1. objects: the names of the key objects of each row. regions: [B, H, W] long, label maps
    of the segmentation (-1: no region). ready: precomputed ``Plugin.image_features`` by slot. sentences: the sentence
    of each row that says what the edit shows, if already generated or given. words: precomputed
    ``Plugin.prompt_features`` of the sentences, or of the instructions where there are none. notes: for each row why
    its sentence is the instruction itself, or "". edits: [B] bool, false for rows that have no edit to learn, and so no
    L_DM; None: all have one.
    """

    images: Tensor
    instructions: list[str]
    objects: list[list[str]]
    regions: Tensor
    ready: dict[str, Tensor] = field(default_factory=dict)
    sentences: list[str] | None = None
    words: dict[str, Tensor] | None = None
    notes: list[str] = field(default_factory=list)
    edits: Tensor | None = None


class Features(NamedTuple):
    """The outputs of the encoders, E_I(I) and E_T(H).

    patches: [B, N, D] in row-major order over ``grid`` = (rows, columns), or of another width if the CME reads them as
    they are. text: [B, T, D]. pooled: [B, P], the pooled text embedding for the diffusion model. objects: [B, K, D],
    the tokens of the key objects' names. null: [B, T, D], the tokens of an empty text, or None."""

    patches: Tensor
    grid: tuple[int, int]
    text: Tensor
    text_mask: Tensor
    pooled: Tensor
    objects: Tensor
    objects_mask: Tensor
    null: Tensor | None = None


class Cues(NamedTuple):
    """The outputs of FRCE. visual: R_V [B, M, D], patch cues followed by region cues. textual: R_T [B, K, D]."""

    visual: Tensor
    visual_mask: Tensor
    textual: Tensor
    textual_mask: Tensor


class Guidance(NamedTuple):
    """hidden: V [B, r, H], the hidden states of the [IMG] tokens; H is D, or the MLLM's own width if the connector
    reads them as they are. lm_loss: L_MLLM (eq. A1), a scalar. null: [1, r, H], V of no instruction, or None."""

    hidden: Tensor
    lm_loss: Tensor
    null: Tensor | None = None


class Condition(NamedTuple):
    """The input of the diffusion model. visual: [B, Q, D]. textual: [B, Q', D]. pooled: [B, P].

    focus: [B, rows, columns], the fraction of the visual-oriented enhancer's attention on each patch, or None.
    prompts: the sentence of each row, or its instruction where no sentence was generated. null: [B, Q + Q', D], both
    sequences without an instruction, or None. map: [B, C, rows, columns], what a diffusion model with C channels in its
    first hidden map adds to it, or None. words: precomputed ``Plugin.prompt_features`` of the prompts, or None."""

    visual: Tensor
    textual: Tensor
    pooled: Tensor
    focus: Tensor | None = None
    prompts: Sequence[str] = ()
    null: Tensor | None = None
    map: Tensor | None = None
    words: dict[str, Tensor] | None = None


def no_tokens(like: Tensor) -> Tensor:
    """An empty sequence [B, 0, D] for a tensor [B, ..., D]."""
    return like.new_zeros(like.shape[0], 0, like.shape[-1])


def no_mask(like: Tensor) -> Tensor:
    """The mask [B, 0] of an empty sequence."""
    return torch.zeros(like.shape[0], 0, dtype=torch.bool, device=like.device)


class Encoders(Protocol):
    """Slot ``encoders``: E_I and E_T. With ``reads_sentence``, E_T encodes ``Inputs.sentences`` instead of the
    instructions; the sentences are then always given. ``text_states``: [B, T, C], what the frozen text encoder makes of
    texts, which ``train.align_weight`` compares V^ with."""

    @property
    def reads_sentence(self) -> bool: ...

    def text_states(self, texts: Sequence[str], device: torch.device) -> Tensor: ...

    def __call__(self, inputs: Inputs) -> Features: ...


class PatchBranch(Protocol):
    """Slot ``frce.patch``: local visual cues [B, M, D]."""

    def __call__(self, features: Features) -> Tensor: ...


class RegionBranch(Protocol):
    """Slot ``frce.region``: ``segment`` returns label maps [B, H, W] without gradients; ``forward`` turns them into
    cues [B, R, D] and a mask [B, R]."""

    def segment(self, images: Tensor) -> Tensor: ...

    def __call__(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]: ...


class TextBranch(Protocol):
    """Slot ``frce.text``: textual cues R_T [B, K, D] and mask [B, K] from object tokens and visual cues."""

    def __call__(self, features: Features, visual: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]: ...


class Mllm(Protocol):
    """Slot ``mllm``: the multimodal LLM with its [IMG] tokens.

    ``text_length``: number of tokens of an instruction with its prompt and padding. With equal batch size, image size
    and text length, the results of a row do not depend on the other rows. ``reason``: generates one answer per row to
    what ``inputs.instructions`` asks about ``inputs.images``."""

    def __call__(self, inputs: Inputs, cues: Cues) -> Guidance: ...

    def text_length(self, instruction: str) -> int: ...

    def reason(self, inputs: Inputs, max_new_tokens: int = 96) -> list[str]: ...


class Connector(Protocol):
    """Slot ``connector``: V [B, r, H] -> V^ [B, Q, D]."""

    def __call__(self, hidden: Tensor) -> Tensor: ...


class Cme(Protocol):
    """Slot ``cme``: the Cross-Modal Enhancer."""

    def __call__(self, features: Features, cues: Cues, guidance: Tensor) -> Condition: ...


class Diffusion(Protocol):
    """Slot ``diffusion``: images are [B, 3, H, W] in 0..1 with H and W multiples of ``multiple``; latents are
    [B, C, h, w].

    ``edit_defaults``: ``steps``, and the scales of ``EditConfig`` that ``sample`` takes, with their defaults. With
    ``edits_pixels`` the images themselves take the place of latents, and ``sample`` takes a generator per row in place
    of noise (None: the global one), because the model draws its own. Its rows do not depend on each other if
    ``draws_rows_alone``. With ``reads_sentence``, ``Condition.prompts`` are sentences.

    ``sample`` calls ``before_step(index, all timesteps)`` before every step, which returns the guidance value of the
    step, or None to leave it out; and ``on_step(index, timestep, latents)`` after it, which returns the latents to
    continue with. A model that edits pixels may call neither."""

    multiple: int
    edits_pixels: bool
    draws_rows_alone: bool

    @property
    def edit_defaults(self) -> dict[str, Any]: ...

    @property
    def reads_sentence(self) -> bool: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def errors(
        self, condition: Condition, source: Tensor, target: Tensor, seeds: Sequence[int], draws: int = 1
    ) -> tuple[Tensor, Tensor]: ...

    def sample(
        self,
        condition: Condition,
        source: Tensor,
        noise: Noise,
        steps: int,
        on_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        before_step: Callable[[int, Tensor], float | None] | None = None,
        **scales: Any,
    ) -> Tensor: ...
