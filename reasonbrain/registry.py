"""Plug-ins by kind and name. A kind is a slot of the model, or ``data``: a data set.

    @register("cme", "hybrid")
    class HybridEnhancer(Plugin): ...

Built-in plug-ins and those of other packages are found the same way, through entry points. Slots use the group
``reasonbrain.modules`` with entry points named ``<slot>:<name>``, data sets ``reasonbrain.data`` with entry points
named ``<name>``. An entry point names the class (``their_package.data:TheirReader``), or a module in which the
decorator registers it. The module is imported when the plug-in is asked for, not before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from reasonbrain.errors import UserError

SLOTS = ("encoders", "frce.patch", "frce.region", "frce.text", "mllm", "connector", "cme", "diffusion")
MODULES = "reasonbrain.modules"  # the entry-point group of all slots
GROUPS = {"data": "reasonbrain.data"}  # those of the other kinds
KINDS = (*SLOTS, *GROUPS)

_registered: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class PluginInfo:
    """A plug-in as ``reasonbrain modules`` lists it, known without importing it. ``slot``: its kind."""

    slot: str
    name: str
    module: str
    package: str


def register(kind: str, name: str) -> Callable[[type], type]:
    """Class decorator: makes the class the plug-in ``name`` of ``kind``. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"slot '{kind}' is not one of {', '.join(KINDS)}")

    def add(cls: type) -> type:
        _registered[kind, name] = cls
        cls.slot, cls.plugin_name = kind, name  # type: ignore[attr-defined]
        return cls

    return add


@cache
def _entry_points() -> dict[tuple[str, str], EntryPoint]:
    found = {}
    for point in entry_points(group=MODULES):
        slot, _, name = point.name.partition(":")
        found[slot, name] = point
    for kind, group in GROUPS.items():
        found |= {(kind, point.name): point for point in entry_points(group=group)}
    return found


def plugins(kind: str | None = None) -> list[PluginInfo]:
    """Every plug-in, or those of one kind, in the order of the kinds and then by name."""
    infos = {
        key: PluginInfo(*key, point.module, point.dist.name if point.dist else "?")
        for key, point in _entry_points().items()
    }
    for key, cls in _registered.items():
        infos.setdefault(key, PluginInfo(*key, cls.__module__, cls.__module__.partition(".")[0]))
    order = sorted(infos, key=lambda key: (KINDS.index(key[0]) if key[0] in KINDS else len(KINDS), key[1]))
    return [infos[key] for key in order if kind in (None, key[0])]


def plugin(kind: str, name: str) -> Any:
    """The plug-in's class. Raises UserError that names the choices if there is none."""
    if (kind, name) not in _registered and (kind, name) in _entry_points():
        found = _entry_points()[kind, name].load()
        if isinstance(found, type):  # otherwise it is a module: its import has registered the class
            _registered[kind, name] = found
    if (kind, name) not in _registered:
        choices = ", ".join(info.name for info in plugins(kind))
        if kind in SLOTS:
            raise UserError(f"model.{kind}.name: there is no plug-in '{name}'; choose from {choices}, or null")
        raise UserError(f"{kind}.name: there is no data set '{name}'; choose from {choices}")
    return _registered[kind, name]


def plugin_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The ``__init__`` arguments of a plug-in by name, types resolved; without ``width``, which the model gives."""
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    hints = get_type_hints(init)
    arguments = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in arguments if p.name != "width"}
