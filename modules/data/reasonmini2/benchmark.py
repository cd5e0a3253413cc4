"""ReasonMini 2 as a benchmark: whether the outcome is visible in the edit, and how much of the rest changed.

reasonbrain eval --benchmark mini2 -o REPORT [--data picture] [--limit 300]
"""

from __future__ import annotations

import json

from PIL import Image

from reasonbrain.config.schema import DataConfig
from reasonbrain.data.record import Record
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.metrics import Case, Metric
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.modules.data.reasonmini.benchmark import SEED, MiniBenchmark
from reasonbrain.modules.data.reasonmini2.check import passes
from reasonbrain.modules.data.reasonmini2.world import SPLITS, make

TESTED = tuple(split for split in SPLITS if split not in ("train", "val"))
COUNT = 300  # records per split, unless a limit is given


class Mini2Splits:
    """The first ``count`` records of each split, drawn on the fly. The ``notes`` of a record: its split, its event, its
    thing, its kind, and its params as JSON.

    ``split``: one split (None: all). Raises UserError for an unknown split."""

    def __init__(self, split: str | None, count: int | None) -> None:
        if split and split not in TESTED:
            raise UserError(f"data '{split}' is not a split of ReasonMini 2; choose from {', '.join(TESTED)}")
        self.splits = (split,) if split else TESTED
        self.count = count or COUNT

    def __len__(self) -> int:
        return len(self.splits) * self.count

    def __getitem__(self, index: int) -> Record:
        split = self.splits[index // self.count]
        s = make(split, index % self.count, SEED)
        notes = {
            "split": split,
            "event": s.kind.event,
            "thing": s.kind.thing,
            "kind": s.kind.name,
            "params": json.dumps(s.params),
        }
        mask = Image.fromarray(s.mask).convert("L")
        return Record(
            s.id, s.source, s.target, [s.instruction], s.objects, s.kind.category, mask, ("", s.outcome), notes
        )


def outcome_check(case: Case, models: Models) -> float:
    """1 if the edit looks more like the true target than like anything else that may happen, else 0."""
    notes = case.record.notes
    return float(passes(case.edit, notes["kind"], json.loads(notes["params"])))


class Mini2Benchmark(MiniBenchmark):
    """Outcome check and distance from the target, on seven splits of ReasonMini 2 drawn on the fly: new scenes
    (``test``), wordings never trained on (``paraphrase``) and without a content word of those that were
    (``stranger``), combinations of thing, colour and background never trained on (``compositional``), instructions
    that name nothing (``picture``), outcomes that depend on what the picture shows (``conditional``), and two things
    in one picture (``pair``). ``data`` selects one of them. ``limit`` is the number of records of each.

    Metrics and baselines are those of the benchmark ``mini``."""

    own_metrics = {"outcome": Metric(outcome_check, regions=False)}
    groups = ("split", "category", "event", "thing")

    def records(self, data: str | None, limit: int | None, trained_on: DataConfig | None = None) -> Mini2Splits:
        return Mini2Splits(data, limit)
