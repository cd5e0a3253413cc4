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
@click.option("--config", help="The preset or YAML file to build.  [default: tiny]")
@click.option("--checkpoint", help="A trained model to load, in place of --config.")
@click.option("--random", is_flag=True, help="Random weights, and noise as training data: needs no hub and no data.")
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True, help="Runs that are not timed.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs that are timed.")
@click.option("-o", "--output", type=click.File("w", lazy=False), help="Write all measurements to this file, as JSON.")
def bench(what: str, output: Any, warmup: int, repeats: int, **source: Any) -> None:
    """Times training steps, edits, batches or loading, and prints a table: speed, FLOPs, share of the peak, memory."""
    from reasonbrain.eval.benchmarking import bench as benches

    found = benches.bench(what, benches.Source(**source), warmup, repeats)
    if output:
        json.dump(found, output, indent=1)
    click.echo(benches.table(found))


@click.command("eval")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--benchmark", required=True, help="mini, magicbrush, emu_edit, ...; see docs/evaluation.md.")
@click.option("--data", help="The benchmark's folder or manifest; for mini a split.  [default for mini: all three]")
@click.option("-o", "--output", required=True, help="The report's folder. Existing edits in it are reused.")
@click.option("--config", help="A preset or a YAML file.  [default: the checkpoint's own]")
@click.option("--checkpoint", help="A trained model: a folder, or a run of `reasonbrain train`.  [default: tiny]")
@click.option(
    "--edits",
    type=click.Path(path_type=Path),
    help="A folder of another system's edits, <id>.png, in place of a model.",
)
@click.option(
    "--against", type=click.Path(path_type=Path), help="Another report of the same benchmark, to compare with."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N records; for mini, of each split.")
@click.option("--metric", "metrics", multiple=True, help="A metric, in place of the benchmark's; may be repeated.")
@click.option("--clip", help="A CLIP model in place of the benchmark's: a folder or a hub id.")
@click.option("--dino", help="A DINO ViT in place of the benchmark's: a folder or a hub id.")
@click.option("--judge", metavar="URL", help="An OpenAI-compatible endpoint, http://.../v1. Its key: OPENAI_API_KEY.")
@click.option("--judge-model", metavar="NAME", help="The endpoint's multimodal model that judges the edits.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of edits and intervals.  [default: 0]")
def evaluate(output: str, against: Path | None, checkpoint: str | None, **request: Any) -> None:
    """Scores edits on a benchmark and prints the paths of the report.

    KEY=VALUE changes the configuration of the model that makes the edits: edit.steps=20."""
    config, overrides = request["config"], request["overrides"]
    if request["edits"] and (config or checkpoint or overrides):
        raise UserError(
            f"edits '{request['edits']}' were made by another system: leave out --config, --checkpoint and key=value"
        )
    name = trained(config, checkpoint, overrides)
    from reasonbrain.eval.evaluation.evaluate import Request
    from reasonbrain.eval.evaluation.evaluate import evaluate as run

    run(Request(checkpoint=name, **request), Path(output), against)
    for kind in ("md", "html"):
        click.echo(Path(output) / f"report.{kind}")


@click.command()
@click.argument("plan")
@click.option("-o", "--output", required=True, help="The folder of runs and tables. Finished runs in it are reused.")
@click.option(
    "--executor",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="local: one run after the other. ray: in parallel on a Ray cluster; all machines must share the folder.",
)
def ablate(plan: str, output: str, executor: str) -> None:
    """Trains and evaluates the variants of PLAN, a shipped plan or a YAML file, and prints the path of the table."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain.eval.ablation.ablate").setLevel(logging.INFO)

    from reasonbrain.eval.ablation.ablate import ablate as run

    click.echo(run(plan, Path(output), executor))
