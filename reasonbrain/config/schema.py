"""The typed sections of a configuration. The string below a field documents it; ``reference.py`` reads these strings.

This module imports nothing else of this package.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

TRACKERS = ("tensorboard", "wandb", "trackio")
OPTIMIZERS = ("adamw", "adamw_8bit", "muon")
EDIT_DTYPES = ("float32", "bfloat16", "float16", "fp8", "nf4")
OFFLOADS = ("model", "group")
CACHES = ("first_block", "taylor")
ATTENTION = ("auto", "sdpa", "math", "flash_attention_2", "flash_attention_3")

Slot = Any  # {name: <plug-in>, ...its parameters}, or None
LARGEST_SEED = 2**32 - 1
FURTHER = {"further": True}  # marks the field that holds a section's further keys; in YAML they stand in the section


class Range(NamedTuple):
    """The values that a number may have, both ends included; never NaN or infinite."""

    least: float
    most: float = math.inf

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and math.isfinite(value) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{self.least} or more" if self.most == math.inf else f"from {self.least} to {self.most}"


def number(least: float, most: float = math.inf, **default: Any) -> Any:
    """A field whose number, unless it is null, must be in a range. ``default``: as in ``dataclasses.field``."""
    return field(metadata={"range": Range(least, most)}, **default)


@dataclass
class FrceConfig:
    """The three branches of FRCE. ``model.frce=null`` leaves out all of them."""

    patch: Slot = None
    """Patch branch: local visual cues from the image patches."""

    region: Slot = None
    """Region branch: segments the image and gives object-level visual cues."""

    text: Slot = None
    """Textual branch: R_T, the cues that keep the identity of the key objects."""


@dataclass
class ThinkingConfig:
    """How the MLLM is asked for the sentence that an edit follows. Its answer is a JSON object of short texts."""

    question: str | None = None
    """The question. ``{instruction}``, ``{answer}`` (the form of the answer) and ``{words}`` are filled in. null: the
    shipped one (reasonbrain/thinking.py)."""

    answer: dict[str, str] = field(default_factory=dict)
    """The texts of the answer: a key for each, and what to write there. In this order they make the sentence. The names
    of the objects are asked for besides. Empty: what changes, how it looks then, and what stays."""

    words: int = number(1, 1000, default=80)
    """Words of the sentence."""

    retries: int = number(0, 10, default=2)
    """How often an answer that cannot be read is asked for again. After that, the instruction itself is used."""


@dataclass
class ModelConfig:
    """The model. A slot holds ``{name: <plug-in>, ...its parameters}``, or null to leave that part out."""

    width: int = number(1, 65536, default=768)
    """D, the width of every sequence that passes from slot to slot. Each plug-in projects to and from it."""

    attention: str = "auto"
    """Attention kernel: ``auto`` (the fastest that works on the device), ``sdpa``, ``math``, ``flash_attention_2`` or
    ``flash_attention_3``."""

    encoders: Slot = None
    """E_I and E_T: image patches and text tokens."""

    frce: FrceConfig = field(default_factory=FrceConfig)

    thinking: ThinkingConfig | None = None
    """How the MLLM is asked for the sentence that says what the edit shows. null: it gets the instruction alone, and
    its whole answer is the sentence."""

    mllm: Slot = None
    """The multimodal LLM with LoRA and its [IMG] tokens."""

    connector: Slot = None
    """Maps the hidden states V of the [IMG] tokens to the guidance V^."""

    cme: Slot = None
    """The Cross-Modal Enhancer: gives the condition of the diffusion model from features, cues and V^."""

    diffusion: Slot = None
    """The diffusion model that draws the edit, with its autoencoder and noise schedule."""


@dataclass
class EditConfig:
    """How an image is edited."""

    steps: int | None = number(1, 1000, default=None)
    """Sampling steps. null: the diffusion model's own number, 28 for FLUX."""

    guidance: float | None = number(0, 1000, default=None)
    """How closely the edit follows the words: FLUX's distilled guidance, which costs no second pass, or the scale of
    classifier-free guidance. null: the diffusion model's own value, 2.5 for FLUX."""

    image_guidance: float | None = number(0, 1000, default=None)
    """How closely the edit follows the source, for diffusion models with this second scale (InstructPix2Pix). null: the
    model's own value."""

    rounds: int = number(1, 20, default=1)
    """How often an image is edited: the MLLM reviews an edit, and writes the sentence anew for the next. The best edit
    is kept. Needs ``model.thinking``. 1: edits are not reviewed."""

    candidates: int = number(1, 64, default=1)
    """Edits per round, from different noise, of which the best by the same review is kept."""

    size: int | None = number(1, 65536, default=1024)
    """Pixel budget: an edit is computed at about ``size`` x ``size`` pixels, at one of the sizes that training with
    ``data.size`` uses. Images are scaled up or down to it, and the edit is scaled back. A diffusion model that takes
    images gets them in their own aspect ratio, never scaled up. null: the image's own size."""

    max_pixels: int = number(1, 178_956_970, default=64_000_000)
    """Pixels of the largest image that is edited. An edit takes 48 bytes of memory per pixel of the image, measured on
    a CPU."""

    familiar: float | None = number(0, 1, default=None)
    """The largest mean difference, 0 to 1, between an image and what the autoencoder makes of it that images like those
    in training have. ``edit`` says so of an image with a larger one. null: not checked."""

    preserve: bool = False
    """Keep the source's own pixels wherever the edit changed nothing: where the mean colours of a small cell of source
    and edit agree. Only the embedded default was tuned for it. A change of texture or of small writing may be lost."""

    preserve_low: float = number(0, 1, default=0.03)
    """Cells whose colours (0 to 1) differ by less than this keep the source's pixels."""

    preserve_high: float = number(0, 1, default=0.08)
    """Cells whose colours differ by more than this are replaced by the edit's; in between, both are mixed."""

    preserve_cells: int = number(1, 65536, default=64)
    """Number of cells along the shorter side of the image."""

    device: str | None = None
    """Where edits are computed: ``cpu``, ``cuda``, ``cuda:1``. null: the accelerator, or the CPU without one."""

    dtype: str | None = None
    """Precision while editing, whatever the model was trained in: ``float32``, ``bfloat16``, ``float16``, or
    ``bfloat16`` with the large layers of MLLM and diffusion model stored as ``fp8`` or ``nf4``. null: ``bfloat16`` on
    an accelerator, ``float32`` on a CPU."""

    offload: str | None = None
    """Keep weights in host memory until they are needed, to edit with little accelerator memory: one ``model`` at a
    time, or one ``group`` of layers. null: no offloading."""

    cache: str | None = None
    """Leave out work of the diffusion transformer where its result hardly changes between steps, with the defaults of
    diffusers: ``first_block`` (FirstBlockCache) or ``taylor`` (TaylorSeer). The edit differs a little. null: exact."""

    compile: bool = False
    """Compile the diffusion model's repeated blocks with ``torch.compile``. The first edit of each size is slow."""


