"""Ablations: trains and evaluates variants of one configuration with an equal budget, and writes what each part is
worth.

    reasonbrain ablate components -o DIR                        # a shipped plan
    reasonbrain ablate my_plan.yaml -o DIR                      # one's own

A plan (ablation_plan.py) lists studies and names its budget, a file beside it that plans may share. A run is one
variant with one seed: a `reasonbrain train` of its own, so that its crash stops nothing else, then the benchmark. Runs
of one DIR are found again by their whole configuration, so what several studies or plans share, the full model above
all, is trained once; the same command goes on where it was stopped, and tries again what failed.

Of one seed, all variants start from the same weights in the slots that they share, and see the same records and the
same noise in the same order. Differences are therefore taken seed by seed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config
from reasonbrain.data.records import MiniRecords, Records
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import RunError, UserError
from reasonbrain.eval.ablation.plan import Budget, read_plan
from reasonbrain.eval.ablation.report import write
from reasonbrain.eval.evaluation.benchmarks import Benchmark, find
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.eval.evaluation.evaluate import Request, measure, missing_networks
from reasonbrain.eval.evaluation.metrics import Metric
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.modules.data.reasonmini.benchmark import MiniSplits
from reasonbrain.train.batches import micro_batch
from reasonbrain.train.building import build, without_weights
from reasonbrain.train.features import Features, key
from reasonbrain.train.optim import numel, trained_parameters
from reasonbrain.train.planning.dry import fake_passes
from reasonbrain.utils.cluster import connect
from reasonbrain.utils.files import whole_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One variant with one seed, in ``folder``."""

    budget: Budget
    overrides: tuple[str, ...]
    metrics: tuple[str, ...]
    out: Path

    def __str__(self) -> str:
        return f"{self.folder} {' '.join(self.overrides[len(self.budget.overrides) :])}"

    @property
    def cfg(self) -> Config:
        return load_config(self.budget.config, self.overrides)

    @property
    def folder(self) -> Path:
        return self.out / "runs" / _hash(asdict(self.cfg))

    @property
    def result(self) -> Path:
        asked = [self.budget.benchmark, self.budget.data, self.budget.limit, *self.metrics]
        return self.folder / f"result-{_hash(asked)}.json"


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[TextIO]:
    """Waits for other commands that hold ``path``, also for trainings whose command was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def cached(cfg: Config, out: Path) -> Path:
    """The folder with features of ``cfg``'s records, one for all configurations that allow for it."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = build(cfg).to(device).eval()
    folder = out / "features" / _hash(key(cfg, model))
    with _alone(folder.with_suffix(".lock")):
        Features(cfg, model).write(folder)
    return folder


def train(run: Run, lock: TextIO) -> None:
    """Trains up to the end. Raises RunError with the last words of `reasonbrain train`."""
    if (run.folder / "model").is_dir():
        return
    words = [*run.overrides, f"data.features={cached(run.cfg, run.out)}"]
    command = [sys.executable, "-m", "reasonbrain.cli", "train", "--config", run.budget.config, "-o", str(run.folder)]
    said = run.folder.with_suffix(".log")
    with said.open("w") as log_file:
        # it holds the lock, too: should this process be killed, the next one waits for the training
        code = subprocess.run([*command, *words], stdout=log_file, stderr=log_file, pass_fds=[lock.fileno()]).returncode
    if code:
        last = (said.read_text().strip().splitlines() or ["no word"])[-1]
        raise RunError(f"exit code {code}: {last}")


def records_of(budget: Budget, cfg: Config) -> Records:
    benchmark = find(budget.benchmark)
    if benchmark.reader == "mini":
        return MiniSplits(budget.data, budget.limit, tuple(dict.fromkeys(MiniRecords(cfg.data).turns)))
    return benchmark.records(budget.data, budget.limit)


def networks(budget: Budget, scores: Sequence[str]) -> tuple[Benchmark, dict[str, Metric], Models]:
    """What ``scores`` need. Raises UserError for an unknown one, and where a network is missing."""
    benchmark = find(budget.benchmark)
    names = tuple(dict.fromkeys(s.removesuffix(" inside").removesuffix(" outside") for s in scores))
    metrics = benchmark.chosen(names)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    models = Models(benchmark.clip, benchmark.dino, benchmark.lpips, device)
    missing_networks(metrics, models, Request(budget.benchmark, metrics=names))
    return benchmark, metrics, models


def evaluate(run: Run) -> dict[str, float]:
    """The mean over records of every score."""
    benchmark, metrics, models = networks(run.budget, run.metrics)
    pipe = ReasonBrainPipeline.from_pretrained(str(run.folder)).to(models.device)
    pipe.set_progress_bar_config(disable=True)
    edits = Edits(run.folder / "edits", pipe)
    rows = measure(records_of(run.budget, run.cfg), benchmark, metrics, models, edits, {})["records"]
    found = {}
    for score in rows[0]["scores"]["edits"]:
        known = [v for row in rows if (v := row["scores"]["edits"][score]) is not None]
        found[score] = float(np.mean(known))
    return found | {"records": len(rows)}


