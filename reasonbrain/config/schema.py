"""The sections of a configuration, typed. Nothing here imports anything of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FrceConfig:
    """The three branches of FRCE."""

    patch: Any = None
    region: Any = None
    text: Any = None


TRACKERS = ("tensorboard", "wandb", "trackio")
ATTENTION = ("auto", "sdpa", "math", "flash_attention_2", "flash_attention_3")


@dataclass
class ModelConfig:
    """``width`` is D, the width of everything that passes from slot to slot. ``attention``: the kernel for it, see
    attention.py; ``auto`` takes the fastest that works where the model runs."""

    width: int = 768
    attention: str = "auto"
    encoders: Any = None
    frce: FrceConfig = field(default_factory=FrceConfig)
    mllm: Any = None
    connector: Any = None
    cme: Any = None
    diffusion: Any = None


@dataclass
class EditConfig:
    """``size``: longest side in pixels at which an edit is computed (larger pictures are scaled down for it and
    the change is scaled back up; null: no limit). ``guidance``: the value of FLUX's distilled guidance.
    ``preserve``: keep the source's own pixels wherever the edit changed nothing."""

    steps: int = 28
    guidance: float = 2.5
    size: int | None = 1024
    preserve: bool = True


@dataclass
class PartConfig:
    """A data set of a mixture; ``weight`` is its share, in proportion to the others'."""

    name: str = "manifest"
    path: str | None = None
    weight: float = 1.0


@dataclass
class DataConfig:
    """``name``: ``mini``, a reader (docs/data.md) with ``path``: a file, a folder or a pattern of files, or ``mixture``
    with ``mixture``: several of these. ``size``: a picture has about size x size pixels; one that is read keeps its
    aspect ratio. ``count``: records of ``mini``. ``turns``: how often a kind of ``mini`` takes its turn (one not named:
    once). ``skip_bad``: a record that cannot be read is counted and the next one of its size takes its place, instead
    of ending the run. ``features``: a folder made by `reasonbrain data cache`. ``validation``: a path for
    ``train.validate_every``; ``mini`` has its own split."""

    name: str = "mini"
    path: str | None = None
    mixture: list[PartConfig] = field(default_factory=list)
    count: int = 20000
    turns: dict[str, int] = field(default_factory=dict)
    size: int = 64
    seed: int = 0
    skip_bad: bool = False
    features: str | None = None
    validation: str | None = None


@dataclass
class SlotTrainConfig:
    """How one slot trains. null: as the run does. ``train``: false freezes it."""

    train: bool = True
    lr: float | None = None
    weight_decay: float | None = None
    warmup: int | None = None


@dataclass
class TrainConfig:
    """One training run.

    ``start``: a checkpoint to start from instead of published parts (`reasonbrain init` makes one of them).
    ``batch_size``: records in an optimizer step, over all processes. ``micro_batch``: records in one forward pass of
    one process (null: its whole share); what is left is accumulated. ``draws``: noise levels a record is trained at in
    one step, for one pass through the conditioning path.
    ``optimizer``: ``adamw``, ``adamw_8bit``, or ``muon`` for the matrices between hidden layers. The rate warms
    up over ``warmup`` steps, then falls by a cosine to ``final_lr`` x ``lr``. ``slots``: other settings for single
    slots, named with "_" (``frce_patch``). ``ema``: decay of the averaged weights, those that a finished run writes.
    ``bad_steps``: how many steps in a row may be skipped for a loss that is no number before the run ends.
    ``checkpointing``: slots whose blocks keep only their inputs for the backward pass and compute the rest again.
    ``compile``: slots whose repeated blocks torch.compile takes.
    ``save_every``, ``keep``: a checkpoint every so many steps, and how many of them stay.
    ``validate_every``: the loss of 16 validation records and edits of four, every so many steps. ``tracker``: where to
    watch the run, beside RUN/log.jsonl: ``tensorboard``, ``wandb``, ``trackio`` or null.
    ``lm_weight`` weighs L_MLLM in L = L_MLLM + L_DM (the paper's: 1)."""

    start: str | None = None
    steps: int = 1000
    batch_size: int = 16
    micro_batch: int | None = None
    draws: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: int = 100
    final_lr: float = 0.05
    slots: dict[str, SlotTrainConfig] = field(default_factory=dict)
    grad_clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    log_every: int = 50
    validate_every: int | None = None
    tracker: str | None = "tensorboard"
    bad_steps: int = 5
    checkpointing: list[str] = field(default_factory=list)
    compile: list[str] = field(default_factory=list)
    bf16: bool = False
    lm_weight: float = 1.0


@dataclass
class Config:
    """Everything a run or an edit needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def slot_config(model: ModelConfig, slot: str) -> dict[str, Any] | None:
    """The slot's mapping, or None."""
    node: Any = model
    for part in slot.split("."):
        node = getattr(node, part)
    return node
