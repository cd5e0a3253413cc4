"""The reference of the configuration: every key with type, default and meaning, extracted from the source.

``settings`` reads the sections of ``schema.py``, where a string below each field documents it. ``parameters`` reads a
plug-in: its ``__init__`` signature, and the ``Args:`` of its class docstring and of those of its base classes::

    class Pool(Plugin):
        \"\"\"Averages the guidance.

        Args:
            queries: number of tokens it gives
        \"\"\"

``reasonbrain modules SLOT:NAME`` prints the latter; docs/reference/generate.py makes pages of both.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Any, NamedTuple, get_args, get_type_hints

from reasonbrain.config.schema import Config
from reasonbrain.registry import plugin_parameters


class Setting(NamedTuple):
    """One key of the configuration. ``default``: in YAML, "" if the key is required. ``meaning``: "" if the key is
    undocumented."""

    key: str
    type: str
    default: str
    meaning: str


def settings(section: type = Config, prefix: str = "") -> Iterator[Setting]:
    """The fields of a section and its subsections in order of definition, with full keys.

    Keys of sections in a list are written ``key[].name``, keys of sections in a mapping ``key.<name>.name``."""
    meanings, hints = _field_docs(section), get_type_hints(section)
    for field in fields(section):
        name = "<key>" if field.metadata.get("further") else field.name
        key, inner = prefix + name, _section(hints[field.name])
        if inner is None or meanings.get(field.name):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            written = "" if default is MISSING else _yaml(default)
            allowed = field.metadata.get("range")
            meaning = meanings.get(field.name, "") + (
                f" Range: {str(allowed).removeprefix('from ')}." if allowed else ""
            )
            yield Setting(key, str(field.type), written, meaning)
        if inner:
            several = {"list": "[]", "dict": ".<name>"}.get(str(field.type).partition("[")[0], "")
            yield from settings(inner, f"{key}{several}.")


def parameters(plugin: type) -> list[Setting]:
    """The parameters of a plug-in class, in the order of its signature, without ``width``, which the model gives."""
    meanings: dict[str, str] = {}
    for cls in reversed(plugin.__mro__):
        meanings |= _args(cls.__doc__ or "")
    return [
        Setting(
            p.name,
            _annotation(p.annotation),
            "" if p.default is p.empty else _yaml(p.default),
            meanings.get(p.name, ""),
        )
        for p in plugin_parameters(plugin).values()
    ]


def summary(cls: type) -> str:
    """The docstring of a class up to its ``Args:``."""
    return re.split(r"^Args:$", inspect.cleandoc(cls.__doc__ or ""), flags=re.MULTILINE)[0].strip()


def _section(hint: Any) -> type | None:
    """The dataclass in a type hint, also inside a list, a mapping or an optional type."""
    if is_dataclass(hint):
        return hint  # type: ignore[return-value]
    return next((found for arg in get_args(hint) if (found := _section(arg))), None)


def _field_docs(section: type) -> dict[str, str]:
    """Field -> the string literal that follows it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(node.target): " ".join(str(below.value.value).split())
        for node, below in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def _args(docstring: str) -> dict[str, str]:
    """Name -> meaning of the ``Args:`` of a docstring; lines that are indented further continue a meaning."""
    _, _, block = inspect.cleandoc(docstring).partition("\nArgs:\n")
    block = re.split(r"^\S", block, maxsplit=1, flags=re.MULTILINE)[0]
    items = re.split(r"^    (\w+): ", block, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(items[::2], items[1::2], strict=True)}


def _annotation(hint: Any) -> str:
    """A type as it is written; Python 3.10 turns ``str | None`` into ``Optional[str]`` where the default is None."""
    written = inspect.formatannotation(hint).replace("typing.", "")
    return re.sub(r"^Optional\[(.*)\]$", r"\1 | None", written)


def _yaml(value: Any) -> str:
    """A default as it is written in YAML and on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"
