"""Trains ReasonBrain: minimises L = L_MLLM + L_DM (arXiv:2507.01908) over all trainable parameters.

    reasonbrain train --config tiny -o RUN [key=value ...]                        # one process
    torchrun --nproc_per_node 2 train/train.py --config tiny -o RUN               # data parallel
    deepspeed train/train.py --config CONFIG --deepspeed configs/deepspeed/zero3.json -o RUN     # ZeRO

The same command resumes an interrupted run, also with another number of processes or another of these launchers.
RUN/checkpoints holds the checkpoints and RUN/log.jsonl the losses. A finished run writes RUN/model, the model for
``reasonbrain edit --checkpoint RUN``; ``reasonbrain export`` writes it for an unfinished run. With ``train.stages``,
that is the run of the last stage (``stages.py``).
"""

from __future__ import annotations

import gc
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from reasonbrain.attention import set_attention
from reasonbrain.checkpoint import check_same_model
from reasonbrain.config.loading import load_config, portable_config
from reasonbrain.config.schema import Config, DataConfig, TrainConfig, loss_weights, slot_config
from reasonbrain.data.dataset import DataSet
from reasonbrain.data.mixture import Mixture
from reasonbrain.data.opening import hash_beside
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS, plugin
from reasonbrain.train.batches import Batch, Batches, micro_batch
from reasonbrain.train.building import build, note_start
from reasonbrain.train.distributed import faults, processes
from reasonbrain.train.distributed.zero import ZeroEngine, partitioner
from reasonbrain.train.distributed.zero_json import fill
from reasonbrain.train.engine import Engine
from reasonbrain.train.export import export
from reasonbrain.train.loop import LOG, Loop
from reasonbrain.train.optim import check_trains, numel
from reasonbrain.train.stages import Stage, open_stages, stages_of
from reasonbrain.train.tracking import Tracker
from reasonbrain.train.validation import Validation, is_trained_on
from reasonbrain.utils.files import check_replaceable, whole_file
from reasonbrain.utils.reading import sketch

DATA = "data.json"  # what the run was trained on

log = logging.getLogger(__name__)


def table(model: ReasonBrain) -> str:
    """A table of total and trainable parameters by slot, in millions."""
    lines = [f"{'slot':<12} {'parameters':>12} {'trained':>12}"]
    for name in SLOTS:
        part = model.slot(name)
        params = [] if part is None else list(part.parameters())
        total, trained = (sum(numel(p) for p in params if p.requires_grad or every) for every in (True, False))
        lines.append(f"{name:<12} {total / 1e6:>11.3f}M {trained / 1e6:>11.3f}M")
    return "\n".join(lines)


def check_run(cfg: Config, run: Path) -> None:
    """Logs what ``cfg`` changes in RUN, which exists. Raises UserError if RUN was trained with another model or another
    optimizer, or if it is a folder of something else."""
    if not (run / "config.yaml").is_file():
        for name in (LOG, "checkpoints"):  # an empty folder, or a link to one on another disk, may be prepared
            if (run / name).is_file() or ((run / name).is_dir() and any((run / name).iterdir())):
                raise UserError(f"output '{run}' holds '{name}', but no config.yaml of a run; name another folder")
        return
    made = load_config(str(run / "config.yaml"))
    check_same_model(cfg, made, run)
    if cfg.train.optimizer != made.train.optimizer:
        raise UserError(
            f"train.optimizer: run '{run}' trains with {made.train.optimizer}, not {cfg.train.optimizer}; "
            f"choose another folder, and train.start={run} to start from its weights"
        )
    for slot in SLOTS:
        if slot_config(cfg.model, slot) is None and slot_config(made.model, slot) is not None:
            raise UserError(f"model.{slot}: run '{run}' trains it; choose another folder to train without it")
    for section in ("data", "train"):
        old, new = (_settings(getattr(c, section)) for c in (made, cfg))
        for key in {**old, **new}:
            then, now = (values.get(key, "the default") for values in (old, new))
            if then != now and processes.rank() == 0:
                log.warning(f"{run}: {section}.{key} is {now} now; the run was trained with {then}")


def _settings(section: DataConfig | TrainConfig) -> dict[str, Any]:
    """The keys of a section, those of the data set among them, as they are written."""
    values = dict(vars(section))
    further = values.pop("options", {})
    return values | further


def note_data(data: DataSet, run: Path) -> None:
    """Writes the number of records of ``data``, a sketch of its files and ``hash_beside`` to RUN/data.json, for each
    part of a mixture. Logs what has changed since the run was last started."""
    parts = {f"data.mixture[{i}]": p for i, p in enumerate(data.parts)} if isinstance(data, Mixture) else {"data": data}
    now = {name: [len(part), *map(sketch, part.files), hash_beside(part)] for name, part in parts.items()}
    then = now
    with suppress(OSError, ValueError, TypeError):  # a run that starts, or whose note was lost in a power failure
        then = dict(json.loads((run / DATA).read_text(encoding="utf-8")))
    for name, (count, *files) in now.items():
        before, *old = then.get(name) or now[name]
        if count != before:
            log.warning(f"{run}: {name} has {count} records now; the run was trained with {before}")
        elif any(new not in (one, None) for new, one in zip(files, old)):  # noqa: B905 - older notes are shorter
            log.warning(f"{run}: the files of {name} are not those that the run was trained with")
    with whole_file(run / DATA) as file:
        json.dump(now, file)


