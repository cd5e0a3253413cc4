"""Writes the reference pages beside this file from the code: configuration.md, plugins.md and commands.md.

.venv/bin/python docs/reference/generate.py        # or `make reference`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import click

from reasonbrain.cli import main
from reasonbrain.config.reference import Setting, parameters, settings, summary
from reasonbrain.config.schema import Config
from reasonbrain.registry import KINDS, plugin, plugins

MADE = "<!-- Made from docstrings by docs/reference/generate.py (`make reference`): change the docstrings instead. -->"

CONFIGURATION = """# Configuration

A configuration is a preset (`tiny`, `reasonbrain_flux_qwen`, ...) or a YAML file with the sections below. A command
that takes a configuration also takes `KEY=VALUE` arguments, which change single keys. `reasonbrain config` prints the
result:

    reasonbrain config tiny edit.steps=20 model.cme=null

The parameters that a slot's plug-in takes are on the page [Plug-ins](plugins.md)."""

PLUGINS = """# Plug-ins

The built-in plug-ins and their parameters, which are set with `model.<slot>.<key>=<value>`, those of data sets with
`data.<key>=<value>`. Any slot can also be null.
`reasonbrain modules` lists the installed plug-ins, those of other packages included, and
`reasonbrain modules SLOT:NAME` prints the parameters of one:

    reasonbrain modules cme:hybrid"""

COMMANDS = """# Commands

The output of `--help`, command by command."""


def table(rows: Iterable[Setting]) -> str:
    """A Markdown table of settings."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else "required"
        kind = row.type.replace(" | None", " or null")
        lines.append(f"| `{row.key}` | `{kind}` | {default} | {row.meaning.replace('``', '`')} |")
    return "\n".join(lines)


def configuration() -> str:
    """The sections of a configuration."""
    parts = [MADE, CONFIGURATION]
    for field in fields(Config):
        section: type = field.default_factory  # type: ignore[assignment]
        doc = summary(section).replace("``", "`")
        parts += [f"## {field.name}", doc, table(settings(section, f"{field.name}."))]
    return "\n\n".join(parts) + "\n"


def plugin_parameters() -> str:
    """The parameters of every built-in plug-in."""
    parts = [MADE, PLUGINS]
    for slot in KINDS:
        parts.append(f"## {slot}")
        for info in plugins(slot):
            if info.package == "reasonbrain":
                cls = plugin(slot, info.name)
                parts += [f"### {slot}: {info.name}", summary(cls).replace("``", "`"), table(parameters(cls))]
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """The help text of every command."""
    parts = [MADE, COMMANDS]
    for path, command in _walk(main, "reasonbrain"):
        text = command.get_help(click.Context(command, info_name=path, max_content_width=100, terminal_width=100))
        parts += [f"## {path}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _walk(below, f"{path} {name}")


PAGES = {"configuration.md": configuration, "plugins.md": plugin_parameters, "commands.md": commands}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
