"""The base class of benchmarks, and the lookup of benchmarks by name.

    benchmark = find_benchmark("magicbrush")

Built-in and third-party benchmarks are found the same way: through entry points of the group
``reasonbrain.benchmarks``, which name a subclass of ``Benchmark`` (in a package's pyproject.toml)::

    [project.entry-points."reasonbrain.benchmarks"]
    mine = "my_package.my_module:MyBenchmark"

A benchmark's module is imported when the benchmark is first requested. published.py has the benchmarks of papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

from reasonbrain.config.schema import DataConfig
from reasonbrain.data.opening import open_reader
from reasonbrain.data.record import Record, Records
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.edits import System
from reasonbrain.eval.evaluation.judged import JUDGED, Judged
from reasonbrain.eval.evaluation.metrics import METRICS, Metric
from reasonbrain.eval.evaluation.networks import CLIP_B, DINO_S

GROUP = "reasonbrain.benchmarks"


class Benchmark:
    """Records, metrics, baselines, and the networks that the metrics use. A subclass overrides what differs.

    The docstring of a published benchmark names the source of each choice."""

    reader: ClassVar[str]  # the ``data.name`` of the records
    metrics: ClassVar[tuple[str, ...]]  # names; the report sorts worst cases by the first
    judged_metrics: ClassVar[tuple[str, ...]] = ("Ins-Align", "MLLM Score")  # names; ``--judge`` adds them in front
    own_metrics: ClassVar[Mapping[str, Metric | Judged]] = {}  # by name; metrics that other benchmarks do not have
    groups: ClassVar[tuple[str, ...]] = ("category",)  # one table per value; others are keys of a record's ``notes``
    compared: ClassVar[int | None] = None  # side in pixels at which pictures are compared; None: the target's size
    clip: ClassVar[str] = CLIP_B  # a folder or a hub id
    dino: ClassVar[str] = DINO_S  # a folder or a hub id
    lpips: ClassVar[str] = "alex"  # or squeeze, vgg

    def records(self, data: str | None, limit: int | None, trained_on: DataConfig | None = None) -> Records:
        """The first ``limit`` records of ``data``, each picture at its own size.

        ``data``: the value of ``--data``, by default a folder, file or pattern that ``reader`` reads. ``trained_on``:
        if given, a benchmark may restrict the records to those that a model trained on that data could learn, as in
        ablations; ignored by default. Raises UserError for data that is missing or cannot be read, and for two records
        with the same id, because edits are stored by id."""
        if data is None:
            raise UserError(f"--data: the benchmark needs a folder or manifest, which it reads as '{self.reader}'")
        records = open_reader(self.reader, data)
        records.check_ids(limit)
        return First(records, limit) if limit else records

    def baselines(self, pipe: ReasonBrainPipeline | None, folder: Path, seed: int) -> dict[str, System]:
        """Systems that the report compares with the edits, by name. ``pipe``: the model that makes the edits; None if
        they are from another system. ``folder``: the report's folder, where baselines may store pictures."""
        return {"do nothing": lambda record: record.source}

    def select_metrics(self, names: tuple[str, ...] = (), judge: bool = False) -> dict[str, Metric | Judged]:
        """The benchmark's metrics, or those in ``names`` (case-insensitive). ``judge``: whether there is a judge.

        Raises UserError for an unknown name, and for a judged metric without a judge."""
        known = {**METRICS, **self.own_metrics, **JUDGED}
        spelled = {name.lower(): name for name in known}
        for name in names:
            if name.lower() not in spelled:
                raise UserError(f"metric '{name}' is not one of {', '.join(known)}")
            if isinstance(known[spelled[name.lower()]], Judged) and not judge:
                raise UserError(f"metric '{name}' needs a judge: --judge and --judge-model")
        names = names or (self.judged_metrics if judge else ()) + self.metrics
        return {spelled[name.lower()]: known[spelled[name.lower()]] for name in names}


@dataclass
class First:
    """The first ``count`` records."""

    records: Records
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.records))

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by name. Raises UserError that lists the choices for an unknown one."""
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise UserError(f"benchmark '{name}' is not one of {', '.join(sorted(known))}")
    return known[name].load()()
