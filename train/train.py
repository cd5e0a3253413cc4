"""Trains ReasonBrain: L = L_MLLM + L_DM over everything that the configuration leaves trainable.

    reasonbrain train --config tiny -o RUN [key=value ...]
    torchrun --nproc_per_node 2 -m reasonbrain.cli train --config tiny -o RUN     # shares the batch

The same command continues a run that was stopped. RUN/model is a checkpoint that ``reasonbrain edit --checkpoint RUN``
takes; RUN/log.jsonl holds the losses.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reasonbrain.checkpoint import check_same_model, save_model
from reasonbrain.config import Config, dump_config, load_config, slot_config
from reasonbrain.data.records import as_array, open_records
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.train.batches import augment
from reasonbrain.train.loop import Loop, rank, world

log = logging.getLogger(__name__)


class Batches:
    """Batch ``step`` of a run. What no training changes (latents, regions) is computed once a record and kept."""

    def __init__(self, cfg: Config, model: ReasonBrain) -> None:
        self.cfg, self.model = cfg, model
        self.records = open_records(cfg.data)
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def _compute(self, index: int) -> None:
        """One record at a time: in the company of others its latents differ in the last bit, and a resumed run keeps
        other company."""
        record = self.records[index]
        both = torch.from_numpy(as_array([record.source, record.target]))
        device = self.model.device
        diffusion = self.model.slot("diffusion")
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            images = both.to(device).float() / 255
            regions = self.model.prepare(images[:1], [""], [[]]).regions
            latents = diffusion.encode(images) if diffusion else images
        self.kept[index] = (both[0], regions[0].to("cpu", torch.int16), latents[0].cpu(), latents[1].cpu())

    def __call__(self, step: int) -> tuple[Inputs, Tensor, Tensor]:
        """Inputs and the latents of source and target: this process's share of the global batch."""
        rng = np.random.default_rng([self.cfg.train.seed, step])
        indices = rng.integers(0, len(self.records), self.cfg.train.batch_size).tolist()
        seeds = rng.integers(0, 1 << 32, len(indices))
        share = slice(rank(), None, world())
        indices = indices[share]
        for index in set(indices) - self.kept.keys():
            self._compute(index)
        records = [self.records[i] for i in indices]
        words = []
        for record, seed in zip(records, seeds[share], strict=True):
            draw = np.random.default_rng(seed)
            words.append(augment(str(draw.choice(np.array(record.instructions))), draw))
        images, regions, source, target = (torch.stack(t) for t in zip(*(self.kept[i] for i in indices), strict=True))
        device = self.model.device
        inputs = self.model.prepare(images.to(device).float() / 255, words, [r.objects for r in records], regions)
        return inputs, source.to(device), target.to(device)


def table(model: ReasonBrain) -> str:
    """Parameters by slot, in millions: all, and those that train."""
    lines = [f"{'slot':<12} {'parameters':>12} {'trained':>12}"]
    for name in SLOTS:
        part = model.slot(name)
        sizes = [] if part is None else [(p.numel(), p.requires_grad) for p in part.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
        lines.append(f"{name:<12} {total / 1e6:>11.3f}M {trained / 1e6:>11.3f}M")
    return "\n".join(lines)


def write_model(model: ReasonBrain, cfg: Config, run: Path) -> None:
    """RUN/model, replaced in one move."""
    new, old = run / "model.new", run / "model.old"
    shutil.rmtree(new, ignore_errors=True)
    save_model(model, cfg, new)
    if (run / "model").exists():
        os.replace(run / "model", old)
    os.replace(new, run / "model")
    shutil.rmtree(old, ignore_errors=True)


def train(cfg: Config, run: Path) -> ReasonBrain:
    """Trains up to ``train.steps``, continuing RUN where there is one, and returns the averaged model.

    Raises UserError if RUN was made by another model configuration or if nothing can train."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.train.batch_size % processes:
        raise UserError(f"train.batch_size: {cfg.train.batch_size} cannot be shared by {processes} processes")
    if processes > 1:
        dist.init_process_group()
    if (run / "config.yaml").is_file():
        made = load_config(str(run / "config.yaml"))
        check_same_model(cfg, made, run)
        for slot in SLOTS:
            if slot_config(cfg.model, slot) is None and slot_config(made.model, slot) is not None:
                raise UserError(f"model.{slot}: run '{run}' trains it; give another folder to train without it")
    torch.manual_seed(cfg.train.seed)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = ReasonBrain.from_config(cfg.model).to(device).train()
    without_loss = model.slot("mllm") is None and model.slot("diffusion") is None
    if without_loss or not any(p.requires_grad for p in model.parameters()):
        raise UserError("model: nothing is left to train: every slot is frozen, or mllm and diffusion are null")
    batches = Batches(cfg, model)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"run folder '{run}' cannot be made: {e.strerror}") from None
    if rank() == 0:
        log.info("\n" + table(model))
    loop = Loop(model, cfg.train, run)
    if loop.resume() and rank() == 0:
        log.info(f"continuing {run} at step {loop.step}")
    if processes > 1:
        dist.barrier()  # until all have read the run as it was
    if rank() == 0:
        (run / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")

    def losses(step: int) -> dict[str, Tensor]:
        return model(*batches(step), lm_weight=cfg.train.lm_weight, draws=cfg.train.draws)

    def on_save() -> None:
        with loop.averaged():
            write_model(model.eval(), cfg, run)
        model.train()

    loop.fit(losses, on_save)
    if processes > 1:
        dist.barrier()  # until the first process has written the model
        dist.destroy_process_group()
    loop.use_average()
    return model.eval()
