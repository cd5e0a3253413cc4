"""`reasonbrain data`: commands that check, show, cache and build data sets."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import click


@click.group()
def data() -> None:
    """Check, show, cache and build data sets."""


@data.command()
@click.argument("path")
@click.option("--name", help="The reader; see docs/data.md.  [default: guessed from the layout]")
@click.option("--limit", type=click.IntRange(1), help="Decode the images of this many records only, evenly spread.")
@click.option("-o", "--output", default="problems.jsonl", show_default=True, help="The list of problems.")
@click.pass_context
def check(ctx: click.Context, path: str, name: str | None, limit: int | None, output: str) -> None:
    """Check every record of PATH. Prints a table of problems.

    PATH is a folder, a manifest or a pattern of files. Exit code 3: there are problems. Nothing is changed."""
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
@click.option("--name", help="The reader; see docs/data.md.  [default: guessed from the layout]")
@click.option(
    "--limit", type=click.IntRange(1), default=500, show_default=True, help="Number of records, evenly spread."
)
@click.option("-o", "--output", default="gallery.html", show_default=True, help="The HTML file.")
def show(path: str, name: str | None, limit: int, output: str) -> None:
    """Write an HTML page that shows the records of PATH. Prints its path.

    PATH is a folder, a manifest or a pattern of files. The page is one file that loads nothing else."""
    from reasonbrain.data.opening import guess, open_reader
    from reasonbrain.data.show import show as write

    write(open_reader(name or guess(path), path), Path(output), limit)
    click.echo(output)


@data.command()
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="train, val, test, paraphrase or compositional; of version 2 also picture, conditional, pair or stranger.",
)
@click.option("--count", type=int, default=50, show_default=True, help="Number of records.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--size", type=int, help="Pixels on a side (64, in version 2 128).")
@click.option("--version", type=click.IntRange(1, 2), default=1, show_default=True, help="Of the drawn world.")
@click.option("-o", "--output", required=True, help="A new or an empty folder.")
def mini(split: str, count: int, seed: int, size: int | None, version: int, output: str) -> None:
    """Write records of ReasonMini. Prints the path of the manifest.

    Writes images, masks and manifest.jsonl."""
    from reasonbrain.modules.data.reasonmini.store import write_split

    click.echo(write_split(split, count, seed, output, size, version))


@data.command()
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", default="tiny", show_default=True, help="A preset or a YAML file.")
@click.option("-o", "--output", required=True, help="The folder of the features; an interrupted run is resumed.")
def cache(overrides: tuple[str, ...], config: str, output: str) -> None:
    """Precompute features: latents, regions, image features. Prints their path.

    These are the outputs of frozen modules for every record. Train with data.features=OUTPUT. Under torchrun several
    processes share the work."""
    from reasonbrain.config.loading import load_config
    from reasonbrain.train.distributed import processes

    with processes.one_voice():
        device = processes.join()
        cfg = load_config(config, overrides)
        from reasonbrain.train.building import build
        from reasonbrain.train.feature_cache import FeatureCache

        FeatureCache(cfg, build(cfg).to(device).eval()).write(Path(output))
        processes.leave()
    if os.environ.get("RANK", "0") == "0":
        click.echo(output)


@data.command()
@click.argument("seeds", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder of the data set; an interrupted build is resumed.",
)
@click.option("--url", required=True, help="An OpenAI-compatible endpoint, http://.../v1; its key is OPENAI_API_KEY.")
@click.option(
    "--model", required=True, help="The multimodal model at the endpoint; it rewrites prompts and judges images."
)
@click.option(
    "--pipeline", required=True, help="A diffusers text-to-image or inpainting pipeline: a folder or a hub id."
)
@click.option(
    "--candidates", type=click.IntRange(1), default=4, show_default=True, help="Source candidates per target."
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=0.85,
    show_default=True,
    help="Fraction of the target that is redrawn.",
)
@click.option("--steps", type=click.IntRange(1), help="Sampling steps.  [default: the pipeline's]")
@click.option("--size", type=click.IntRange(16), default=1024, show_default=True, help="Longest side in pixels.")
@click.option(
    "--clip", default="openai/clip-vit-large-patch14", show_default=True, help="A CLIP model: a folder or a hub id."
)
@click.option("--lpips", type=click.Choice(("alex", "squeeze", "vgg", "none")), default="alex", show_default=True)
@click.option(
    "--min-clip", type=float, default=0.2, show_default=True, help="Minimum CLIP cosine of a source and its objects."
)
@click.option(
    "--min-lpips", type=float, default=0.05, show_default=True, help="Minimum LPIPS between source and target."
)
@click.option(
    "--max-lpips", type=float, default=0.7, show_default=True, help="Maximum LPIPS between source and target."
)
@click.option(
    "--min-score", type=click.IntRange(0, 10), default=7, show_default=True, help="Minimum score by the judge, 0 to 10."
)
@click.option("--no-review", is_flag=True, help="Accept rows that pass the filters, unless rejected in a review.")
@click.option(
    "--shares", type=float, nargs=3, default=(90, 5, 5), show_default=True, help="Shares of train, val and test."
)
@click.option("--executor", type=click.Choice(("local", "ray")), default="local", show_default=True)
def build(
    seeds: Path, output: Path, url: str, no_review: bool, shares: tuple[float, ...], executor: str, **settings: Any
) -> None:
    """Build a data set the way Reason50K was built. Prints a summary.

    SEEDS is a file with a line {"id", "image", "prompt", "category"?, "mask"?} per target image. See docs/data.md."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain").setLevel(logging.INFO)

    from reasonbrain.dataprep.building import build as run
    from reasonbrain.dataprep.building import read_seeds
    from reasonbrain.dataprep.stages import Settings, Tools
    from reasonbrain.eval.evaluation.networks import Models
    from reasonbrain.utils.endpoint import Endpoint
    from reasonbrain.utils.files import check_not_input

    read_seeds(seeds)
    for written in output.glob("*.json*"):  # the journals, the settings and the splits
        check_not_input(written, [seeds])
    llm = Endpoint(url, settings["model"], output.absolute() / "answers")
    models = Models(settings["clip"], lpips=settings["lpips"])
    tools = Tools(output.absolute(), seeds.absolute().parent, Settings(**settings), llm, models)
    click.echo(run(seeds, tools, executor, not no_review, shares))


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="0.0.0.0: anyone who can reach this machine may review."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
def review(folder: Path, host: str, port: int) -> None:
    """Serve the review page of the build in DIR. Runs until interrupted; every verdict is saved immediately."""
    from reasonbrain.dataprep.review import serve

    server = serve(folder, host, port)
    click.echo(f"http://{host}:{server.server_port}")
    server.serve_forever()


@data.command()
@click.argument("folder", metavar="DIR")
@click.argument("edits")
def score(folder: str, edits: str) -> None:
    """Score edits of ReasonMini. Compares EDITS/<id>.png with the records in DIR, and prints JSON."""
    from reasonbrain.modules.data.reasonmini.score import score as score_edits

    click.echo(json.dumps(score_edits(folder, edits), indent=2))
