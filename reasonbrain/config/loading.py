"""Loads configurations: presets or YAML files, with ``key=value`` overrides, checked against the typed schema.

    cfg = load_config("tiny", ["model.cme=null", "train.steps=100"])

A slot is ``{name: <plug-in>, ...its parameters}`` or null. Its parameters are the plug-in's ``__init__`` arguments:
their names and types are checked against the signature. Naming another plug-in on the command line drops the
parameters written for the old one. The keys of the ``data`` section that ``DataConfig`` does not have are the
parameters of the data set and are checked alike.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reasonbrain.config.schema import (
    ATTENTION,
    CACHES,
    EDIT_DTYPES,
    OFFLOADS,
    OPTIMIZERS,
    TRACKERS,
    Config,
    DataConfig,
    FrceConfig,
    ModelConfig,
    PartConfig,
    slot_config,
)
from reasonbrain.config.yaml_file import check_interpolation, check_yaml, read_yaml
from reasonbrain.errors import UserError, first_line, reason
from reasonbrain.registry import SLOTS, plugin, plugin_parameters, plugins

LARGEST_SIZE = 10**8  # the longest context of a published model is 10**7
OF_OLD_RUNS = {"count", "turns", "seed"}  # keys of ``mini`` that older runs wrote to config.yaml for every data set

# a path inside the installed package: "${package:tiny/parts/clip}" is below reasonbrain/configs
OmegaConf.register_resolver("package", lambda path: str(files("reasonbrain.configs") / path), replace=True)


def presets() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(f.name[:-5] for f in files("reasonbrain.configs").iterdir() if f.name.endswith(".yaml"))


def load_config(name: str, overrides: Sequence[str] = (), reads_data: bool = True) -> Config:
    """A preset by name, or a YAML file by path, with ``key=value`` overrides.

    ``reads_data``: false allows ``data.name`` to be a data set that is not installed. Raises UserError like
    ``read_config`` and ``make_config``."""
    return make_config(read_config(name), overrides, reads_data)


def read_config(name: str) -> DictConfig:
    """The raw sections of a preset or a YAML file, for ``make_config``.

    Raises UserError for an unknown preset, and for a file that is missing or is not YAML with sections."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(files("reasonbrain.configs") / f"{name}.yaml"))
        if not path.is_file():
            raise UserError(f"config '{name}' is neither a preset ({', '.join(presets())}) nor a .yaml file")
    raw = read_yaml(path, "config file")
    if not isinstance(raw, DictConfig) or not raw:
        raise UserError(f"config file '{path}' must hold the sections {', '.join(Config.__annotations__)}")
    return raw


def make_config(raw: Any, overrides: Sequence[str] = (), reads_data: bool = True) -> Config:
    """A checked Config from a mapping and ``key=value`` overrides. ``reads_data``: as in ``load_config``.

    Raises UserError for an unknown key, plug-in or data set, and for a value of the wrong type."""
    raw = OmegaConf.create(raw)
    _expand_null_frce(raw)
    _forget_data(raw, overrides)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"override '{text}' is not of the form key=value, e.g. edit.steps=20 or model.cme=null")
        try:
            check_yaml(value, f"override '{text:.100}'")
            change = OmegaConf.from_dotlist([text])
            _expand_null_frce(change)
            _check_keys(change, Config)
            slot = key.removeprefix("model.").removesuffix(".name")
            if slot in SLOTS and key.endswith(".name"):
                old = OmegaConf.select(raw, f"model.{slot}")
                if old is not None and old.get("name") != OmegaConf.select(change, key):
                    OmegaConf.update(raw, f"model.{slot}", None, merge=False)
            raw = OmegaConf.merge(raw, change)
        except UserError:
            raise
        except OmegaConfBaseException as e:
            raise UserError(f"override '{text:.100}': {str(e).splitlines()[0]}") from None
        except Exception as e:  # PyYAML's, and whatever OmegaConf lets through
            raise UserError(f"override '{text:.100}': {reason(e)}") from None
    _check_interpolations(OmegaConf.to_container(raw, resolve=False), "")
    _check_keys(raw, Config)
    try:
        _gather(raw.get("data"), DataConfig)
        cfg: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), raw))  # type: ignore[assignment]
    except (OmegaConfBaseException, TypeError) as e:  # TypeError: a list where a mapping belongs
        key = getattr(e, "full_key", None) or ""
        raise UserError(f"{key}: {first_line(e)}" if key else f"the configuration: {first_line(e)}") from None
    for slot in SLOTS:
        check_slot(cfg.model, slot)
    _check_ranges(cfg)
    if cfg.edit.preserve_low >= cfg.edit.preserve_high:
        raise UserError(
            f"edit.preserve_low: {cfg.edit.preserve_low} is not below edit.preserve_high={cfg.edit.preserve_high}"
        )
    if cfg.model.thinking and "{instruction}" not in (cfg.model.thinking.question or "{instruction}"):
        raise UserError("model.thinking.question: it must hold {instruction}, where the instruction is filled in")
    check_data(cfg, reads_data)
    return cfg


