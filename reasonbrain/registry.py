"""Plug-ins by slot and name.

    @register("cme", "hybrid")
    class HybridEnhancer(Plugin): ...

Built-in plug-ins and third-party ones are found the same way: through entry points of the group
``reasonbrain.modules``, named ``<slot>:<name>`` and pointing at the module that registers the class.
A module is imported when a plug-in of it is asked for, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from reasonbrain.errors import UserError

SLOTS = ("encoders", "frce.patch", "frce.region", "frce.text", "mllm", "connector", "cme", "diffusion")
GROUP = "reasonbrain.modules"

_registered: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class PluginInfo:
    """A plug-in as ``reasonbrain modules`` lists it, known without importing it."""

    slot: str
    name: str
    module: str
    package: str


def register(slot: str, name: str) -> Callable[[type], type]:
    """Class decorator: makes the class the plug-in ``name`` of ``slot``. Raises ValueError on an unknown slot."""
    if slot not in SLOTS:
        raise ValueError(f"slot '{slot}' is not one of {', '.join(SLOTS)}")

    def add(cls: type) -> type:
        _registered[slot, name] = cls
        cls.slot, cls.plugin_name = slot, name  # type: ignore[attr-defined]
        return cls

    return add


@cache
def _entry_points() -> dict[tuple[str, str], EntryPoint]:
    found = {}
    for point in entry_points(group=GROUP):
        slot, _, name = point.name.partition(":")
        found[slot, name] = point
    return found


def plugins(slot: str | None = None) -> list[PluginInfo]:
    """Every plug-in, or those of one slot, in the order of the slots and then by name."""
    infos = {
        key: PluginInfo(*key, point.value, point.dist.name if point.dist else "?")
        for key, point in _entry_points().items()
    }
    for key, cls in _registered.items():
        infos.setdefault(key, PluginInfo(*key, cls.__module__, cls.__module__.partition(".")[0]))
    order = sorted(infos, key=lambda key: (SLOTS.index(key[0]) if key[0] in SLOTS else len(SLOTS), key[1]))
    return [infos[key] for key in order if slot in (None, key[0])]


def plugin(slot: str, name: str) -> Any:
    """The plug-in class. Raises UserError naming the choices if there is none."""
    if (slot, name) not in _registered and (slot, name) in _entry_points():
        import_module(_entry_points()[slot, name].value)
    if (slot, name) not in _registered:
        choices = ", ".join(info.name for info in plugins(slot))
        raise UserError(f"model.{slot}.name: there is no plug-in '{name}'; choose from {choices}, or null")
    return _registered[slot, name]
