"""Speed and memory of batches, for bench.py: `reasonbrain bench batch`.

The plain loop makes each edit by one call of the pipeline, as `reasonbrain edit` does. The times exclude starting
processes and loading the model.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from reasonbrain import ReasonBrainPipeline
from reasonbrain.checkpoint import save_model
from reasonbrain.editing.batch.editor import Editor
from reasonbrain.editing.batch.executors import processes
from reasonbrain.editing.batch.jobs import Job
from reasonbrain.editing.batch.rows import EditRow
from reasonbrain.eval.benchmarking.source import Found, Source, sample_records
from reasonbrain.eval.benchmarking.timing import Timing, seconds
from reasonbrain.train.loop import peak_memory
from reasonbrain.utils.images import load_image, save_image

COUNT = 64  # timed rows
MORE = 16 * COUNT  # timed rows with several workers: full windows for each
MANY = (100, 1000, 5000)  # numbers of rows after which the peak memory so far is recorded
BATCH_SIZE = 8


def batch(source: Source, warmup: int, repeats: int, device: torch.device) -> Found:
    """Times COUNT edits at ``edit.size`` (null: ``data.size``) one by one and in batches, and MORE edits by at least
    two workers, one per device. ``gib_after``: peak host memory of this process, by number of one-step edits."""
    model, cfg = source.open(device)
    pipe = ReasonBrainPipeline.from_model(model, cfg)
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("pictures", "model"):
            (folder / part).mkdir()
        save_model(model, cfg, folder / "model")
        jobs = _write(folder, cfg.edit.size or cfg.data.size)
        job = Job(jobs, folder, None, str(folder / "model"), None, (), BATCH_SIZE)
        editor = Editor(job)

        def loop() -> None:
            for row in job.rows():
                assert isinstance(row.image, Path)
                generator = torch.Generator().manual_seed(row.seed)
                made = pipe(load_image(row.image), row.instruction, generator=generator).images[0]
                save_image(made, folder / "pictures" / f"{row.id}.png")

        def batches() -> None:
            for _ in editor(job.rows()):
                pass

        for _ in range(warmup):
            loop()
            batches()
        alone, together = [], []
        for _ in range(repeats):  # interleaved, so that other load on the machine affects both
            alone.append(seconds(loop, device))
            together.append(seconds(batches, device))
        workers = max(2, torch.accelerator.device_count())
        beside = [_by_workers(job, workers) for _ in range(repeats)]
        after = _memory(editor, job)
    rows = [
        Timing("plain loop", alone, COUNT),
        Timing(f"batches of {BATCH_SIZE}", together, COUNT),
        Timing(f"{workers} workers", beside, MORE),
    ]
    return rows, torch.float32, {"pixels": cfg.edit.size or cfg.data.size, "gib_after": after}


def _write(folder: Path, size: int) -> Path:
    """Writes COUNT rows and their pictures, and returns the path of the rows."""
    records = sample_records(size)
    with (folder / "jobs.jsonl").open("w", encoding="utf-8") as file:
        for i in range(COUNT):
            record = records[i]
            record.source.save(folder / f"{i}.png")
            file.write(json.dumps({"id": i, "image": f"{i}.png", "instruction": record.instructions[0]}) + "\n")
    return folder / "jobs.jsonl"


def _by_workers(job: Job, workers: int) -> float:
    """Seconds for MORE rows, measured from the first result on, when the models are loaded."""
    start = 0.0
    for _ in processes(job, _repeat(job, MORE), workers, MORE):
        start = start or time.perf_counter()
    return time.perf_counter() - start


def _repeat(job: Job, count: int, **changed: Any) -> Iterator[EditRow]:
    """``count`` rows: the rows of the job, repeated, with ``changed`` fields."""
    rows = list(job.rows())
    return (replace(rows[i % COUNT], number=i, **changed) for i in range(count))


def _memory(editor: Editor, job: Job) -> dict[int, float]:
    after = {}
    for number, _ in enumerate(editor(_repeat(job, MANY[-1], steps=1)), 1):
        if number in MANY:
            after[number] = peak_memory(torch.device("cpu"))
    return after