def _check_interpolations(value: Any, where: str) -> None:
    """Raises UserError, naming the key, for what would be resolved from elsewhere, such as ``${oc.env:KEY}``:
    configurations are written into checkpoints and reports, which are passed on."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_interpolations(part, f"{where}.{key}".removeprefix("."))
    elif isinstance(value, str):
        check_interpolation(value, where)


def _expand_null_frce(node: DictConfig) -> None:
    """Expands ``model.frce: null`` to a section with all branches null."""
    model = node.get("model")
    if isinstance(model, DictConfig) and "frce" in model and model.frce is None:
        model.frce = dict.fromkeys(FrceConfig.__annotations__)


def check_slot(model: ModelConfig, slot: str) -> None:
    """Checks a slot's parameters against its plug-in's signature and converts them in place.

    Raises UserError for an unknown plug-in or parameter, and for a value of the wrong type."""
    given = slot_config(model, slot)
    if given is None:
        return
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UserError(f"model.{slot}: must be null or {{name: <plug-in>, ...}}, not {given!r}")
    cls = plugin(slot, given["name"])
    params = {k: v for k, v in given.items() if k != "name"}
    _unknown(params, plugin_parameters(cls), f"model.{slot}")
    given.update(_typed(params, cls, f"model.{slot}"))
    check_sizes(given, f"model.{slot}")
    cls.check_config({k: v for k, v in given.items() if k != "name"}, model)


def check_sizes(value: Any, where: str) -> None:
    """Raises UserError, naming the key, for a whole number above ``LARGEST_SIZE`` in the parameters of a slot:
    libraries make lists as long as some of them."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            check_sizes(part, f"{where}.{key}")
    elif isinstance(value, int) and value > LARGEST_SIZE:
        raise UserError(f"{where}: must be at most {LARGEST_SIZE}, not {float(min(value, 10**300)):.4g}")


def check_data(cfg: Config, reads_data: bool = True) -> None:
    """Checks the data set's own keys in ``data``, or in the parts of a mixture, against the signatures of the data
    sets, and converts their values in place.

    ``reads_data``: false skips the check if a data set is not installed. Raises UserError for an unknown data set or
    key, a value of the wrong type, a missing path, and validation without validation data."""
    data, installed = cfg.data, [info.name for info in plugins("data")]
    if data.name is None:
        _unknown(data.options, _plain_keys(DataConfig), "data")
        return
    mixed = data.name == "mixture"
    if not reads_data and not {part.name for part in (data.mixture if mixed else [data])} <= {*installed}:
        return
    if not mixed and data.name not in installed:
        choices = ", ".join(installed)
        raise UserError(f"data.name: there is no data set '{data.name}'; choose from {choices}, or mixture")
    if mixed and not data.mixture:
        raise UserError("data.mixture: data.name=mixture needs a list of {name, path, weight}")
    cls = None if mixed else plugin("data", data.name)
    for number, part in enumerate(data.mixture if mixed else ()):  # keys beside the parts are defaults for them
        taken = plugin_parameters(plugin("data", part.name)) if part.name in installed else {}
        part.options = {key: value for key, value in data.options.items() if key in taken} | part.options
        _check_options(part, f"data.mixture[{number}]")
    known = {key for part in data.mixture for key in part.options} if mixed else {*plugin_parameters(cls)}  # type: ignore
    for key in OF_OLD_RUNS - known:
        data.options.pop(key, None)
    if cls is None:
        _unknown(data.options, [*_plain_keys(DataConfig), *known], "data")
        data.options = {}
    else:
        _check_options(data, "data")
    if cfg.train.validate_every and not data.validation and (cls is None or cls.validation() is None):
        raise UserError("data.validation: train.validate_every needs data that is not trained on")


def _check_options(section: DataConfig | PartConfig, where: str) -> None:
    cls = plugin("data", str(section.name))
    parameters = plugin_parameters(cls)
    keys = _plain_keys(type(section))
    _unknown(section.options, [*keys, *(name for name in parameters if name not in keys)], where)
    section.options = _typed(section.options, cls, where)
    for name, parameter in parameters.items():
        given = section.options.get(name, getattr(section, name, None))
        if given is None and parameter.default is parameter.empty:
            raise UserError(f"{where}.{name}: data.name={section.name} needs a {name}")


