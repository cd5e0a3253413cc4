"""The registry of plug-ins by kind and name. A kind is a slot of the model, or ``data`` for data sets.

    @register("cme", "hybrid")
    class HybridEnhancer(Plugin): ...

Built-in and third-party plug-ins are both found through entry points. Slots use the group ``reasonbrain.modules`` with
entry points named ``<slot>:<name>``, data sets the group ``reasonbrain.data`` with entry points named ``<name>``. An
entry point refers to the class (``their_package.data:TheirReader``), or to a module in which the decorator registers
it. The module is imported when the plug-in is first requested.
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
GROUPS = {"data": "reasonbrain.data"}  # the entry-point groups of the other kinds
KINDS = (*SLOTS, *GROUPS)

_registered: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class PluginInfo:
    """What ``reasonbrain modules`` lists of a plug-in, known without importing it. ``slot``: its kind."""

    slot: str
    name: str
    module: str
    package: str


def register(kind: str, name: str) -> Callable[[type], type]:
    """Class decorator: registers the class as plug-in ``name`` of ``kind``. Raises ValueError for an unknown kind."""
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
    """All plug-ins, or those of one kind, sorted by kind (in the order of KINDS) and name."""
    infos = {
        key: PluginInfo(*key, point.module, point.dist.name if point.dist else "?")
        for key, point in _entry_points().items()
    }
    for key, cls in _registered.items():
        infos.setdefault(key, PluginInfo(*key, cls.__module__, cls.__module__.partition(".")[0]))
    order = sorted(infos, key=lambda key: (KINDS.index(key[0]) if key[0] in KINDS else len(KINDS), key[1]))
    return [infos[key] for key in order if kind in (None, key[0])]


def plugin(kind: str, name: str) -> Any:
    """The class of a plug-in. Raises UserError, listing the choices, if there is none of that name."""
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
    """The ``__init__`` arguments of a plug-in by name, with resolved types, without ``width``, which the model sets."""
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    hints = get_type_hints(init)
    arguments = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in arguments if p.name != "width"}
