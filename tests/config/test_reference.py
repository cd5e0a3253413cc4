"""Keys, types, defaults and meanings, as the reference pages and `reasonbrain modules SLOT:NAME` show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from diffusers.configuration_utils import register_to_config

from reasonbrain.config.loading import make_config
from reasonbrain.config.reference import Setting, parameters, settings, summary
from reasonbrain.config.schema import FURTHER
from reasonbrain.plugin import Plugin
from reasonbrain.registry import plugin, plugins


@dataclass
class Inner:
    """One of several."""

    share: float = 1.0
    """Its share."""


@dataclass
class Outer:
    """A section."""

    needed: int
    """Without a default."""

    size: int | None = None
    """Pixels, over
    two lines."""

    silent: bool = True
    inner: Inner = field(default_factory=Inner)
    parts: list[Inner] = field(default_factory=list)
    """Several."""

    named: dict[str, Inner] = field(default_factory=dict)
    """By name."""

    rest: dict[str, Any] = field(default_factory=dict, metadata=FURTHER)
    """Other keys."""


class Base(Plugin):
    """What both share.

    Args:
        depth: number of blocks
        lost: of the base
    """


class Child(Base):
    """A plug-in.

    Two paragraphs.

    Args:
        lost: said anew,
            over two lines
        rate: a share: 0 to 1

    Raises:
        UserError: never
    """

    @register_to_config
    def __init__(self, width: int, depth: int, lost: bool = False, rate: float = 0.5, more: dict[str, Any] = {}):  # noqa: B006
        super().__init__()


def test_settings_walk_sections_in_lists_and_mappings():
    assert list(settings(Outer, "top.")) == [
        Setting("top.needed", "int", "", "Without a default."),
        Setting("top.size", "int | None", "null", "Pixels, over two lines."),
        Setting("top.silent", "bool", "true", ""),
        Setting("top.inner.share", "float", "1.0", "Its share."),
        Setting("top.parts", "list[Inner]", "[]", "Several."),
        Setting("top.parts[].share", "float", "1.0", "Its share."),
        Setting("top.named", "dict[str, Inner]", "{}", "By name."),
        Setting("top.named.<name>.share", "float", "1.0", "Its share."),
        Setting("top.<key>", "dict[str, Any]", "{}", "Other keys."),
    ]


def test_parameters_are_documented_by_the_class_and_its_bases():
    assert parameters(Child) == [
        Setting("depth", "int", "", "number of blocks"),
        Setting("lost", "bool", "false", "said anew, over two lines"),
        Setting("rate", "float", "0.5", "a share: 0 to 1"),
        Setting("more", "dict[str, Any]", "{}", ""),
    ]
    assert summary(Child) == "A plug-in.\n\nTwo paragraphs."


def test_every_field_of_the_configuration_has_a_meaning():
    found = list(settings())
    assert not [s.key for s in found if not s.meaning.endswith(".")]
    assert {s.key.split(".")[0] for s in found} == {"model", "edit", "data", "train"}


def test_a_default_is_written_as_on_the_command_line():
    plain = [s for s in settings() if "[" not in s.key and "<" not in s.key and s.default]
    absent = tuple(f"{s.key}." for s in plain if s.default == "null")  # a key would make the section
    plain = [s for s in plain if not s.key.startswith(absent)]
    assert make_config({}, [f"{s.key}={s.default}" for s in plain]) == make_config({})


@pytest.mark.parametrize("info", plugins(), ids=lambda info: f"{info.slot}:{info.name}")
def test_every_parameter_of_a_plugin_has_a_meaning(info):
    assert summary(plugin(info.slot, info.name))
    assert not [p.key for p in parameters(plugin(info.slot, info.name)) if not p.meaning]
