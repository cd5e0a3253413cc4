"""The configuration: a typed schema, presets, and ``key=value`` overrides with errors one can read.

    cfg = load_config("tiny", ["model.cme=null", "train.steps=100"])

A slot is ``{name: <plug-in>, ...its parameters}`` or null. Its parameters are the plug-in's ``__init__`` arguments:
their names and types are checked against the signature. Naming another plug-in on the command line drops the
parameters written for the old one.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, make_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .data.readers import PartConfig, check_data
from .errors import UserError
from .registry import SLOTS, plugin

# a path inside the installed package: "${package:tiny/parts/clip}" is below reasonbrain/configs
OmegaConf.register_resolver("package", lambda path: str(files("reasonbrain.configs") / path), replace=True)


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


def presets() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(f.name[:-5] for f in files("reasonbrain.configs").iterdir() if f.name.endswith(".yaml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """A preset by name, or a YAML file by path, with ``key=value`` overrides.

    Raises UserError for an unknown preset, key or plug-in, and for a value of the wrong type."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(files("reasonbrain.configs") / f"{name}.yaml"))
        if not path.is_file():
            raise UserError(f"config '{name}' is neither a preset ({', '.join(presets())}) nor a .yaml file")
    try:
        raw = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"config file '{path}' does not exist") from None
    except Exception as e:  # PyYAML and OmegaConf have no error in common
        raise UserError(f"config file '{path}' is not readable YAML: {str(e).splitlines()[0]}") from None
    if not isinstance(raw, DictConfig):
        raise UserError(f"config file '{path}' must hold the sections {', '.join(Config.__annotations__)}")
    return make_config(raw, overrides)


def make_config(raw: Any, overrides: Sequence[str] = ()) -> Config:
    """A checked Config from a mapping and overrides. Raises UserError like ``load_config``."""
    raw = OmegaConf.create(raw)
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise UserError(f"override '{text}' is not of the form key=value, e.g. edit.steps=20 or model.cme=null")
        try:
            change = OmegaConf.from_dotlist([text])
            _check_keys(change, Config)
            slot = key.removeprefix("model.").removesuffix(".name")
            if slot in SLOTS and key.endswith(".name"):
                old = OmegaConf.select(raw, f"model.{slot}")
                if old is not None and old.get("name") != OmegaConf.select(change, key):
                    OmegaConf.update(raw, f"model.{slot}", None, merge=False)
            raw = OmegaConf.merge(raw, change)
        except OmegaConfBaseException as e:
            raise UserError(f"override '{text}': {str(e).splitlines()[0]}") from None
    _check_keys(raw, Config)
    try:
        cfg: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), raw))  # type: ignore[assignment]
    except OmegaConfBaseException as e:
        key = getattr(e, "full_key", None) or ""
        raise UserError(f"{key}: {str(e).splitlines()[0]}") from None
    for slot in SLOTS:
        check_slot(cfg.model, slot)
    _check_ranges(cfg)
    return cfg


def slot_config(model: ModelConfig, slot: str) -> dict[str, Any] | None:
    """The slot's mapping, or None."""
    node: Any = model
    for part in slot.split("."):
        node = getattr(node, part)
    return node


def check_slot(model: ModelConfig, slot: str) -> None:
    """Fills in the slot's parameters checked against its plug-in's signature. Raises UserError."""
    given = slot_config(model, slot)
    if given is None:
        return
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UserError(f"model.{slot}: must be null or {{name: <plug-in>, ...}}, not {given!r}")
    cls = plugin(slot, given["name"])
    params = {k: v for k, v in given.items() if k != "name"}
    allowed = plugin_parameters(cls)
    _unknown(params, allowed, f"model.{slot}")
    schema = make_dataclass("Schema", [(n, allowed[n], field(default=MISSING)) for n in params])
    try:
        params = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), params))  # type: ignore
    except OmegaConfBaseException as e:
        raise UserError(f"model.{slot}.{getattr(e, 'full_key', '')}: {str(e).splitlines()[0]}") from None
    given.update(params)


def plugin_parameters(cls: type) -> dict[str, Any]:
    """Name -> type of a plug-in's parameters; ``width`` is given by the model."""
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    hints = get_type_hints(init)
    parameters = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: hints.get(p.name, Any) for p in parameters if p.name != "width"}


def _unknown(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(f"{where}{'.' if where else ''}{key}: unknown key; {hint}choose from {', '.join(allowed)}")


def _check_keys(node: Any, schema: type, where: str = "") -> None:
    """Keys of the typed sections, all the way down to the slots."""
    hints = get_type_hints(schema)
    _unknown(node, hints, where)
    for key in node:
        if hasattr(hints[key], "__dataclass_fields__"):
            path = f"{where}.{key}" if where else key
            if not isinstance(node.get(key), DictConfig):
                raise UserError(f"{path}: must be a section with {', '.join(get_type_hints(hints[key]))}")
            _check_keys(node[key], hints[key], path)


def _check_ranges(cfg: Config) -> None:
    for key, value in {
        "model.width": cfg.model.width,
        "edit.steps": cfg.edit.steps,
        "edit.size": cfg.edit.size,
        "data.count": cfg.data.count,
        "data.size": cfg.data.size,
        "train.steps": cfg.train.steps,
        "train.batch_size": cfg.train.batch_size,
        "train.save_every": cfg.train.save_every,
        "train.log_every": cfg.train.log_every,
        "train.micro_batch": cfg.train.micro_batch,
        "train.validate_every": cfg.train.validate_every,
        "train.keep": cfg.train.keep,
        "train.draws": cfg.train.draws,
        "train.bad_steps": cfg.train.bad_steps,
    }.items():
        if value is not None and value < 1:
            raise UserError(f"{key}: must be 1 or more, not {value}")
    for key in ("slots", "checkpointing", "compile"):
        _unknown(getattr(cfg.train, key), [slot.replace(".", "_") for slot in SLOTS], f"train.{key}")
    if cfg.model.attention not in ATTENTION:
        raise UserError(f"model.attention: '{cfg.model.attention}' is not one of {', '.join(ATTENTION)}")
    if cfg.train.tracker not in (*TRACKERS, None):
        raise UserError(f"train.tracker: '{cfg.train.tracker}' is not one of {', '.join(TRACKERS)}, null")
    if (cfg.model.encoders or {}).get("reads") == "sentence" and cfg.model.mllm is None:
        raise UserError("model.encoders.reads: 'sentence' is what the MLLM says, but model.mllm is null; name one")
    check_data(cfg.data, cfg.train.validate_every is not None)


def dump_config(cfg: Config) -> str:
    """The configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))
