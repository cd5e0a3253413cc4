"""Runs a benchmark: makes the edits or takes another system's, measures them, writes the report.

    reasonbrain eval --benchmark mini -o REPORT                                     # the embedded default
    reasonbrain eval --benchmark magicbrush --data DIR --checkpoint RUN -o REPORT   # a training run
    reasonbrain eval --benchmark magicbrush --data DIR --edits THEIRS -o REPORT     # any other system's pictures
    reasonbrain eval ... --against OTHER_REPORT                                     # and are the two different?
    reasonbrain eval ... --judge URL --judge-model NAME                             # judged metrics as well, judged.py

Pictures of a few records are held at a time; of a record only its numbers stay.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from reasonbrain.data.record import Record, Records
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation import report
from reasonbrain.eval.evaluation.benchmarks import Benchmark, find
from reasonbrain.eval.evaluation.edits import Edits, System
from reasonbrain.eval.evaluation.judged import Judged, judge_rows
from reasonbrain.eval.evaluation.metrics import Metric, look_at, scores
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.modules.data.reasonmini import benchmark as mini
from reasonbrain.utils.endpoint import Endpoint

TOGETHER = 2**16  # pixels in a batch: 16 pictures of 64 x 64, one of 512 x 512
BAR: dict[str, Any] = {"desc": "edits and metrics", "unit": "record", "disable": None}
PACKAGES = ("reasonbrain", "torch", "torchmetrics", "transformers", "diffusers", "scikit-image", "scipy", "numpy")


@dataclass(frozen=True)
class Request:
    """What the command was asked for. ``edits``: another system's folder, instead of a model of ours. ``metrics``:
    instead of the benchmark's. ``clip``, ``dino``: networks instead of the benchmark's. ``judge``: an OpenAI-compatible
    endpoint that serves ``judge_model``."""

    benchmark: str
    data: str | None = None
    checkpoint: str = "tiny"
    config: str | None = None
    overrides: tuple[str, ...] = ()
    edits: Path | None = None
    limit: int | None = None
    seed: int = 0
    metrics: tuple[str, ...] = ()
    clip: str | None = None
    dino: str | None = None
    judge: str | None = None
    judge_model: str | None = None


def evaluate(request: Request, output: Path, against: Path | None = None) -> dict[str, Any]:
    """Writes OUTPUT/report.json, .md and .html, and what edits it makes to OUTPUT/edits and a judge's answers to
    OUTPUT/answers, where they are found again.
    Returns the report. Raises UserError for what cannot be read, written or compared, and for a metric asked for by
    name whose network is missing; one that only belongs to the benchmark is reported as not available."""
    benchmark = find(request.benchmark)
    if bool(request.judge) != bool(request.judge_model):
        only = request.judge or request.judge_model
        raise UserError(f"--judge and --judge-model go together; given is '{only}' alone")
    chosen = benchmark.chosen(request.metrics, bool(request.judge))
    metrics = {name: metric for name, metric in chosen.items() if isinstance(metric, Metric)}
    judged = {name: metric for name, metric in chosen.items() if isinstance(metric, Judged)}
    records = benchmark.records(request.data, request.limit)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    models = Models(request.clip or benchmark.clip, request.dino or benchmark.dino, benchmark.lpips, device)
    unavailable = missing_networks(metrics, models, request)
    metrics = {name: metric for name, metric in metrics.items() if name not in unavailable}
    used = {need: models.ids[need] for m in metrics.values() for need in m.needs if need in Models.NAMES}
    if judged:
        used["judge"] = str(request.judge_model)
    found: dict[str, Any] = {
        "benchmark": request.benchmark,
        "system": str(request.edits or request.checkpoint),
        "seed": request.seed,
        "command": sys.argv[1:],
        "networks": used,
        "unavailable": unavailable,
        "metrics": {name: metric.higher_is_better for name, metric in (judged | metrics).items()},
        "versions": {"python": sys.version.split()[0], **{p: _version(p) for p in PACKAGES}},
        "device": str(device),
    }
    other = report.read(against, found) if against else None

    pipe = None
    if request.edits is None:
        pipe = ReasonBrainPipeline.from_pretrained(request.checkpoint, request.overrides, request.config).to(device)
        pipe.set_progress_bar_config(disable=True)
        found["config"] = asdict(pipe.settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"output '{output}': {e.strerror}") from None
    edits = Edits(request.edits or output / "edits", pipe, request.seed)
    judge = Endpoint(str(request.judge), used["judge"], output / "answers") if judged else None
    baselines: dict[str, System] = {"do nothing": lambda record: record.source}
    if benchmark.reader == "mini":
        baselines |= mini.baselines(pipe, output, request.seed)
    found |= measure(records, benchmark, metrics, models, edits, baselines)
    if judge:
        found["judged"] = judge_rows(found["records"], records, edits, judged, judge)
    found["edits"] = str(request.edits.resolve()) if request.edits else "edits"
    found["tables"] = report.tables(found, benchmark.groups, other)
    report.write(found, output, records, edits, other)
    return found


def missing_networks(metrics: dict[str, Metric], models: Models, request: Request) -> dict[str, str]:
    """Why which metrics cannot be had. Raises UserError where one, or its network, was asked for by name."""
    reasons = {
        need: models.missing(need) for m in metrics.values() for need in dict.fromkeys(m.needs) if need in Models.NAMES
    }
    unavailable = {
        name: reason for name, m in metrics.items() for need in m.needs if (reason := reasons.get(need)) is not None
    }
    for name in unavailable if request.metrics else ():
        raise UserError(f"metric '{name}': {unavailable[name]}")
    for need in ("clip", "dino"):
        if getattr(request, need) and reasons.get(need):
            raise UserError(f"--{need}: {reasons[need]}")
    return unavailable


def measure(
    records: Records,
    benchmark: Benchmark,
    metrics: dict[str, Metric],
    models: Models,
    edits: Edits,
    baselines: dict[str, System],
) -> dict[str, Any]:
    """``records``: a row each, with the scores of every system. Not scored: ``missing``, ids without an edit;
    ``unreadable``, edits that are no pictures and records that cannot be read. Raises UserError where there is no edit
    at all."""
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    unreadable: dict[str, str] = {}

    def score(record: Record, system: System) -> dict[str, float | None] | None:
        picture = system(record)
        return picture and scores(look_at(record, picture, benchmark.compared), metrics, models)

    for index, record in tqdm(together(records, unreadable, [edits, *baselines.values()]), **BAR, total=len(records)):
        try:
            ours = score(record, edits)
        except UserError as e:
            if edits.pipe is not None:
                raise
            unreadable[record.id] = str(e)
            continue
        if ours is None:
            missing.append(record.id)
            continue
        of = {"edits": ours} | {name: score(record, system) for name, system in baselines.items()}
        groups = {g: record.category if g == "category" else record.notes.get(g, "") for g in benchmark.groups}
        text = record.instructions[0]
        rows.append({"id": record.id, "index": index, "instruction": text, "groups": groups, "scores": of})
    if not rows:
        raise UserError(
            f"edits '{edits.folder}': none of the {len(records)} records has a picture there that can be read"
        )
    return {"records": rows, "missing": missing, "unreadable": unreadable}


def together(records: Records, unreadable: dict[str, str], systems: Sequence[System]) -> Iterator[tuple[int, Record]]:
    """Numbers and records, a few of which are edited at once; small pictures gain by it, large ones do not."""
    few: list[tuple[int, Record]] = []

    def done() -> Iterator[tuple[int, Record]]:
        for system in systems:
            if isinstance(system, Edits):
                system.make([record for _, record in few])
        yield from few
        few.clear()

    for index in range(len(records)):
        try:
            few.append((index, records[index]))
        except UserError as e:
            unreadable[f"record {index}"] = str(e)
            continue
        if sum(math.prod(record.source.size) for _, record in few) >= TOGETHER:
            yield from done()
    yield from done()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
