"""`reasonbrain train`, `export`, `push`, `init` and `plan`."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import click


@click.command()
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", default="tiny", show_default=True, help="A preset or a YAML file.")
@click.option("-o", "--output", "run", required=True, help="The folder of the run; an existing run is resumed.")
@click.option(
    "--deepspeed",
    metavar="NAME|FILE",
    help="Train under DeepSpeed's ZeRO: zero1, zero2, zero3, zero3_offload, or a DeepSpeed JSON.",
)
@click.option("--local_rank", hidden=True)  # the deepspeed launcher adds it
def train(overrides: tuple[str, ...], config: str, run: str, deepspeed: str | None, local_rank: str | None) -> None:
    """Train a model. Prints its path.

    The same command resumes an interrupted run.
    KEY=VALUE changes the configuration: train.steps=100, model.frce.region.name=sam."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("reasonbrain").setLevel(logging.INFO)

    from reasonbrain.config.loading import load_config
    from reasonbrain.train.distributed import processes

    with processes.one_voice():
        processes.join()  # before the configuration is read, so that only one process reports an error in it
        cfg = load_config(config, overrides)
        from reasonbrain.train.loop import Preempted
        from reasonbrain.train.run import train as run_training

        try:
            run_training(cfg, Path(run), deepspeed)
        except Preempted as e:
            click.echo(f"{e}; the same command resumes from there", err=True)
            if e.by == signal.SIGINT:
                raise KeyboardInterrupt from None
            return
    if os.environ.get("RANK", "0") == "0":  # only rank 0 prints
        click.echo(Path(run) / "model")


@click.command()
@click.argument("run")
@click.option("-o", "--output", required=True, help="A new or an empty folder, or a checkpoint to replace.")
@click.option("--last", is_flag=True, help="Export the last weights instead of the averaged ones.")
@click.option("--merged", is_flag=True, help="Merge LoRA adapters into the weights that they adapt.")
@click.option("--adapters", is_flag=True, help="Export only trained tensors; published weights are not copied.")
@click.option("--lora", is_flag=True, help="Export FLUX's LoRA adapters alone, for diffusers and ComfyUI.")
def export(run: str, output: str, last: bool, merged: bool, adapters: bool, lora: bool) -> None:
    """Export a model from the last checkpoint of RUN. Prints its path."""
    from reasonbrain.train.export import export as export_run

    export_run(Path(run), Path(output), not last, merged, adapters, lora)
    click.echo(output)


@click.command()
@click.argument("checkpoint")
@click.argument("repository", metavar="ORG/NAME")
@click.option(
    "--report", "reports", multiple=True, help="A folder of `reasonbrain eval`, for the model card; repeatable."
)
@click.option("--private", is_flag=True, default=None, help="If the repository is made by this command.")
@click.option("--pr", is_flag=True, help="Open a pull request.")
@click.option("-m", "--message", help="Of the commit.")
def push(
    checkpoint: str, repository: str, reports: tuple[str, ...], private: bool | None, pr: bool, message: str | None
) -> None:
    """Upload a checkpoint to the model hub. Prints the address of the commit.

    CHECKPOINT is a folder, or a run of `reasonbrain train`. A README.md in the folder becomes the model card; otherwise
    one is written. Needs a token that may write: `hf auth login`, or HF_TOKEN."""
    from reasonbrain.publishing import push as upload

    click.echo(upload(checkpoint, repository, [Path(report) for report in reports], private, message, create_pr=pr))


@click.command()
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--config", default="tiny", show_default=True, help="A preset or a YAML file.")
@click.option("-o", "--output", required=True, help="A new or an empty folder.")
def init(overrides: tuple[str, ...], config: str, output: str) -> None:
    """Write the initial model of a training run. Prints its path.

    Train with train.start=OUTPUT: under ZeRO-3 each process then holds only its part of the model and one file."""
    from reasonbrain.config.loading import load_config

    cfg = load_config(config, overrides)
    from reasonbrain.train.building import init as write

    write(cfg, Path(output))
    click.echo(output)


@click.command()
@click.argument("family")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A new or an empty folder.")
def convert(family: str, source: Path, overrides: tuple[str, ...], output: Path) -> None:
    """Convert published weights of another system into a checkpoint. Prints its path.

    FAMILY is instructpix2pix (SOURCE: its .ckpt file), mgie (a folder with mgie_7b and LLaVA-7B-v1), or smartedit (a
    folder with LLM-*, embeddings_qformer, modulate-*, unet-* and LLaVA v1.1).
    Only tensors are read. What SOURCE lacks, such as a tokenizer, comes from where the preset FAMILY says; KEY=VALUE
    changes it. Which tensors were used goes to stderr."""
    from reasonbrain.modules.convert import convert as write

    click.echo(write(family, source, output, overrides), err=True)
    click.echo(output)


@click.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--gpus", type=int, required=True, help="Number of GPUs.")
@click.option("--gpu-memory", "memory", type=float, required=True, help="Memory per GPU, in GB (2^30 bytes).")
@click.option("--size", type=int, help="Pixels on a side.  [default: data.size]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, in bytes.")
def plan(config: str, overrides: tuple[str, ...], gpus: int, memory: float, size: int | None, as_json: bool) -> None:
    """Predict the memory and FLOPs of a training run. Suggests changes if it does not fit.

    CONFIG is a preset or a YAML file. Needs neither weights nor GPUs.
    KEY=VALUE changes the configuration: train.micro_batch=1."""
    from reasonbrain.train.planning import plan as planning

    if size is not None:
        overrides += (f"data.size={size}",)
    found = planning.plan(config, overrides, gpus, memory)
    click.echo(json.dumps(found, indent=2) if as_json else planning.text(found))