@dataclass
class PartConfig:
    """One data set of a mixture."""

    name: str = "manifest"
    """The reader, as in ``data.name``."""

    path: str | None = None
    """The data, as in ``data.path``."""

    weight: float = 1.0
    """Share of the records drawn from this data set, relative to the weights of the others."""

    options: dict[str, Any] = field(default_factory=dict, metadata=FURTHER)
    """Further keys, as in ``data``."""


@dataclass
class AugmentConfig:
    """Changes words of training instructions at random, so that a model does not rely on single words."""

    share: float = number(0, 1)
    """Share of the instructions that are changed, 0 to 1."""

    drop: float = number(0, 1)
    """Probability that a word of such an instruction is left out."""

    replace: float = number(0, 1)
    """Probability that it is replaced by a random word of the data set's instructions."""


@dataclass
class DataConfig:
    """The training data.

    The keys below are common to all data sets. Naming another data set on the command line drops what the
    configuration file says for the old one: its own keys, ``augment`` and ``given_objects``."""

    name: str | None = None
    """A data set (``reasonbrain modules`` lists them, see also the page on data sets), or ``mixture``. null: none, as
    for editing."""

    path: str | None = None
    """What the data set opens: a file, a folder, or a pattern of files such as ``"shards/*.tar"``."""

    mixture: list[PartConfig] = field(default_factory=list)
    """The data sets of ``data.name=mixture``."""

    size: int = number(1, 65536, default=64)
    """Pixel budget: an image is scaled to about ``size`` x ``size`` pixels and keeps its aspect ratio."""

    augment: AugmentConfig | None = None
    """Random changes of the instructions' words. null: none."""

    given_objects: float = number(0, 1, default=1.0)
    """Share of the rows that get the objects that their record names; the others' are found in the instruction, as for
    an edit. Objects may tell what happens to them, and a model that always gets them reads them instead of the words.
    """

    skip_bad: bool = False
    """Count a record that cannot be read and take the next one of its size, instead of ending the run."""

    features: str | None = None
    """Folder of precomputed features, written by ``reasonbrain data cache``."""

    validation: str | None = None
    """Data for ``train.validate_every``: a path that ``data.name`` reads. null: the validation split of the data set,
    where it has one."""

    options: dict[str, Any] = field(default_factory=dict, metadata=FURTHER)
    """Further keys: the parameters of the data set. ``reasonbrain modules data:NAME`` lists them."""


@dataclass
class SlotTrainConfig:
    """Training settings of one slot. null: the value of the run."""

    train: bool = True
    """``false`` freezes the slot."""

    lr: float | None = number(0, default=None)
    """Peak learning rate."""

    published_lr: float | None = number(0, default=None)
    """Peak learning rate of the slot's published weights and of the adapters on them. null: ``lr``."""

    weight_decay: float | None = number(0, default=None)
    """Weight decay of matrices. Vectors have none."""

    warmup: int | None = number(0, default=None)
    """Warm-up steps."""


