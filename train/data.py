"""Batches of a run: which records a step takes, who takes which of them, and what is computed once a record."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from reasonbrain.config import Config, TrainConfig
from reasonbrain.data.records import Record, as_array, open_records
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.train import processes
from reasonbrain.train.batches import augment

log = logging.getLogger(__name__)


def micro_batch(cfg: TrainConfig, world: int) -> int:
    """Records of one process in one pass. Raises UserError where the batch cannot be shared out."""
    share, rest = divmod(cfg.batch_size, world)
    if rest:
        raise UserError(f"train.batch_size: {cfg.batch_size} cannot be shared by {world} processes")
    micro = cfg.micro_batch or share
    if share % micro:
        raise UserError(f"train.micro_batch: {micro} does not divide a process's share of the batch, {share}")
    return micro


class Batches:
    """The batch of a step is a function of (seed, step) and is shared by row: process r of n takes rows r, r + n, ...

    What no training changes (latents, regions) is computed once a record and kept."""

    def __init__(self, cfg: Config, model: ReasonBrain) -> None:
        self.cfg, self.model = cfg, model
        self.micro = micro_batch(cfg.train, processes.world())
        self.parts = cfg.train.batch_size // (self.micro * processes.world())
        self.records = open_records(cfg.data)
        self.bad: set[int] = set()
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def rows(self, step: int, part: int) -> tuple[list[int], list[int]]:
        """Record numbers and seeds of this process's rows in pass ``part`` of a step."""
        rng = np.random.default_rng([self.cfg.train.seed, step])
        numbers = rng.integers(0, len(self.records), self.cfg.train.batch_size).tolist()
        seeds = rng.integers(0, 1 << 32, len(numbers)).tolist()
        ours = slice(processes.rank(), None, processes.world())
        here = slice(part * self.micro, (part + 1) * self.micro)
        return numbers[ours][here], seeds[ours][here]

    def record(self, number: int) -> tuple[int, Record]:
        """The record, or the next one that can be read, with its number. Raises UserError naming a bad one, unless
        ``data.skip_bad`` allows for it."""
        for candidate in range(number, number + len(self.records)):
            candidate %= len(self.records)
            try:
                return candidate, self.records[candidate]
            except UserError as e:
                if not self.cfg.data.skip_bad:
                    raise
                if candidate not in self.bad:
                    self.bad.add(candidate)
                    log.warning(f"{e}; the next record takes its place ({len(self.bad)} bad so far)")
        raise UserError(f"data: none of the {len(self.records)} records can be read")

    def ids(self, step: int, part: int) -> str:
        """The records of a pass, for a message."""
        numbers, _ = self.rows(step, part)
        return "records " + ", ".join(self.record(n)[1].id for n in numbers)

    def _compute(self, number: int, record: Record) -> None:
        """One record at a time: in the company of others its latents differ in the last bit, and a resumed run keeps
        other company."""
        both = torch.from_numpy(as_array([record.source, record.target]))
        device = self.model.device
        diffusion = self.model.slot("diffusion")
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            images = both.to(device).float() / 255
            regions = self.model.prepare(images[:1], [""], [[]]).regions
            latents = diffusion.encode(images) if diffusion else images
        self.kept[number] = (both[0], regions[0].to("cpu", torch.int16), latents[0].cpu(), latents[1].cpu())

    def __call__(self, step: int, part: int = 0) -> tuple[Inputs, Tensor, Tensor, list[int]]:
        """Inputs, the latents of source and target, and the rows' seeds: this process's share of one pass."""
        numbers, seeds = self.rows(step, part)
        found = [self.record(n) for n in numbers]
        words = []
        for (number, record), seed in zip(found, seeds, strict=True):
            if number not in self.kept:
                self._compute(number, record)
            draw = np.random.default_rng(seed)
            words.append(augment(str(draw.choice(np.array(record.instructions))), draw))
        columns = zip(*(self.kept[number] for number, _ in found), strict=True)
        images, regions, source, target = (torch.stack(t) for t in columns)
        device = self.model.device
        objects = [record.objects for _, record in found]
        inputs = self.model.prepare(images.to(device).float() / 255, words, objects, regions)
        return inputs, source.to(device), target.to(device), seeds