def check_partitioned_loading(cfg: Config) -> None:
    """Raises UserError if ``train.start`` cannot be loaded one tensor at a time, as ZeRO-3 requires."""
    for slot in SLOTS:
        params = slot_config(cfg.model, slot)
        if cfg.train.start and params:
            plugin(slot, params["name"]).check_partitioned_loading(params)


def train(cfg: Config, run: Path, deepspeed: str | None = None) -> None:
    """Trains all stages up to their ``train.steps``, resuming RUN if it exists, and writes RUN/model.

    Args:
        cfg: the configuration
        run: folder of the run
        deepspeed: a DeepSpeed JSON configuration, a file or one of ``zero.presets``; None trains with plain torch

    Raises:
        UserError: if RUN holds another model or is being trained, nothing is trainable, the batch size, the launch or
            the DeepSpeed configuration does not match ``cfg``, memory runs out, or the disk is full
        RunError: if a process is lost
        FloatingPointError, Preempted: as in ``Loop.fit``
    """
    device = processes.join()
    with faults.watched(run, device) as watch:
        stages = stages_of(cfg, run)
        zeros = {}
        for stage in stages:  # before the first one is trained, and before DeepSpeed joins the processes
            micro_batch(stage.cfg.train, processes.world())
            zeros[stage.run] = fill(deepspeed, stage.cfg.train, processes.world()) if deepspeed else None
            if _partitions(zeros[stage.run]):
                check_partitioned_loading(stage.cfg)
        for stage in open_stages(stages):
            if stage.name and processes.rank() == 0:
                log.info(f"stage {stage.name}: {stage.run}")
            _train_stage(stage, zeros[stage.run], device, watch)
            watch.loop = None  # the next stage needs the memory of its model
            gc.collect()
            processes.wait()  # for the model from which the next stage starts


def _partitions(zero: dict[str, Any] | None) -> bool:
    """Whether parameters are partitioned over the processes."""
    return zero is not None and zero["zero_optimization"]["stage"] == 3 and processes.world() > 1


def _train_stage(stage: Stage, zero: dict[str, Any] | None, device: torch.device, watch: faults.Watch) -> None:
    _, cfg, run = stage
    check_run(cfg, run)
    check_replaceable(run / "model")  # written when the run ends
    partition = partitioner(zero) if zero and _partitions(zero) else None
    model = build(cfg, partition).to(device).train()
    check_trains(model, cfg.train)
    batches = Batches(cfg, model)
    with processes.claimed(run, device, f"run '{run}' is being trained"):
        _train(stage, model, batches, zero, watch)


def _train(
    stage: Stage, model: ReasonBrain, batches: Batches, zero: dict[str, Any] | None, watch: faults.Watch
) -> None:
    name, cfg, run = stage
    for slot in cfg.train.checkpointing:
        model.parts[slot].enable_gradient_checkpointing()
    for slot in cfg.train.compile:
        model.parts[slot].compile_blocks()
    set_attention(model, cfg.model.attention, training=True, autocast=torch.bfloat16 if cfg.train.bf16 else None)
    first, data = processes.rank() == 0, batches.features.records.source
    if first:
        log.info("\n" + table(model))
    engine = ZeroEngine(model, cfg.train, zero) if zero else Engine(model, cfg.train)
    watch.loop = loop = Loop(engine, cfg.train, run, name)
    if loop.resume() and first:
        log.info(f"resuming {run} at step {loop.step}")
    processes.wait()  # all processes must have read the run before it changes
    if first:
        loop.shorten_log()
        note_data(data, run)
        note_start(cfg, run)
        new = run / "config.yaml.new"  # written in one piece even if the disk fills up
        new.write_text(portable_config(cfg), encoding="utf-8")
        os.replace(new, run / "config.yaml")
        if cfg.train.tracker:
            loop.tracker = Tracker(cfg.train.tracker, run, loop.step, asdict(cfg))
    validation = Validation(cfg, model, engine, run) if cfg.train.validate_every else None
    if first and cfg.data.validation and not validation:
        log.warning("data.validation is not used: train.validate_every is null")
    if first and validation and is_trained_on(cfg.data, data, validation.data):
        log.warning(f"data.validation: '{cfg.data.validation}' is trained on, so the validation loss does not count")

    def losses(batch: Batch) -> dict[str, torch.Tensor]:
        return engine.model(*batch, draws=cfg.train.draws, **loss_weights(cfg.train))

    loop.fit(batches, losses, batches.parts, batches.ids, validation)
    if first:
        export(run, run / "model")