def cost(cfg: Config) -> dict[str, float]:
    """Parameters, those that train, and the FLOPs of a step, forward and backward."""
    model = without_weights(cfg)
    records = micro_batch(cfg.train, 1)
    flops = fake_passes(cfg, records, narrow=False)[0].flops * cfg.train.batch_size / records
    trained = sum(map(numel, trained_parameters(model, cfg.train).values()))
    return {"parameters": sum(map(numel, model.parameters())), "trained": trained, "flops": flops}


def watched(folder: Path) -> dict[str, float]:
    """Of a run's log: the last validation loss, the most memory, the median time of a step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "validation loss": [line["validation/loss"] for line in lines if "validation/loss" in line][-1],
        "gib": max(line["gib"] for line in lines if "gib" in line),
        "seconds_per_step": float(np.median([x["seconds_per_step"] for x in lines if "seconds_per_step" in x])),
    }


def perform(run: Run) -> dict[str, Any]:
    """Trains and evaluates what is not there yet: all numbers of the run, or why it ``failed``."""
    try:
        with _alone(run.folder.with_suffix(".lock")) as lock:
            if not run.result.is_file():
                train(run, lock)
                found = evaluate(run) | watched(run.folder) | cost(run.cfg)
                with whole_file(run.result) as file:
                    json.dump(found, file, indent=1)
            return json.loads(run.result.read_text())
    except Exception as e:  # whatever it is, the other runs go on
        log.warning(f"{run.folder}: {e}", exc_info=not isinstance(e, (UserError, RunError)))
        return {"failed": str(e).strip().splitlines()[0]}


def local(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One after the other, in this process."""
    found = []
    for number, run in enumerate(runs, 1):
        log.info(f"run {number} of {len(runs)}: {run}")
        found.append(perform(run))
    return found


def over_ray(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A Ray task a run, in the cluster that RAY_ADDRESS names, else in one started here. A run has a GPU, and its part
    of that machine's CPUs; where there is none, a CPU for each of torch's threads here (OMP_NUM_THREADS): the local
    engine then rounds alike. All machines share the output folder and the folder that the command is called in.

    Raises UserError where ``ray`` is not installed."""
    ray = connect()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := [node for node in nodes if "GPU" in node]:
        cpus = min(int(node["CPU"] / node["GPU"]) for node in gpus)
    else:  # no more than there are: Ray would wait for them for ever
        cpus = min(torch.get_num_threads(), max(int(node.get("CPU", 0)) for node in nodes))
    # Ray lets torch take as many threads as the task has CPUs
    task = ray.remote(_perform_in).options(num_cpus=cpus, num_gpus=1 if gpus else 0)
    tasks = {run.result: task.remote(os.getcwd(), run) for run in runs}  # the same run twice would wait for itself
    found: dict[Path, dict[str, Any]] = {}
    for number, run in enumerate(runs, 1):
        try:
            found[run.result] = ray.get(tasks[run.result])
        except ray.exceptions.RayError as e:  # whatever it is, the other runs go on
            found[run.result] = {"failed": f"Ray gave up: {str(e).strip().splitlines()[-1]}"}
        log.info(f"run {number} of {len(runs)}: {run} {found[run.result].get('failed', 'is there')}")
    return [found[run.result] for run in runs]


def _perform_in(folder: str, run: Run) -> dict[str, Any]:
    os.chdir(folder)  # where the command was called: its paths start there
    return perform(run)


ENGINES: dict[str, Callable[[Sequence[Run]], list[dict[str, Any]]]] = {"local": local, "ray": over_ray}


def ablate(name: str, out: Path, engine: str) -> Path:
    """Carries out a plan; writes DIR/<plan>.json, .md and .png, and returns the path of the table (.md).

    Raises UserError like ``read_plan`` and the engine, for overrides that fit no configuration and unknown metrics,
    before anything is trained; RunError after the table is written if runs failed."""
    title, budget, studies = read_plan(name)
    metrics = tuple(dict.fromkeys(m for study in studies for m in study.metrics))
    networks(budget, metrics)
    variants: dict[str, tuple[list[str], list[int]]] = {
        "full model": ([], list(dict.fromkeys(seed for study in studies for seed in study.seeds)))
    }
    variants |= {study.name: (study.overrides, study.seeds) for study in studies}
    end = [f"train.validate_every={load_config(budget.config, budget.overrides).train.steps}"]
    runs = {}
    for seed in variants["full model"][1]:  # all variants of a seed before the next: something to look at early
        for variant, (overrides, seeds) in variants.items():
            if seed in seeds:
                words = (*budget.overrides, *end, *overrides, f"train.seed={seed}")
                runs[variant, seed] = Run(budget, words, metrics, out.resolve())
    folders = [run.folder for run in runs.values()]  # reads every configuration
    records_of(budget, next(iter(runs.values())).cfg)
    log.info(f"{len(runs)} runs, {len(set(folders))} different ones")
    results = dict(zip(runs, ENGINES[engine](list(runs.values())), strict=True))

    first = variants["full model"][1][0]
    edits = {
        v: Edits(run.folder / "edits")
        for (v, seed), run in runs.items()
        if seed == first and "failed" not in results[v, seed]
    }
    table = write(
        title, asdict(budget), studies, results, records_of(budget, runs["full model", first].cfg), edits, out
    )
    if failed := [f"{v}, seed {seed}" for (v, seed), found in results.items() if "failed" in found]:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed ({'; '.join(failed)}); see {table}")
    return table
