"""Batches of a run: which records a step uses, and how they are split over the processes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reasonbrain.config.schema import Config, TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Inputs
from reasonbrain.model import ReasonBrain
from reasonbrain.train.augment import augment
from reasonbrain.train.distributed import processes
from reasonbrain.train.feature_cache import TENSORS, FeatureCache

Batch = tuple[Inputs, Tensor, Tensor, list[int]]  # inputs, latents of source and target, the rows' seeds


def micro_batch(cfg: TrainConfig, world: int) -> int:
    """Records per process and pass. Raises UserError if ``batch_size`` cannot be split evenly."""
    share, rest = divmod(cfg.batch_size, world)
    if rest:
        raise UserError(f"train.batch_size: {cfg.batch_size} is not divisible by the number of processes, {world}")
    micro = cfg.micro_batch or share
    if share % micro:
        raise UserError(f"train.micro_batch: {micro} does not divide a process's share of the batch, {share}")
    return micro


class Batches:
    """The batches of a run. The batch of a step depends on (seed, step) alone; process r of n takes rows r, r + n, ...

    Calling it with (step, part) returns this process's batch of one pass.
    """

    def __init__(self, cfg: Config, model: ReasonBrain) -> None:
        self.cfg, self.model = cfg, model
        self.micro = micro_batch(cfg.train, processes.world())
        self.parts = cfg.train.batch_size // (self.micro * processes.world())
        self.features = FeatureCache(cfg, model)
        self.vocabulary = np.array(self.features.records.source.vocabulary() if cfg.data.augment else [])

    def rows(self, step: int, part: int) -> tuple[list[int], list[int]]:
        """Record indices and seeds of this process's rows in pass ``part`` of a step."""
        rng = np.random.default_rng([self.cfg.train.seed, step])
        numbers = self.features.buckets.draw(rng, self.cfg.train.batch_size)
        seeds = rng.integers(0, 1 << 32, len(numbers)).tolist()
        ours = slice(processes.rank(), None, processes.world())
        here = slice(part * self.micro, (part + 1) * self.micro)
        return numbers[ours][here], seeds[ours][here]

    def ids(self, step: int, part: int) -> str:
        """The record ids of a pass, for error messages."""
        numbers, _ = self.rows(step, part)
        return "records " + ", ".join(self.features[n].id for n in numbers)

    def __call__(self, step: int, part: int = 0) -> Batch:
        """Returns this process's rows of one pass, on the model's device, and prefetches the next pass."""
        numbers, seeds = self.rows(step, part)
        found = [self.features[n] for n in numbers]
        after = (step, part + 1) if part + 1 < self.parts else (step + 1, 0)
        self.features.expect(self.rows(*after)[0])
        data, texts, objects, chosen = self.cfg.data, [], [], []
        for record, seed in zip(found, seeds, strict=True):
            rng = np.random.default_rng(seed)
            text = str(rng.choice(np.array(record.instructions)))
            chosen.append(list(record.instructions).index(text))
            texts.append(augment(text, data.augment, self.vocabulary, rng) if data.augment else text)
            objects.append(record.objects if rng.random() < data.given_objects else None)
        device = self.model.device
        image, regions, source, target = (torch.stack([getattr(r, name) for r in found]) for name in TENSORS)
        ready = {slot: torch.stack([r.ready[slot] for r in found]) for slot in found[0].ready}
        images, mllm = image.to(device).float() / 255, self.model.slot("mllm")
        inputs = self.model.make_inputs(images, texts, objects, regions, ready)
        inputs.edits = torch.tensor([record.edits for record in found], device=device)
        rows = list(zip(found, chosen, strict=True))
        if all(said := [record.sentence for record in found]):
            inputs.sentences = said
        elif mllm is not None and mllm.reads_sentence:
            lacks = next(r.id for r in found if not r.sentence)
            raise UserError(f"data: record '{lacks}' has no 'sentence', which model.mllm.sentence=true trains on")
        elif found[0].sentences and not data.augment:
            inputs.sentences = [record.sentences[i] for record, i in rows]  # type: ignore[index]
            named = [record.named[i] for record, i in rows]  # type: ignore[index]
            inputs.objects = [own or other for own, other in zip(inputs.objects, named, strict=True)]
        if found[0].words and not data.augment:
            words = {name: torch.stack([record.words[i][name] for record, i in rows]) for name in found[0].words[0]}
            inputs.words = {name: features.to(device) for name, features in words.items()}
        return inputs, source.to(device), target.to(device), seeds
