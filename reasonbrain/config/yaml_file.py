"""Reads YAML from anywhere: limits on nesting and size, and no values from the environment."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from reasonbrain.errors import UserError

DEEPEST = 50  # nested collections; the C parser overflows its stack at some thousands
LARGEST = 100_000  # values, counting those behind an alias wherever it is used
# "${package:...}" and references to other keys; any other resolver, such as oc.env, would read the environment
FOREIGN = re.compile(r"\$\{(?!package:[^${}]*\}|[\w.\[\]]+\})[^}]*\}?")
# plain numbers that YAML 1.1 reads in base 8 or 60: 0100 would be 64, and 12:30 would be 750
OLD_NUMBER = re.compile(r"[-+]?(0[0-7_]*[1-7][0-7_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)")


def check_interpolation(text: str, where: str) -> None:
    """Raises UserError if ``text`` has an interpolation other than ${package:...} and ${key}."""
    if found := FOREIGN.search(text):
        raise UserError(f"{where}: '{found[0]}' is not allowed; only ${{package:PATH}} and ${{KEY}} are")


def _check_number(event: yaml.ScalarEvent, where: str) -> None:
    """Raises UserError for a plain number that YAML reads in base 8 or 60."""
    if event.style is None and OLD_NUMBER.fullmatch(event.value):
        read = yaml.safe_load(event.value)
        raise UserError(f"{where}: YAML reads {event.value} as {read}; write it in base 10, or text in quotes")


def read_yaml(path: Path, name: str) -> DictConfig | ListConfig:
    """The content of a YAML file; ``name``: what it is, in messages.

    Raises UserError for a file that is missing, not a regular file, not YAML, or too large or too deeply nested, and
    like ``check_yaml``."""
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"{name} '{path}' {reason}")
    try:
        check_yaml(path.read_text(encoding="utf-8"), f"{name} '{path}'")
        return OmegaConf.load(path)
    except UserError:
        raise
    except Exception as e:  # PyYAML and OmegaConf have no error in common
        raise UserError(f"{name} '{path}' is not readable YAML: {str(e).splitlines()[0]}") from None


def check_yaml(text: str, where: str) -> None:
    """Raises UserError, which starts with ``where``, for YAML that is too large or too deeply nested, for
    interpolations as ``check_interpolation``, and for numbers in base 8 or 60. Raises YAMLError if it is not YAML."""
    sizes: dict[str | None, int] = {}  # anchor -> values behind it
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchor and number of values of every collection that is open

    def add(count: int) -> None:
        anchor, size = open_[-1]
        open_[-1] = anchor, size + count
        if size + count > LARGEST:
            raise UserError(f"{where} has more than {LARGEST} values")

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            add(sizes.get(event.anchor, 1))
        elif isinstance(event, yaml.ScalarEvent):
            check_interpolation(event.value, where)
            _check_number(event, where)
            sizes[event.anchor] = 1
            add(1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 0))
            if len(open_) > DEEPEST:
                raise UserError(f"{where} is nested more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            sizes[anchor] = size + 1
            add(size + 1)
