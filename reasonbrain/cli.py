"""The ``reasonbrain`` command. Thin: each command calls one function elsewhere, imported only when it runs.

    reasonbrain edit candle.png "What if someone blew on the candle?" -o out.png --panel panel.png
    reasonbrain train --config tiny -o runs/mine train.steps=100
    reasonbrain plan reasonbrain_flux_qwen --gpus 8 --gpu-memory 80
    reasonbrain bench train --config tiny
    reasonbrain eval --benchmark mini -o report
    reasonbrain ablate components -o ablations
    reasonbrain modules
    reasonbrain data check data/reason50k
    reasonbrain data show data/reason50k -o gallery.html
    reasonbrain data mini --split test --count 50 --seed 7 -o mini-test
    reasonbrain data score mini-test edits
    reasonbrain data build seeds.jsonl -o built --url http://localhost:8000/v1 --model LLM --pipeline PIPELINE
    reasonbrain data review built

Results go to stdout, progress and errors to stderr. Exit codes: 0, 1 (training diverged or lost a
process), 2 (a user's mistake), 130 (interrupted), 3 (`data check` found problems).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import RunError, UserError
from .registry import plugins


class _Mistake(click.ClickException):
    """The user's to mend: one line, without a traceback."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo("error: " + " ".join(self.message.splitlines()), file=file, err=True)


class _Failure(_Mistake):
    exit_code = 1


class _Commands(click.Group):
    """Turns what a user can mend into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as e:
            raise _Mistake(str(e)) from None
        except FloatingPointError as e:
            raise _Failure(f"training diverged at {e}") from None
        except RunError as e:
            raise _Failure(str(e)) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


def _trained(config: str | None, checkpoint: str | None, overrides: tuple[str, ...]) -> str:
    """The checkpoint to edit with: what is named, or the embedded default."""
    if config and config != "tiny" and not checkpoint:
        from .config import load_config

        load_config(config, overrides)
        raise UserError(
            f"config '{config}' needs --checkpoint: its connector, FRCE and CME weights are not published; "
            f"train them first: reasonbrain train --config {config} -o RUN"
        )
    return checkpoint or "tiny"


@click.group(cls=_Commands)
@click.version_option(__version__)
def main() -> None:
    """Edits pictures from hypothetical instructions ("What would happen if ...?")."""
    # before the libraries are imported; who sets these hears them
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it looks for kernels on the hub and says so
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@main.command()
@click.argument("image")
@click.argument("instruction")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-o", "--output", required=True, help="Where the result goes: .png, .jpg, .webp, .tif or .bmp.")
@click.option("--config", help="The preset or YAML file that the model was made by.  [default: tiny]")
@click.option("--checkpoint", help="A trained model: a folder, or a run of `reasonbrain train`.  [default: tiny]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Same seed, same picture.  [default: 0]")
@click.option("--steps", type=int, help="Sampling steps; more are slower and finer.  [default: the configuration's]")
@click.option("--panel", help="Also write one picture of source, regions, focus, result and reasoning.")
def edit(
    image: str,
    instruction: str,
    overrides: tuple[str, ...],
    output: str,
    config: str | None,
    checkpoint: str | None,
    seed: int,
    steps: int | None,
    panel: str | None,
) -> None:
    """Edits IMAGE as INSTRUCTION implies, and prints where the result is.

    KEY=VALUE changes the configuration: edit.guidance=2, model.cme=null."""
    from .images import check_output, load_image, save_image

    for path in filter(None, (output, panel)):
        check_output(path)
    if panel and Path(panel).resolve() == Path(output).resolve():
        raise UserError(f"panel '{panel}' and output are the same file")
    source = load_image(image)

    import torch

    from .panel import make_panel
    from .pipeline import ReasonBrainPipeline

    if steps is not None:
        overrides += (f"edit.steps={steps}",)
    name = _trained(config, checkpoint, overrides)
    pipe = ReasonBrainPipeline.from_pretrained(name, overrides, config)
    pipe.set_progress_bar_config(desc="editing", disable=None)  # None: shown on a terminal only
    generator = torch.Generator().manual_seed(seed)
    out = pipe(source, instruction, generator=generator, reasoning=panel is not None)
    result = out.images[0]
    metadata = {
        "instruction": instruction,
        "seed": str(seed),
        "steps": str(pipe.settings.edit.steps),
        "checkpoint": name,
    }
    if panel:
        said = out.reasoning[0] if out.reasoning else None
        shown = make_panel(source, result, out.regions[0], out.focus[0], instruction, out.objects[0], said)
        save_image(shown, panel)
    save_image(result, output, metadata)
    click.echo(output)
    if panel:
        click.echo(panel)


@main.command()
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", default="tiny", show_default=True, help="A preset or a YAML file.")
@click.option("-o", "--output", "run", required=True, help="The run's folder; a run that is there is continued.")
@click.option("--deepspeed", help="A DeepSpeed JSON (configs/deepspeed/zero3.json): train with ZeRO.")
@click.option("--local_rank", hidden=True)  # the deepspeed launcher adds it
def train(overrides: tuple[str, ...], config: str, run: str, deepspeed: str | None, local_rank: str | None) -> None:
    """Trains a model, and prints where it is.

    KEY=VALUE changes the configuration: train.steps=100, model.frce.region.name=sam."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain").setLevel(logging.INFO)

    from .config import load_config
    from .train import processes

    with processes.one_voice():
        processes.join()  # or each of them would say what is wrong with the configuration
        cfg = load_config(config, overrides)
        from .train.loop import Preempted
        from .train.train import train as run_training

        try:
            run_training(cfg, Path(run), Path(deepspeed) if deepspeed else None)
        except Preempted as e:
            click.echo(f"{e}; the same command goes on from there", err=True)
            return
    if os.environ.get("RANK", "0") == "0":  # one of the processes that share a run speaks for all
        click.echo(Path(run) / "model")


