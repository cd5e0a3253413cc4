"""Commands around data sets."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import click


@click.group()
def data() -> None:
    """Data sets: check them, look at them, write ReasonMini and score edits of it, compute features, build new ones."""


@data.command()
@click.argument("path")
@click.option("--name", help="The reader, see docs/data.md.  [default: guessed from the layout]")
@click.option("--limit", type=click.IntRange(1), help="Decode the pictures of so many records only, evenly spread.")
@click.option("-o", "--output", default="problems.jsonl", show_default=True, help="Where the problems are listed.")
@click.pass_context
def check(ctx: click.Context, path: str, name: str | None, limit: int | None, output: str) -> None:
    """Examines every record of PATH, a folder, a manifest or a pattern of files, and prints a table of problems.

    Exit code 3 if there are any. Nothing is changed or deleted."""
    from reasonbrain.data import check as checks
    from reasonbrain.data.opening import guess, open_reader

    reader = open_reader(name or guess(path), path)
    counts, decoded = checks.check(reader, Path(output), limit)
    click.echo(checks.table(reader, counts, decoded))
    if counts:
        click.echo(output)
        ctx.exit(3)


@data.command()
@click.argument("path")
@click.option("--name", help="The reader, see docs/data.md.  [default: guessed from the layout]")
@click.option("--limit", type=click.IntRange(1), default=500, show_default=True, help="So many records, evenly spread.")
@click.option("-o", "--output", default="gallery.html", show_default=True, help="The page.")
def show(path: str, name: str | None, limit: int, output: str) -> None:
    """Writes a page to look at the records of PATH, a folder, a manifest or a pattern of files, and prints where it is.

    Paged, to be filtered by category; one file that loads nothing else."""
    from reasonbrain.data.opening import guess, open_reader
    from reasonbrain.data.show import show as write

    write(open_reader(name or guess(path), path), Path(output), limit)
    click.echo(output)


@data.command()
@click.option("--split", default="test", show_default=True, help="train, val, test, paraphrase or compositional.")
@click.option("--count", type=int, default=50, show_default=True, help="How many records.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--size", type=int, default=64, show_default=True, help="Pixels on a side.")
@click.option("-o", "--output", required=True, help="A new or an empty folder.")
def mini(split: str, count: int, seed: int, size: int, output: str) -> None:
    """Writes pictures, masks and manifest.jsonl, and prints where the manifest is."""
    from reasonbrain.modules.data.reasonmini.store import write_split

    click.echo(write_split(split, count, seed, output, size))


@data.command()
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", default="tiny", show_default=True, help="A preset or a YAML file.")
@click.option("-o", "--output", required=True, help="The folder; one that is not complete is gone on with.")
def cache(overrides: tuple[str, ...], config: str, output: str) -> None:
    """Computes what training needs of every record but never changes: latents, regions, image features. Prints where
    it is.

    Train with data.features=OUTPUT. Under torchrun several processes share the work."""
    from reasonbrain.config.loading import load_config
    from reasonbrain.train.distributed import processes

    with processes.one_voice():
        device = processes.join()
        cfg = load_config(config, overrides)
        from reasonbrain.train.building import build
        from reasonbrain.train.features import Features

        Features(cfg, build(cfg).to(device).eval()).write(Path(output))
        processes.leave()
    if os.environ.get("RANK", "0") == "0":
        click.echo(output)


@data.command()
@click.argument("seeds", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder; one begun is gone on with."
)
@click.option("--url", required=True, help="An OpenAI-compatible endpoint, with /v1; its key is OPENAI_API_KEY.")
@click.option("--model", required=True, help="The endpoint's model; it rewrites prompts and looks at pictures.")
@click.option(
    "--pipeline", required=True, help="A diffusers text-to-image or inpainting pipeline: a folder or a hub id."
)
@click.option("--candidates", type=click.IntRange(1), default=4, show_default=True, help="Sources drawn for a target.")
@click.option(
    "--strength", type=click.FloatRange(0, 1), default=0.85, show_default=True, help="How much is drawn anew."
)
@click.option("--steps", type=click.IntRange(1), help="Sampling steps.  [default: the pipeline's]")
@click.option("--size", type=click.IntRange(16), default=1024, show_default=True, help="Pixels of the longest side.")
@click.option("--clip", default="openai/clip-vit-large-patch14", show_default=True, help="A folder or a hub id.")
@click.option("--lpips", type=click.Choice(("alex", "squeeze", "vgg", "none")), default="alex", show_default=True)
@click.option("--min-clip", type=float, default=0.2, show_default=True, help="Cosine of a source and its objects.")
@click.option("--min-lpips", type=float, default=0.05, show_default=True, help="Distance of a source and its target.")
@click.option("--max-lpips", type=float, default=0.7, show_default=True, help="Distance of a source and its target.")
@click.option("--min-score", type=click.IntRange(0, 10), default=7, show_default=True, help="The judge's.")
@click.option("--no-review", is_flag=True, help="Accept what the filters let pass, unless somebody rejected it.")
@click.option("--shares", type=float, nargs=3, default=(90, 5, 5), show_default=True, help="Of train, val and test.")
@click.option("--executor", type=click.Choice(("local", "ray")), default="local", show_default=True)
def build(
    seeds: Path, output: Path, url: str, no_review: bool, shares: tuple[float, ...], executor: str, **settings: Any
) -> None:
    """Makes records of SEEDS, target pictures with prompts, as Reason50K was made, and prints what came of them.

    SEEDS holds a line {"id", "image", "prompt", "category"?, "mask"?} for each. See docs/data.md."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain").setLevel(logging.INFO)

    from reasonbrain.dataprep.building import build as run
    from reasonbrain.dataprep.building import read_seeds
    from reasonbrain.dataprep.stages import Settings, Tools
    from reasonbrain.eval.evaluation.networks import Models
    from reasonbrain.utils.endpoint import Endpoint

    read_seeds(seeds)
    llm = Endpoint(url, settings["model"], output.absolute() / "answers")
    models = Models(settings["clip"], lpips=settings["lpips"])
    tools = Tools(output.absolute(), seeds.absolute().parent, Settings(**settings), llm, models)
    click.echo(run(seeds, tools, executor, not no_review, shares))


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: whoever reaches this machine may judge.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
def review(folder: Path, host: str, port: int) -> None:
    """Serves a page to accept or reject what `data build` left in DIR, until it is interrupted. Saved at once."""
    from reasonbrain.dataprep.review import serve

    server = serve(folder, host, port)
    click.echo(f"http://{host}:{server.server_port}")
    server.serve_forever()


@data.command()
@click.argument("folder", metavar="DIR")
@click.argument("edits")
def score(folder: str, edits: str) -> None:
    """Scores the pictures EDITS/<id>.png against the records in DIR, and prints JSON."""
    from reasonbrain.modules.data.reasonmini.score import score as score_edits

    click.echo(json.dumps(score_edits(folder, edits), indent=2))