@dataclass
class StageConfig:
    """One stage of a training run."""

    name: str
    """Name of the stage, and of its folder, RUN/stages/NAME."""

    data: dict[str, Any] = field(default_factory=dict)
    """Keys of ``data`` that differ in this stage. Naming another data set drops the keys of the old one."""

    train: dict[str, Any] = field(default_factory=dict)
    """Keys of ``train`` that differ in this stage; ``slots`` is merged."""


@dataclass
class TrainConfig:
    """One training run."""

    start: str | None = None
    """Checkpoint to start from, instead of the published weights. ``reasonbrain init`` writes one of those."""

    steps: int = number(1, default=1000)
    """Optimizer steps."""

    batch_size: int = number(1, default=16)
    """Records per optimizer step, over all processes."""

    micro_batch: int | None = number(1, default=None)
    """Records per forward pass of one process; gradients are accumulated over the rest of its share. null: the whole
    share in one pass."""

    draws: int = number(1, default=1)
    """Noise levels at which each record is trained per pass through the conditioning path."""

    optimizer: str = "adamw"
    """``adamw``, ``adamw_8bit`` (bitsandbytes; not under DeepSpeed), or ``muon`` for matrices between hidden layers
    and AdamW for the rest."""

    lr: float = number(0, default=1e-3)
    """Peak learning rate."""

    weight_decay: float = number(0, default=1e-2)
    """Weight decay of matrices. Vectors have none."""

    warmup: int = number(0, default=100)
    """Steps of linear warm-up; a cosine decay follows."""

    final_lr: float = number(0, 1, default=0.05)
    """Learning rate at the last step, as a fraction of ``lr``."""

    slots: dict[str, SlotTrainConfig] = field(default_factory=dict)
    """Settings of single slots, named with an underscore: ``frce_patch``, ``mllm``."""

    grad_clip: float | None = number(0, default=1.0)
    """Gradients are clipped to this global norm. 0 or null: not clipped."""

    ema: float = number(0, 1, default=0.999)
    """Decay of the averaged weights. A finished run writes the averaged weights."""

    seed: int = number(0, LARGEST_SEED, default=0)
    """Seed of the order of the records, the noise and new weights."""

    save_every: int = number(1, default=500)
    """Steps between checkpoints."""

    keep: int = number(1, default=2)
    """Number of checkpoints kept."""

    log_every: int = number(1, default=50)
    """Steps between log lines."""

    validate_every: int | None = number(1, default=None)
    """Steps between validations: the loss of 16 records and edits of four. null: none."""

    tracker: str | None = "tensorboard"
    """Where to watch the run, beside RUN/log.jsonl: ``tensorboard``, ``wandb``, ``trackio`` or null."""

    bad_steps: int = number(1, default=5)
    """The run ends after this many consecutive steps with a NaN or infinite loss or gradient."""

    checkpointing: list[str] = field(default_factory=list)
    """Slots with activation checkpointing: their blocks keep only their inputs and recompute the rest in the backward
    pass."""

    compile: list[str] = field(default_factory=list)
    """Slots whose repeated blocks are compiled with ``torch.compile``."""

    bf16: bool = False
    """Train with bfloat16 autocast; under DeepSpeed, with bfloat16 weights beside fp32 master weights."""

    lm_weight: float = number(0, default=1.0)
    """Weight of L_MLLM in L = lm_weight x L_MLLM + dm_weight x L_DM. The paper uses 1."""

    dm_weight: float = number(0, default=1.0)
    """Weight of L_DM. MGIE uses 0.5. 0: the diffusion model does not run."""

    align_weight: float = number(0, default=0.0)
    """Weight of a further loss, the mean squared difference of the guidance V^ and the text encoder's states of the
    sentence, or of the instruction without one (the first stage of SmartEdit, arXiv:2312.06739)."""

    stages: list[StageConfig] = field(default_factory=list)
    """Stages, trained one after the other. Each starts from the model of the one before, with a fresh optimizer. The
    last one is the run in RUN, the others are in RUN/stages. Empty: one stage, this section."""


@dataclass
class Config:
    """Everything that a run or an edit needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def result_settings(edit: EditConfig) -> dict[str, Any]:
    """The settings that an edit depends on, without those that say where and by which kernels it is computed."""
    apart = ("device", "offload", "compile", "familiar")
    return {key: value for key, value in asdict(edit).items() if key not in apart}


def loss_weights(train: TrainConfig) -> dict[str, float]:
    """The weights of the losses, as arguments of ``ReasonBrain.forward``."""
    return {key: getattr(train, key) for key in ("lm_weight", "dm_weight", "align_weight")}


def slot_config(model: ModelConfig, slot: str) -> dict[str, Any] | None:
    """The mapping that fills ``slot``, for example "frce.patch", or None for a null slot."""
    node: Any = model
    for part in slot.split("."):
        node = getattr(node, part)
    return node


def set_slot(model: ModelConfig, slot: str, params: dict[str, Any] | None) -> None:
    """Sets what ``slot_config`` returns."""
    node, _, name = slot.rpartition(".")
    setattr(getattr(model, node) if node else model, name, params)
