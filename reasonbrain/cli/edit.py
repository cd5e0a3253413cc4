"""`reasonbrain edit` and `reasonbrain batch`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from reasonbrain.errors import UserError, out_of_memory, reason
from reasonbrain.utils.text import printable

checkpoint_option = click.option(
    "--checkpoint",
    help="A trained model: a folder, a run of `reasonbrain train`, or ORG/NAME[@REVISION] on the hub.  [default: tiny]",
)


def placement_options(command: Any) -> Any:
    """Decorates a command that edits: --device, --dtype and --offload, which stand for ``edit.*`` settings."""
    for option, what in (
        ("--offload", "Keep weights in host memory until needed: one model or one group of layers at a time."),
        ("--dtype", "float32, bfloat16, float16, fp8 or nf4.  [default: bfloat16 on an accelerator]"),
        ("--device", "Where to edit: cpu, cuda, cuda:1.  [default: the accelerator, if there is one]"),
    ):
        command = click.option(option, help=what)(command)
    return command


def placement_overrides(**options: str | None) -> tuple[str, ...]:
    """The values of ``placement_options`` as overrides."""
    return tuple(f"edit.{key}={value}" for key, value in options.items() if value is not None)


@click.command()
@click.argument("image")
@click.argument("instruction")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-o", "--output", required=True, help="The edited image: .png, .jpg, .webp, .tif or .bmp.")
@click.option("--config", help="The preset or YAML file of the model.  [default: tiny]")
@checkpoint_option
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Equal seeds give equal images.  [default: 0]"
)
@click.option("--steps", type=int, help="Sampling steps.  [default: the configuration's]")
@click.option(
    "--reasoning",
    metavar="SENTENCE",
    help="What the edit shows, in your words.  [default: what the MLLM writes]",
)
@placement_options
@click.option("--panel", help="Also write an image that shows source, regions, attention, result and reasoning.")
def edit(
    image: str,
    instruction: str,
    overrides: tuple[str, ...],
    output: str,
    config: str | None,
    checkpoint: str | None,
    seed: int,
    steps: int | None,
    reasoning: str | None,
    panel: str | None,
    device: str | None,
    dtype: str | None,
    offload: str | None,
) -> None:
    """Edit IMAGE as INSTRUCTION implies. Prints the path of the result.

    KEY=VALUE changes the configuration: edit.guidance=2, model.cme=null."""
    from reasonbrain.instruction import check_instruction
    from reasonbrain.utils.files import check_not_input
    from reasonbrain.utils.images import check_output, load_image, save_image

    for path in filter(None, (output, panel)):
        check_output(path)
        check_not_input(Path(path), [image])
    if panel and Path(panel).resolve() == Path(output).resolve():
        raise UserError(f"panel '{panel}' and output are the same file")
    check_instruction(instruction)
    source = load_image(image)

    import torch

    from reasonbrain.checkpoint import edits_as_published
    from reasonbrain.config.loading import load_config, presets
    from reasonbrain.editing.panel import make_panel
    from reasonbrain.editing.placement import open_pipeline

    overrides += placement_overrides(device=device, dtype=dtype, offload=offload)
    if steps is not None:
        overrides += (f"edit.steps={steps}",)
    name = checkpoint or config or "tiny"
    pipe = open_pipeline(name, overrides, config)
    pipe.set_progress_bar_config(desc="editing", disable=None)  # None: shown on a terminal only
    generator = torch.Generator().manual_seed(seed)
    try:
        asked = panel is not None if reasoning is None else reasoning
        out = pipe(source, instruction, generator=generator, reasoning=asked)
    except UserError:
        raise
    except Exception as e:  # whatever a tokenizer or an image processor of somebody else's checkpoint leads to
        if name == "tiny" or out_of_memory(e):
            raise
        raise UserError(f"checkpoint '{name}' cannot edit '{image}': {reason(e)}") from e
    result = out.images[0]
    metadata = {
        "instruction": instruction,
        "seed": str(seed),
        "steps": str(pipe.edit_settings.steps),
        "checkpoint": name,
    }
    said = out.reasoning[0] if out.reasoning else None
    metadata |= {"reasoning": said} if said and pipe.model.reads_sentence else {}
    if out.rounds[0]:
        metadata["rounds"] = json.dumps([made.summary() for made in out.rounds[0]])
    if out.notes[0]:
        metadata["note"] = out.notes[0]
        click.echo(out.notes[0], err=True)
    if panel:
        shown = make_panel(source, result, out.regions[0], out.focus[0], instruction, out.objects[0], said)
        save_image(shown, panel)
    save_image(result, output, metadata)
    if out.unfamiliar[0]:
        models = {preset: load_config(preset).model for preset in presets()}
        editors = [preset for preset, model in models.items() if model.thinking and edits_as_published(model)]
        click.echo(
            f"this image is nothing like those that '{name}' was trained on; for photographs: "
            f"--config {' or '.join(editors)}",
            err=True,
        )
    for path in filter(None, (output, panel)):
        click.echo(os.fsencode(path))  # also a name that is not valid text


@click.command()
@click.argument("jobs", type=click.Path(path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder of the results.")
@click.option("--instruction", help="The instruction for all images, if JOBS is a folder of images.")
@click.option("--config", help="The preset or YAML file of the model.  [default: tiny]")
@checkpoint_option
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Rows per forward pass.")
@click.option("--workers", type=click.IntRange(1), help="Replicas of the model.  [default: one per device]")
@click.option("--executor", type=click.Choice(("processes", "ray")), default="processes", show_default=True)
@placement_options
@click.pass_context
def batch(
    ctx: click.Context,
    checkpoint: str | None,
    workers: int | None,
    executor: str,
    device: str | None,
    dtype: str | None,
    offload: str | None,
    **job: Any,
) -> None:
    """Edit many images: the rows of JOBS. Prints the paths of the results.

    JOBS is a .jsonl, .csv or .parquet file, or a folder of images. The same command resumes an interrupted batch. Exit
    code 3: some rows could not be edited; the results have the reasons.
    KEY=VALUE changes the configuration: edit.guidance=2. See docs/batch.md."""
    from reasonbrain.editing.batch.jobs import Job
    from reasonbrain.editing.batch.run import run

    job["overrides"] += placement_overrides(device=device, dtype=dtype, offload=offload)
    if workers is None and any(override.startswith("edit.device=") for override in job["overrides"]):
        workers = 1  # all replicas would share that device
    what = Job(checkpoint=checkpoint or job["config"] or "tiny", **job)
    failed, truncated = run(what, workers, executor)
    first = os.environ.get("RANK", "0") == "0"
    if first and (skipped := what.skipped()):
        names = ", ".join(printable(name, 60) for name in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        click.echo(f"jobs '{what.jobs}': {len(skipped)} entries are not images and were skipped: {names}", err=True)
    if first and truncated:
        click.echo(f"the text encoder truncated {truncated} texts; see unread in results.jsonl", err=True)
    if failed:
        click.echo(f"{failed} results failed; results.jsonl has the reasons", err=True)
    if "WORLD_SIZE" not in os.environ:  # torchrun would stop the other processes
        for file in ("results.jsonl", "gallery.html"):
            click.echo(os.fsencode(what.output / file))
        ctx.exit(3 if failed else 0)
