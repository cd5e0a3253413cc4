"""`reasonbrain bench`, `reasonbrain eval` and `reasonbrain ablate`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from reasonbrain.cli.edit import checkpoint_option, placement_options, placement_overrides
from reasonbrain.errors import UserError


@click.command()
@click.argument("what", type=click.Choice(("train", "edit", "batch", "load", "options")))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", help="The preset or YAML file to build.  [default: tiny]")
@click.option("--checkpoint", help="A trained model to load instead.")
@click.option("--random", is_flag=True, help="Random weights and ReasonMini's images: needs no hub and no data.")
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True, help="Runs before the timed ones.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timed runs.")
@click.option("-o", "--output", metavar="FILENAME", help="Write all measurements as JSON.")
def bench(what: str, output: str | None, warmup: int, repeats: int, **source: Any) -> None:
    """Measure speed, FLOPs, MFU and memory. Times training steps, edits, batches or loading, and prints a table.

    options: edits with each precision, cache and with compilation, and how far they are from the edit without."""
    from reasonbrain.utils.files import check_file, whole_file

    path = Path("/dev/stdout" if output == "-" else output) if output else None
    if path:
        check_file(path)
    from reasonbrain.eval.benchmarking import bench as benches

    found = benches.bench(what, benches.Source(**source), warmup, repeats)
    if path:
        with whole_file(path) as file:
            json.dump(found, file, indent=1)
    click.echo(benches.table(found))


@click.command("eval")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--benchmark", required=True, help="mini, magicbrush, emu_edit, ...; see docs/evaluation.md.")
@click.option("--data", help="The benchmark's folder or manifest; for mini a split.  [default for mini: all three]")
@click.option("-o", "--output", required=True, help="The folder of the report; existing edits are reused.")
@click.option("--config", help="A preset or a YAML file.  [default: the checkpoint's own]")
@checkpoint_option
@click.option(
    "--edits", type=click.Path(path_type=Path), help="Images of another system, <id>.png, instead of a model."
)
@click.option(
    "--against", type=click.Path(path_type=Path), help="Another report of the same benchmark, to compare with."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first N records; for mini, of each split.")
@click.option("--metric", "metrics", multiple=True, help="A score, instead of the benchmark's own; may be repeated.")
@click.option("--clip", help="A CLIP model instead of the benchmark's: a folder or a hub id.")
@click.option("--dino", help="A DINO ViT instead of the benchmark's: a folder or a hub id.")
@click.option("--judge", metavar="URL", help="An OpenAI-compatible endpoint, http://.../v1; its key is OPENAI_API_KEY.")
@click.option("--judge-model", metavar="NAME", help="The multimodal model at the endpoint.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of edits and intervals.  [default: 0]")
@placement_options
def evaluate(
    output: str,
    against: Path | None,
    checkpoint: str | None,
    device: str | None,
    dtype: str | None,
    offload: str | None,
    **request: Any,
) -> None:
    """Measure edits on a benchmark. Prints the paths of the report.

    KEY=VALUE changes the configuration of the model: edit.steps=20."""
    request["overrides"] += placement_overrides(device=device, dtype=dtype, offload=offload)
    config, overrides = request["config"], request["overrides"]
    if request["edits"] and (config or checkpoint or overrides):
        raise UserError(
            f"edits '{request['edits']}' are from another system: omit --config, --checkpoint, key=value "
            f"and the options of a model"
        )
    name = checkpoint or config or "tiny"
    from reasonbrain.eval.evaluation.evaluate import Request
    from reasonbrain.eval.evaluation.evaluate import evaluate as run

    run(Request(checkpoint=name, **request), Path(output), against)
    for kind in ("md", "html"):
        click.echo(Path(output) / f"report.{kind}")


@click.command()
@click.argument("plan")
@click.option("-o", "--output", required=True, help="The folder of runs and tables; existing runs are reused.")
@click.option(
    "--executor",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="local: one run at a time; ray: as many as fit on the cluster, in a folder that all machines share.",
)
def ablate(plan: str, output: str, executor: str) -> None:
    """Train and evaluate the variants of PLAN. Prints the path of the table.

    PLAN is a shipped plan or a YAML file. The same command resumes interrupted ablations; see docs/ablations.md."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain.eval.ablation.ablate").setLevel(logging.INFO)

    from reasonbrain.eval.ablation.ablate import ablate as run

    click.echo(run(plan, Path(output), executor))
