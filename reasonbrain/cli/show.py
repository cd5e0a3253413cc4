"""`reasonbrain modules` and `reasonbrain config`: list plug-ins, their parameters, and the resolved configuration."""

from __future__ import annotations

import textwrap

import click

from reasonbrain.errors import UserError
from reasonbrain.registry import KINDS, SLOTS, plugins


@click.command()
@click.argument("plugin", metavar="[SLOT:NAME]", required=False)
def modules(plugin: str | None) -> None:
    """List plug-ins and data sets, or the parameters of SLOT:NAME, e.g. cme:hybrid or data:mini.

    Each parameter is shown with its type, default and meaning."""
    if plugin:
        click.echo(describe(plugin))
        return
    rows = [("SLOT", "NAME", "MODULE", "PACKAGE")]
    rows += [(p.slot, p.name, p.module, p.package) for p in plugins()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())
    click.echo("Any slot can also be null: model.<slot>=null. Parameters of a plug-in: reasonbrain modules SLOT:NAME")


@click.command()
@click.argument("preset")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
def config(preset: str, overrides: tuple[str, ...]) -> None:
    """Print the resolved configuration of PRESET. PRESET is a preset or a YAML file.

    KEY=VALUE changes the configuration: model.cme=null, train.steps=100. The output is a valid configuration file."""
    from reasonbrain.config.loading import dump_config, load_config

    click.echo(dump_config(load_config(preset, overrides)), nl=False)


def describe(plugin: str) -> str:
    """The summary of the plug-in "<slot>:<name>", and type, default and meaning of each of its parameters.

    Raises UserError if ``plugin`` is not of that form or names no plug-in."""
    slot, colon, name = plugin.partition(":")
    if not colon or slot not in KINDS:
        raise UserError(f"'{plugin}' is not of the form SLOT:NAME, e.g. cme:hybrid; slots are {', '.join(KINDS)}")
    from reasonbrain.config.reference import parameters, summary
    from reasonbrain.registry import plugin as find

    cls = find(slot, name)
    lines = [f"{slot}:{name}  {cls.__module__}.{cls.__qualname__}", summary(cls), ""]
    for p in parameters(cls):
        lines.append(f"{p.key}: {p.type} = {p.default}" if p.default else f"{p.key}: {p.type}")
        lines.append(textwrap.indent(textwrap.fill(p.meaning.replace("``", "`") or "(not documented)", 96), "    "))
    lines += ["", f"Set one with {'model.' if slot in SLOTS else ''}{slot}.KEY=VALUE."]
    return "\n".join(lines)
