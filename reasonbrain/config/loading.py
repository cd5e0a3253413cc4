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
from dataclasses import field, make_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reasonbrain.config.schema import ATTENTION, TRACKERS, Config, ModelConfig, slot_config
from reasonbrain.data.opening import check_data
from reasonbrain.errors import UserError
from reasonbrain.registry import SLOTS, plugin

# a path inside the installed package: "${package:tiny/parts/clip}" is below reasonbrain/configs
OmegaConf.register_resolver("package", lambda path: str(files("reasonbrain.configs") / path), replace=True)


def presets() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(f.name[:-5] for f in files("reasonbrain.configs").iterdir() if f.name.endswith(".yaml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """A preset by name, or a YAML file by path, with ``key=value`` overrides.

    Raises UserError like ``read_config`` and ``make_config``."""
    return make_config(read_config(name), overrides)


def read_config(name: str) -> DictConfig:
    """The sections of a preset or a YAML file as they are written, for ``make_config``.

    Raises UserError for an unknown preset, and for a file that is missing or is not YAML with sections."""
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
    return raw


def make_config(raw: Any, overrides: Sequence[str] = ()) -> Config:
    """A checked Config from a mapping and ``key=value`` overrides.

    Raises UserError for an unknown key or plug-in, and for a value of the wrong type."""
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
    schema = make_dataclass("Schema", [(n, allowed[n].annotation, field(default=MISSING)) for n in params])
    try:
        params = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), params))  # type: ignore
    except OmegaConfBaseException as e:
        raise UserError(f"model.{slot}.{getattr(e, 'full_key', '')}: {str(e).splitlines()[0]}") from None
    given.update(params)
    cls.check_config(params, model)


def plugin_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The ``__init__`` arguments of a plug-in by name, types resolved; without ``width``, which the model gives."""
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    hints = get_type_hints(init)
    arguments = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in arguments if p.name != "width"}


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
    check_data(cfg.data, cfg.train.validate_every is not None)


def dump_config(cfg: Config) -> str:
    """The configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))
