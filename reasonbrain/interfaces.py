"""The data that passes between the slots, and one Protocol per slot.

    Inputs -> encoders -> Features -> frce -> Cues -> mllm -> Guidance -> connector -> V^ -> cme -> Condition
    Condition, latents -> diffusion -> loss or edited latents

Shapes: B images, N image patches, T text tokens, K object tokens, M visual cues, r [IMG] tokens, Q queries, D the
common width (``model.width``). All sequences between slots have width D; each plug-in projects to and from it.
Outputs of modules are named tuples because ZeRO-3's hooks find tensors in these, but not in dataclasses.
Masks are bool, true for valid tokens. Any sequence may have length 0; a null slot returns such a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass
class Inputs:
    """A batch for the model. All images of a batch have the same size.

    images: [B, 3, H, W] in 0..1. objects: the names of the key objects of each row. regions: [B, H, W] long, label maps
    of the segmentation (-1: no region). ready: precomputed ``Plugin.image_features`` by slot. sentences: the MLLM's
    sentence for each row (``Mllm.reason``), if already generated.
    """

    images: Tensor
    instructions: list[str]
    objects: list[list[str]]
    regions: Tensor
    ready: dict[str, Tensor] = field(default_factory=dict)
    sentences: list[str] | None = None


class Features(NamedTuple):
    """The outputs of the encoders, E_I(I) and E_T(H).

    patches: [B, N, D] in row-major order over ``grid`` = (rows, columns). text: [B, T, D]. pooled: [B, P], the pooled
    text embedding for the diffusion model. objects: [B, K, D], the tokens of the key objects' names."""

    patches: Tensor
    grid: tuple[int, int]
    text: Tensor
    text_mask: Tensor
    pooled: Tensor
    objects: Tensor
    objects_mask: Tensor


class Cues(NamedTuple):
    """The outputs of FRCE. visual: R_V [B, M, D], patch cues followed by region cues. textual: R_T [B, K, D]."""

    visual: Tensor
    visual_mask: Tensor
    textual: Tensor
    textual_mask: Tensor


class Guidance(NamedTuple):
    """hidden: V [B, r, D], the hidden states of the [IMG] tokens. lm_loss: L_MLLM (eq. A1), a scalar."""

    hidden: Tensor
    lm_loss: Tensor


class Condition(NamedTuple):
    """The input of the diffusion model. visual: [B, Q, D]. textual: [B, Q', D]. pooled: [B, P].

    focus: [B, rows, columns], the fraction of the visual-oriented enhancer's attention on each patch, or None."""

    visual: Tensor
    textual: Tensor
    pooled: Tensor
    focus: Tensor | None = None


def no_tokens(like: Tensor) -> Tensor:
    """An empty sequence [B, 0, D] for a tensor [B, ..., D]."""
    return like.new_zeros(like.shape[0], 0, like.shape[-1])


def no_mask(like: Tensor) -> Tensor:
    """The mask [B, 0] of an empty sequence."""
    return torch.zeros(like.shape[0], 0, dtype=torch.bool, device=like.device)


class Encoders(Protocol):
    """Slot ``encoders``: E_I and E_T. With ``reads_sentence``, E_T encodes ``Inputs.sentences`` instead of the
    instructions; the sentences are then always given."""

    @property
    def reads_sentence(self) -> bool: ...

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
    and text length, the results of a row do not depend on the other rows. ``reason``: generates one sentence per
    row."""

    def __call__(self, inputs: Inputs, cues: Cues) -> Guidance: ...

    def text_length(self, instruction: str) -> int: ...

    def reason(self, inputs: Inputs, max_new_tokens: int = 96) -> list[str]: ...


class Connector(Protocol):
    """Slot ``connector``: V [B, r, D] -> V^ [B, Q, D]."""

    def __call__(self, hidden: Tensor) -> Tensor: ...


class Cme(Protocol):
    """Slot ``cme``: the Cross-Modal Enhancer."""

    def __call__(self, features: Features, cues: Cues, guidance: Tensor) -> Condition: ...


class Diffusion(Protocol):
    """Slot ``diffusion``: images are [B, 3, H, W] in 0..1 with H and W multiples of ``multiple``; latents are
    [B, C, h, w]."""

    multiple: int

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def errors(
        self, condition: Condition, source: Tensor, target: Tensor, seeds: Sequence[int], draws: int = 1
    ) -> tuple[Tensor, Tensor]: ...

    def sample(self, condition: Condition, source: Tensor, noise: Tensor, steps: int, **kwargs: object) -> Tensor: ...
