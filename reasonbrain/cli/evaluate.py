"""Commands that measure."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from reasonbrain.cli.edit import trained
from reasonbrain.errors import UserError


@click.command()
@click.argument("what", type=click.Choice(("train", "edit", "batch", "load")))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", help="The preset or YAML file that is built.  [default: tiny]")
@click.option("--checkpoint", help="A trained model to be loaded instead.")
@click.option("--random", is_flag=True, help="Random weights, and ReasonMini's pictures: needs no hub and no data.")
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True, help="Runs before those that count.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs that are timed.")
@click.option("-o", "--output", type=click.File("w", lazy=False), help="Everything measured, as JSON.")
def bench(what: str, output: Any, warmup: int, repeats: int, **source: Any) -> None:
    """Times training steps, edits, batches or loading, and prints a table: speed, FLOPs, share of the peak, memory."""
    from reasonbrain.eval.benchmarking import bench as benches

    found = benches.bench(what, benches.Source(**source), warmup, repeats)
    if output:
        json.dump(found, output, indent=1)
    click.echo(benches.table(found))


@click.command("eval")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--benchmark", required=True, help="mini, magicbrush, emu_edit, ... see docs/evaluation.md")
@click.option("--data", help="The benchmark's folder or manifest; of mini a split.  [default for mini: all three]")
@click.option("-o", "--output", required=True, help="The report's folder; edits that are there are not made again.")
@click.option("--config", help="A preset or a YAML file.  [default: the checkpoint's own]")
@click.option("--checkpoint", help="A trained model: a folder, or a run of `reasonbrain train`.  [default: tiny]")
@click.option(
    "--edits", type=click.Path(path_type=Path), help="Another system's pictures, <id>.png, instead of a model."
)
@click.option("--against", type=click.Path(path_type=Path), help="Another report of the same benchmark.")
@click.option("--limit", type=click.IntRange(1), help="The first N records only; of mini, of each split.")
@click.option("--metric", "metrics", multiple=True, help="Instead of the benchmark's own; may be repeated.")
@click.option("--clip", help="A CLIP model instead of the benchmark's: a folder or a hub id.")
@click.option("--dino", help="A DINO ViT instead of the benchmark's: a folder or a hub id.")
@click.option("--judge", metavar="URL", help="An OpenAI-compatible endpoint, http://.../v1; its key: OPENAI_API_KEY.")
@click.option("--judge-model", metavar="NAME", help="The multimodal model there that judges the edits.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of edits and intervals.  [default: 0]")
def evaluate(output: str, against: Path | None, checkpoint: str | None, **request: Any) -> None:
    """Measures edits on a benchmark, and prints the main table and where the report is.

    KEY=VALUE changes the configuration of the model that edits: edit.steps=20."""
    config, overrides = request["config"], request["overrides"]
    if request["edits"] and (config or checkpoint or overrides):
        raise UserError(f"edits '{request['edits']}' were made by another system: leave out its model and key=value")
    name = trained(config, checkpoint, overrides)
    from reasonbrain.eval.evaluation.evaluate import Request
    from reasonbrain.eval.evaluation.evaluate import evaluate as run

    run(Request(checkpoint=name, **request), Path(output), against)
    for kind in ("md", "html"):
        click.echo(Path(output) / f"report.{kind}")


@click.command()
@click.argument("plan")
@click.option("-o", "--output", required=True, help="The folder of runs and tables; runs that are there are taken.")
@click.option(
    "--executor",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Runs one after the other, or as many at a time as Ray has room for; then all machines share the folder.",
)
def ablate(plan: str, output: str, executor: str) -> None:
    """Trains and evaluates the variants of PLAN, a shipped one or a YAML file, and prints where the table is."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain.eval.ablation.ablate").setLevel(logging.INFO)

    from reasonbrain.eval.ablation.ablate import ablate as run

    click.echo(run(plan, Path(output), executor))
