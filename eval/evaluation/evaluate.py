"""Runs a benchmark: makes the edits or reads those of another system, scores them, and writes the report.

    reasonbrain eval --benchmark mini -o REPORT                                     # the embedded default
    reasonbrain eval --benchmark magicbrush --data DIR --checkpoint RUN -o REPORT   # a training run
    reasonbrain eval --benchmark magicbrush --data DIR --edits THEIRS -o REPORT     # any other system's pictures
    reasonbrain eval ... --against OTHER_REPORT                                     # significance of the difference
    reasonbrain eval ... --judge URL --judge-model NAME                             # judged metrics too, see judged.py

The pictures of a few records are in memory at a time; only the scores of a record are kept.
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
from PIL import Image
from tqdm import tqdm

from reasonbrain.data.crop import BENT, bent
from reasonbrain.data.record import Record, Records
from reasonbrain.editing.placement import open_pipeline
from reasonbrain.errors import UserError, reason
from reasonbrain.eval.evaluation import report
from reasonbrain.eval.evaluation.against import check_same_records, read_other
from reasonbrain.eval.evaluation.benchmarks import Benchmark, find_benchmark
from reasonbrain.eval.evaluation.edits import Edits, System, content
from reasonbrain.eval.evaluation.judged import Judged, judge_rows
from reasonbrain.eval.evaluation.metrics import Metric, look_at, scores
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.utils.endpoint import Endpoint
from reasonbrain.utils.locks import alone
from reasonbrain.utils.redact import redacted
from reasonbrain.utils.text import printable

TOGETHER = 2**16  # pixels per batch: 16 pictures of 64 x 64, one of 512 x 512
BAR: dict[str, Any] = {"desc": "edits and metrics", "unit": "record", "disable": None}
PACKAGES = ("reasonbrain", "torch", "torchmetrics", "transformers", "diffusers", "scikit-image", "scipy", "numpy")


@dataclass(frozen=True)
class Request:
    """The options of `reasonbrain eval`."""

    benchmark: str
    data: str | None = None  # see Benchmark.records
    checkpoint: str = "tiny"
    config: str | None = None
    overrides: tuple[str, ...] = ()
    edits: Path | None = None  # folder of another system's edits, instead of a model
    limit: int | None = None
    seed: int = 0  # of edits and intervals
    metrics: tuple[str, ...] = ()  # instead of the benchmark's
    clip: str | None = None  # instead of the benchmark's
    dino: str | None = None  # instead of the benchmark's
    judge: str | None = None  # an OpenAI-compatible endpoint that serves judge_model
    judge_model: str | None = None


def evaluate(request: Request, output: Path, against: Path | None = None) -> dict[str, Any]:
    """Writes OUTPUT/report.json, .md and .html and returns the report. Edits go to OUTPUT/edits and a judge's answers
    to OUTPUT/answers; a later run reuses both.

    ``against``: the folder of another report to compare with. A metric of the benchmark whose network cannot be loaded
    is reported as not available. Raises UserError where such a metric was requested by name, and for data, edits,
    checkpoints or reports that cannot be read, written or compared, and while another command writes to ``output``."""
    benchmark = find_benchmark(request.benchmark)
    if bool(request.judge) != bool(request.judge_model):
        only = request.judge or request.judge_model
        raise UserError(f"--judge and --judge-model must be given together, not '{only}' alone")
    chosen = benchmark.select_metrics(request.metrics, bool(request.judge))
    metrics = {name: metric for name, metric in chosen.items() if isinstance(metric, Metric)}
    judged = {name: metric for name, metric in chosen.items() if isinstance(metric, Judged)}
    records = benchmark.records(request.data, request.limit)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    models = Models(request.clip or benchmark.clip, request.dino or benchmark.dino, benchmark.lpips, device)
    for need in ("clip", "dino"):
        if getattr(request, need) and not any(need in metric.needs for metric in metrics.values()):
            raise UserError(f"--{need}: no metric of this evaluation ({', '.join(chosen)}) uses it")
    unavailable = unavailable_metrics(metrics, models)
    for name in unavailable if request.metrics else ():
        raise UserError(f"metric '{name}': {unavailable[name]}")
    for name, why in unavailable.items():
        for need in {"clip", "dino"}.intersection(metrics[name].needs):
            if getattr(request, need):
                raise UserError(f"--{need}: {why}")
    metrics = {name: metric for name, metric in metrics.items() if name not in unavailable}
    used = {need: models.ids[need] for m in metrics.values() for need in m.needs if need in Models.NAMES}
    if judged:
        used["judge"] = str(request.judge_model)
    found: dict[str, Any] = {
        "benchmark": request.benchmark,
        "system": printable(str(request.edits or request.checkpoint)),
        "seed": request.seed,
        "command": [printable(redacted(word)) for word in sys.argv[1:]],
        "networks": used,
        "unavailable": unavailable,
        "metrics": {name: metric.higher_is_better for name, metric in (judged | metrics).items()},
        "versions": {"python": sys.version.split()[0], **{p: _version(p) for p in PACKAGES}},
        "device": str(device),
    }
    other = read_other(against, found) if against else None
    report.check_output(output)
    pipe = None
    if request.edits is None:
        pipe = open_pipeline(request.checkpoint, request.overrides, request.config)
        pipe.set_progress_bar_config(disable=True)
        found["config"] = asdict(pipe.settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"output '{output}': {e.strerror}") from None
    with alone(output / "lock", busy=f"output '{output}' is being written by another command"):
        edits = Edits(request.edits or output / "edits", pipe, request.seed)
        judge = Endpoint(str(request.judge), used["judge"], output / "answers") if judged else None
        baselines = benchmark.baselines(pipe, output, request.seed)
        baselines |= edits.by_round()
        found |= score_records(records, benchmark, metrics, models, edits, baselines)
        if seconds := edits.seconds([row["id"] for row in found["records"]]):
            found["seconds"] = seconds
        if other and against:
            check_same_records(found["records"], other, against)
        if judge:
            found["judged"] = judge_rows(found["records"], records, edits, judged, judge)
        found["edits"] = printable(str(request.edits.resolve())) if request.edits else "edits"
        found["tables"] = report.tables(found, benchmark.groups, other)
        report.write(found, output, records, edits, other)
    return found


def unavailable_metrics(metrics: dict[str, Metric], models: Models) -> dict[str, str]:
    """The metrics whose networks cannot be loaded, with the reasons."""
    needed = dict.fromkeys(need for metric in metrics.values() for need in metric.needs if need in Models.NAMES)
    reasons = {need: reason for need in needed if (reason := models.missing(need))}
    return {name: reasons[need] for name, metric in metrics.items() for need in metric.needs if need in reasons}


def score_records(
    records: Records,
    benchmark: Benchmark,
    metrics: dict[str, Metric],
    models: Models,
    edits: Edits,
    baselines: dict[str, System],
) -> dict[str, Any]:
    """Scores the edits and the baselines.

    Returns ``records``, one row per record with the scores of every system; ``missing``, the ids of records without an
    edit; ``stretched``, those of records whose edit has another aspect ratio than the picture that it is compared with;
    and ``unreadable``, the reasons why records cannot be read, edited or measured, by id. Raises UserError if no record
    was scored, or if two have the same id."""
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    stretched: list[str] = []
    unreadable: dict[str, str] = {}

    def score(record: Record, picture: Image.Image | None) -> dict[str, float | None] | None:
        return scores(look_at(record, picture, benchmark.compared), metrics, models) if picture else None

    for index, record in tqdm(with_edits(records, unreadable, [edits, *baselines.values()]), **BAR, total=len(records)):
        try:
            edit = edits(record)
            if edit is None:
                missing.append(record.id)
                continue
            of = {"edits": score(record, edit)}
            of |= {name: score(record, system(record)) for name, system in baselines.items()}
        except Exception as e:  # a library may raise anything for a record; the others are still scored
            unreadable[record.id] = reason(e)
            continue
        if bent(edit.size, (record.target or record.source).size) > BENT:
            stretched.append(record.id)
        groups = {g: record.category if g == "category" else record.notes.get(g, "") for g in benchmark.groups}
        text = record.instructions[0]
        row = {"id": record.id, "index": index, "content": content(record), "instruction": text, "groups": groups}
        rows.append(row | {"scores": of})
    if not rows:
        first = next((f"; {name}: {why}" for name, why in unreadable.items()), "")
        raise UserError(
            f"edits '{edits.folder}': none of the {len(records)} records has a readable picture in this folder{first}"
        )
    return {"records": rows, "missing": missing, "stretched": stretched, "unreadable": unreadable}


def with_edits(records: Records, unreadable: dict[str, str], systems: Sequence[System]) -> Iterator[tuple[int, Record]]:
    """Yields indices and records. Edits are made for several records at once, which is faster for small pictures.

    Raises UserError if two records have the same id, because their edits would be the same file."""
    few: list[tuple[int, Record]] = []
    ids: dict[str, int] = {}

    def done() -> Iterator[tuple[int, Record]]:
        for system in systems:
            if isinstance(system, Edits):
                system.make([record for _, record in few])
        yield from few
        few.clear()

    for index in range(len(records)):
        try:
            record = records[index]
            _check_text(record)
        except Exception as e:  # a reader may raise anything for a record
            unreadable[f"record {index}"] = reason(e)
            continue
        if (other := ids.setdefault(record.id, index)) != index:
            raise UserError(f"--data: records {other} and {index} have the same id '{record.id}'; ids must differ")
        few.append((index, record))
        if sum(math.prod(record.source.size) for _, record in few) >= TOGETHER:
            yield from done()
    yield from done()


def _check_text(record: Record) -> None:
    """Raises UserError for a text that is not valid Unicode, which a report cannot store."""
    for text in (record.id, *record.instructions, record.category, *(record.captions or ()), *record.notes.values()):
        if text != text.encode(errors="ignore").decode():
            raise UserError(f"{text!r} is not valid Unicode")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