def _typed(params: dict[str, Any], cls: type, where: str) -> dict[str, Any]:
    """Parameters converted to the types in the signature of ``cls.__init__``. Raises UserError."""
    allowed = plugin_parameters(cls)
    schema = make_dataclass("Schema", [(n, allowed[n].annotation, field(default=MISSING)) for n in params])
    try:
        return OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), params))  # type: ignore
    except OmegaConfBaseException as e:
        raise UserError(f"{where}.{getattr(e, 'full_key', '')}: {str(e).splitlines()[0]}") from None


def _plain_keys(schema: type) -> list[str]:
    """The keys of a section, without the parameters of the plug-in that it names."""
    return [f.name for f in fields(schema) if not f.metadata.get("further")]


def _gather(section: Any, schema: type) -> None:
    """Moves the data set's own keys in ``data`` and in a mixture's parts into ``options``."""
    if isinstance(section, DictConfig):
        if further := {key: section.pop(key) for key in [*section] if key not in _plain_keys(schema)}:
            section["options"] = further
        parts = section.get("mixture")
        for part in parts if isinstance(parts, ListConfig) else ():
            _gather(part, PartConfig)


def _forget_data(raw: Any, overrides: Sequence[str]) -> None:
    """Removes the keys in ``raw`` that belong to its data set if ``overrides`` name another data set."""
    named = [text.partition("=")[2] for text in overrides if text.startswith("data.name=")]
    data = raw.get("data")
    if named and isinstance(data, DictConfig) and data.get("name", DataConfig.name) != named[-1]:
        for key in [*data]:
            if key in ("augment", "given_objects") or key not in _plain_keys(DataConfig):
                data.pop(key)


def _unknown(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(f"{where}{'.' if where else ''}{key}: unknown key; {hint}choose from {', '.join(allowed)}")


def _check_keys(node: Any, schema: type, where: str = "") -> None:
    """Checks the keys of the typed sections down to the slots. ``check_data`` checks the other keys of ``data``."""
    hints = get_type_hints(schema)
    if schema is not DataConfig:
        _unknown(node, hints, where)
    for key in node:
        if is_dataclass(hints.get(key)):
            path = f"{where}.{key}" if where else key
            if not isinstance(node.get(key), DictConfig):
                raise UserError(f"{path}: must be a section with {', '.join(_plain_keys(hints[key]))}")
            _check_keys(node[key], hints[key], path)


def _check_ranges(cfg: Config) -> None:
    _check_numbers(cfg)
    for key in ("slots", "checkpointing", "compile"):
        _unknown(getattr(cfg.train, key), [slot.replace(".", "_") for slot in SLOTS], f"train.{key}")
    for key, value, choices in (
        ("model.attention", cfg.model.attention, ATTENTION),
        ("train.optimizer", cfg.train.optimizer, OPTIMIZERS),
        ("train.tracker", cfg.train.tracker, (*TRACKERS, None)),
        ("edit.dtype", cfg.edit.dtype, (*EDIT_DTYPES, None)),
        ("edit.offload", cfg.edit.offload, (*OFFLOADS, None)),
        ("edit.cache", cfg.edit.cache, (*CACHES, None)),
    ):
        if value not in choices:
            raise UserError(f"{key}: '{value}' is not one of {', '.join(c or 'null' for c in choices)}")


def _check_numbers(section: Any, where: str = "") -> None:
    """Raises UserError for the first number of a section, or of the sections in it, that is out of its range."""
    if isinstance(section, (dict, list)):
        for key, part in section.items() if isinstance(section, dict) else enumerate(section):
            _check_numbers(part, f"{where}[{key}]" if isinstance(section, list) else f"{where}.{key}")
    if not is_dataclass(section):
        return
    for f in fields(section):
        key, value = f"{where}.{f.name}" if where else f.name, getattr(section, f.name)
        allowed = f.metadata.get("range")
        if allowed and value is not None and value not in allowed:
            raise UserError(f"{key}: must be {allowed}, not {value}")
        _check_numbers(value, key)


def dump_config(cfg: Config) -> str:
    """The configuration as YAML."""
    raw: Any = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(cfg)))
    for section in (raw.data, *raw.data.mixture):
        section.update(section.pop("options"))
    return OmegaConf.to_yaml(raw)


def portable_config(cfg: Config) -> str:
    """The configuration as YAML for another machine: paths inside the installed package become ``${package:...}``."""
    installed = re.escape(str(files("reasonbrain.configs") / "_")[:-1])
    return re.sub(rf": {installed}(\S+)$", r": ${package:\1}", dump_config(cfg), flags=re.MULTILINE)