@main.command()
@click.argument("run")
@click.option("-o", "--output", required=True, help="A new or an empty folder, or a checkpoint to be replaced.")
@click.option("--last", is_flag=True, help="The last weights instead of the averaged ones.")
@click.option("--merged", is_flag=True, help="Add LoRA adapters to the weights they adapt.")
@click.option("--adapters", is_flag=True, help="Only what trained; published weights are named, not copied.")
def export(run: str, output: str, last: bool, merged: bool, adapters: bool) -> None:
    """Makes a model of RUN's last checkpoint, and prints where it is."""
    from .train.export import export as export_run

    export_run(Path(run), Path(output), not last, merged, adapters)
    click.echo(output)


@main.command()
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", default="tiny", show_default=True, help="A preset or a YAML file.")
@click.option("-o", "--output", required=True, help="A new or an empty folder.")
def init(overrides: tuple[str, ...], config: str, output: str) -> None:
    """Writes the model that a training of a configuration starts from, and prints where it is.

    Train with train.start=OUTPUT: under ZeRO-3 no process then holds more of it than its part and a file."""
    from .config import load_config

    cfg = load_config(config, overrides)
    from .train.export import init as write

    write(cfg, Path(output))
    click.echo(output)


@main.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--gpus", type=int, required=True, help="How many GPUs share the run.")
@click.option("--gpu-memory", "memory", type=float, required=True, help="Memory of each, in GB (2^30 bytes).")
@click.option("--size", type=int, help="Pixels on a side.  [default: data.size]")
@click.option("--json", "as_json", is_flag=True, help="Everything in bytes, as JSON.")
def plan(config: str, overrides: tuple[str, ...], gpus: int, memory: float, size: int | None, as_json: bool) -> None:
    """Says what training CONFIG would need: parameters, memory, FLOPs, and what to change if it does not fit.

    Needs neither weights nor GPUs. KEY=VALUE changes the configuration: train.micro_batch=1."""
    from .train import plan as planning

    if size is not None:
        overrides += (f"data.size={size}",)
    found = planning.plan(config, overrides, gpus, memory)
    click.echo(json.dumps(found, indent=2) if as_json else planning.text(found))


@main.command()
@click.argument("what", type=click.Choice(("train", "edit", "load")))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", help="The preset or YAML file that is built.  [default: tiny]")
@click.option("--checkpoint", help="A trained model to be loaded instead.")
@click.option("--random", is_flag=True, help="Random weights, and ReasonMini's pictures: needs no hub and no data.")
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True, help="Runs before those that count.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs that are timed.")
@click.option("-o", "--output", type=click.File("w", lazy=False), help="Everything measured, as JSON.")
def bench(what: str, output: Any, warmup: int, repeats: int, **source: Any) -> None:
    """Times training steps, edits or loading, and prints a table: speed, FLOPs, share of the device's peak, memory."""
    from .eval import bench as benches

    found = benches.bench(what, benches.Source(**source), warmup, repeats)
    if output:
        json.dump(found, output, indent=1)
    click.echo(benches.table(found))


@main.command("eval")
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
    name = _trained(config, checkpoint, overrides)
    from .eval.evaluate import Request
    from .eval.evaluate import evaluate as run

    run(Request(checkpoint=name, **request), Path(output), against)
    for kind in ("md", "html"):
        click.echo(Path(output) / f"report.{kind}")


@main.command()
@click.argument("plan")
@click.option("-o", "--output", required=True, help="The folder of runs and tables; runs that are there are taken.")
@click.option("--engine", type=click.Choice(("ray",)), help="Carry runs out at the same time.  [default: in turn]")
def ablate(plan: str, output: str, engine: str | None) -> None:
    """Trains and evaluates the variants of PLAN, a shipped one or a YAML file, and prints where the table is."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain.eval.ablate").setLevel(logging.INFO)

    from .eval.ablate import ablate as run

    click.echo(run(plan, Path(output), engine))


@main.command()
def modules() -> None:
    """Lists the plug-ins of every slot: slot, name, module, package."""
    rows = [("SLOT", "NAME", "MODULE", "PACKAGE")]
    rows += [(p.slot, p.name, p.module, p.package) for p in plugins()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())
    click.echo("Any slot can also be null: model.<slot>=null.")


@main.group()
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
    from .data import check as checks
    from .data.readers import guess, open_reader

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
    from .data.readers import guess, open_reader
    from .data.show import show as write

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
    from .data.mini.store import write_split

    click.echo(write_split(split, count, seed, output, size))


@data.command()
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", default="tiny", show_default=True, help="A preset or a YAML file.")
@click.option("-o", "--output", required=True, help="The folder; one that is not complete is gone on with.")
def cache(overrides: tuple[str, ...], config: str, output: str) -> None:
    """Computes what training needs of every record but never changes: latents, regions, image features. Prints where
    it is.

    Train with data.features=OUTPUT. Under torchrun several processes share the work."""
    from .config import load_config
    from .train import processes

    with processes.one_voice():
        device = processes.join()
        cfg = load_config(config, overrides)
        from .train.export import build
        from .train.features import Features

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
@click.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True)
def build(
    seeds: Path, output: Path, url: str, no_review: bool, shares: tuple[float, ...], engine: str, **settings: Any
) -> None:
    """Makes records of SEEDS, target pictures with prompts, as Reason50K was made, and prints what came of them.

    SEEDS holds a line {"id", "image", "prompt", "category"?, "mask"?} for each. See docs/data.md."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain").setLevel(logging.INFO)

    from .data.build import build as run
    from .data.build import read_seeds
    from .data.build.stages import Settings, Tools
    from .endpoint import Endpoint
    from .eval.models import Models

    read_seeds(seeds)
    try:
        output.mkdir(parents=True, exist_ok=True)
        llm = Endpoint(url, settings["model"], output.absolute() / "answers")
    except OSError as e:
        raise UserError(f"output '{output}' cannot be written: {e.strerror}") from None
    models = Models(settings["clip"], lpips=settings["lpips"])
    tools = Tools(output.absolute(), seeds.absolute().parent, Settings(**settings), llm, models)
    click.echo(run(seeds, tools, engine, not no_review, shares))


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: whoever reaches this machine may judge.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
def review(folder: Path, host: str, port: int) -> None:
    """Serves a page to accept or reject what `data build` left in DIR, until it is interrupted. Saved at once."""
    from .data.build.review import serve

    server = serve(folder, host, port)
    click.echo(f"http://{host}:{server.server_port}")
    server.serve_forever()


@data.command()
@click.argument("folder", metavar="DIR")
@click.argument("edits")
def score(folder: str, edits: str) -> None:
    """Scores the pictures EDITS/<id>.png against the records in DIR, and prints JSON."""
    from .data.mini.score import score as score_edits

    click.echo(json.dumps(score_edits(folder, edits), indent=2))


if __name__ == "__main__":
    main()
