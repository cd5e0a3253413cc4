"""Ablations: trains and evaluates variants of one configuration with the same budget, and tabulates the differences.

    reasonbrain ablate components -o DIR                        # a shipped plan
    reasonbrain ablate my_plan.yaml -o DIR                      # your own

A plan (plan.py) lists studies and names its budget, a file beside it that several plans may share. A run is one variant
with one seed: a `reasonbrain train` in a process of its own, so that a crash does not stop the other runs, and then the
benchmark. Runs in DIR are identified by their whole configuration and the content of their data. What several studies
or plans share, such as the full model, is trained once. Running the same command again resumes unfinished runs and
retries failed ones.

With one seed, all variants start from the same weights in the slots that they share, and see the same records and the
same noise in the same order. Differences are therefore computed seed by seed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config, DataConfig
from reasonbrain.data.opening import identity
from reasonbrain.data.record import Records
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import RunError, UserError, reason
from reasonbrain.eval.ablation.plan import Budget, read_plan
from reasonbrain.eval.ablation.report import COSTS, LOSS, check_output, write
from reasonbrain.eval.evaluation.benchmarks import Benchmark, find_benchmark
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.eval.evaluation.evaluate import score_records, unavailable_metrics
from reasonbrain.eval.evaluation.metrics import Metric
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.train.batches import micro_batch
from reasonbrain.train.building import build, initial_hash, without_weights
from reasonbrain.train.feature_cache import FeatureCache, key
from reasonbrain.train.optim import numel, trained_parameters
from reasonbrain.train.planning.dry import fake_passes
from reasonbrain.utils.cluster import connect
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.locks import alone
from reasonbrain.utils.reading import read_json
from reasonbrain.utils.redact import redacted

log = logging.getLogger(__name__)

# Python's -P, which 3.10 does not have: nothing in the working directory is imported
COMMAND = (
    sys.executable,
    "-c",
    "import sys; sys.path = [p for p in sys.path if p]; from reasonbrain.cli import main; main()",
)


@dataclass(frozen=True)
class Run:
    """One variant with one seed, trained in ``folder``."""

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
        return self.out / "runs" / _trained(self.budget.config, self.overrides)

    @property
    def result(self) -> Path:
        asked = [self.budget.benchmark, self.budget.data, self.budget.limit, *self.metrics]
        return self.folder / f"result-{_hash(asked + _content(self.budget.benchmark, self.budget.data))}.json"


@cache
def _trained(config: str, overrides: tuple[str, ...]) -> str:
    """A hash of a configuration, and of the content of its data and its initial weights if they are in files. Computed
    once in a process."""
    cfg = load_config(config, overrides)
    in_files = cfg.data.path or any(part.path for part in cfg.data.mixture)
    contents = [identity(cfg.data) if in_files else None, initial_hash(cfg)]
    return _hash([asdict(cfg), *contents] if any(contents) else asdict(cfg))


@cache
def _content(benchmark: str, data: str | None) -> list[dict[str, Any]]:
    """What identifies the content of the benchmark's data, if they are in files. Computed once in a process."""
    reader = getattr(find_benchmark(benchmark), "reader", None) if data else None
    return [identity(DataConfig(name=reader, path=data))] if reader else []


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def cache_features(cfg: Config, out: Path) -> Path:
    """The folder with the features of ``cfg``'s records. Configurations with the same features share it."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = build(cfg).to(device).eval()
    folder = out / "features" / _hash(key(cfg, model))
    with alone(folder.with_suffix(".lock")):
        FeatureCache(cfg, model).write(folder)
    return folder


def train(run: Run, lock: IO[str]) -> None:
    """Trains the run to the end, unless it is finished. ``lock``: the open lock file of the run. Raises RunError with
    the last line of output of `reasonbrain train` if the training fails."""
    if (run.folder / "model" / "config.yaml").is_file():  # written last: without it, the export was killed
        return
    words = [*run.overrides, f"data.features={cache_features(run.cfg, run.out)}"]
    command = [*COMMAND, "train", "--config", run.budget.config, "-o", str(run.folder)]
    said = run.folder.with_suffix(".log")
    with said.open("w") as log_file:
        # the child holds the lock too: if this process is killed, the next command waits for the training
        code = subprocess.run([*command, *words], stdout=log_file, stderr=log_file, pass_fds=[lock.fileno()]).returncode
    if code:
        last = (said.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise RunError(f"exit code {code}: {redacted(last)}")


def records_of(budget: Budget, cfg: Config) -> Records:
    """The benchmark's records, limited to those that a model trained on ``cfg.data`` could learn."""
    return find_benchmark(budget.benchmark).records(budget.data, budget.limit, cfg.data)


def networks(budget: Budget, scores: Sequence[str]) -> tuple[Benchmark, dict[str, Metric], Models]:
    """The benchmark, and the metrics and networks that ``scores`` need. Raises UserError for an unknown score, and for
    a network that cannot be loaded."""
    benchmark = find_benchmark(budget.benchmark)
    names = tuple(dict.fromkeys(s.removesuffix(" inside").removesuffix(" outside") for s in scores))
    metrics = {name: of for name, of in benchmark.select_metrics(names).items() if isinstance(of, Metric)}
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    models = Models(benchmark.clip, benchmark.dino, benchmark.lpips, device)
    for name, why in unavailable_metrics(metrics, models).items():
        raise UserError(f"metric '{name}': {why}")
    return benchmark, metrics, models


def evaluate(run: Run) -> dict[str, float]:
    """The mean over records of every score, and the number of ``records``."""
    benchmark, metrics, models = networks(run.budget, run.metrics)
    pipe = ReasonBrainPipeline.from_pretrained(str(run.folder)).to(models.device)
    pipe.set_progress_bar_config(disable=True)
    edits = Edits(run.folder / "edits", pipe)
    rows = score_records(records_of(run.budget, run.cfg), benchmark, metrics, models, edits, {})["records"]
    found = {}
    for score in dict.fromkeys(name for row in rows for name in row["scores"]["edits"]):
        if known := [v for row in rows if (v := row["scores"]["edits"].get(score)) is not None]:
            found[score] = float(np.mean(known))
    for score in run.metrics:
        if score not in found:
            raise RunError(f"score '{score}': no record of the benchmark has it")
    return found | {"records": len(rows)}


def cost(cfg: Config) -> dict[str, float]:
    """Number of ``parameters``, number of those ``trained``, and ``flops`` of a step, forward and backward."""
    model = without_weights(cfg)
    records = micro_batch(cfg.train, 1)
    flops = fake_passes(cfg, records, narrow=False)[0].flops * cfg.train.batch_size / records
    trained = sum(map(numel, trained_parameters(model, cfg.train).values()))
    return {"parameters": sum(map(numel, model.parameters())), "trained": trained, "flops": flops}


def read_log(folder: Path) -> dict[str, float]:
    """Numbers from a run's log: the last validation loss, peak memory in GiB, and the median seconds per step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "validation loss": [line["validation/loss"] for line in lines if "validation/loss" in line][-1],
        "gib": max(line["gib"] for line in lines if "gib" in line),
        "seconds_per_step": float(np.median([x["seconds_per_step"] for x in lines if "seconds_per_step" in x])),
    }


def perform(run: Run) -> dict[str, Any]:
    """Trains and evaluates a run, unless its result is already on disk. Returns all numbers, or {"failed": reason}."""
    try:
        with alone(run.folder.with_suffix(".lock")) as lock:
            if not run.result.is_file():
                train(run, lock)
                found = evaluate(run) | read_log(run.folder) | cost(run.cfg)
                with whole_file(run.result) as file:
                    json.dump(found, file, indent=1)
            return _read_result(run)
    except Exception as e:  # a failed run does not stop the others
        log.warning(f"{run.folder}: {e}", exc_info=not isinstance(e, (UserError, RunError)))
        return {"failed": reason(e)}


def _read_result(run: Run) -> dict[str, Any]:
    """The numbers of a finished run. Raises UserError for a damaged file."""
    found = read_json(run.result, "result")
    wanted = {*run.metrics, *COSTS, LOSS, "records"}
    if not isinstance(found, dict) or not all(type(found.get(name)) in (int, float) for name in wanted):
        raise UserError(f"result: '{run.result}' is damaged; delete it to measure the run again")
    return found


def local(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Performs the runs one after the other, in this process."""
    found = []
    for number, run in enumerate(runs, 1):
        log.info(f"run {number} of {len(runs)}: {run}")
        found.append(perform(run))
    return found


def runs_on_ray(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Performs each run as a Ray task, on the cluster at RAY_ADDRESS or on one started on this machine. All machines
    must share the output folder and the working directory.

    A task gets one GPU and its share of that machine's CPUs. On a cluster without GPUs it gets as many CPUs as torch
    has threads in this process (OMP_NUM_THREADS), so that sums are rounded as by the local executor. Raises UserError
    if Ray is not installed."""
    ray = connect()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := [node for node in nodes if "GPU" in node]:
        cpus = min(int(node["CPU"] / node["GPU"]) for node in gpus)
    else:  # at most as many as a node has: otherwise Ray would wait forever
        cpus = min(torch.get_num_threads(), max(int(node.get("CPU", 0)) for node in nodes))
    # Ray sets torch's number of threads to the task's number of CPUs
    task = ray.remote(_perform_in).options(num_cpus=cpus, num_gpus=1 if gpus else 0)
    tasks = {run.result: task.remote(os.getcwd(), run) for run in runs}  # equal runs once: a second would wait for it
    found: dict[Path, dict[str, Any]] = {}
    for number, run in enumerate(runs, 1):
        try:
            found[run.result] = ray.get(tasks[run.result])
        except ray.exceptions.RayError as e:  # a failed run does not stop the others
            found[run.result] = {"failed": f"Ray failed: {str(e).strip().splitlines()[-1]}"}
        log.info(f"run {number} of {len(runs)}: {run} {found[run.result].get('failed', 'done')}")
    return [found[run.result] for run in runs]


def _perform_in(folder: str, run: Run) -> dict[str, Any]:
    os.chdir(folder)  # paths are relative to the working directory of the command
    return perform(run)


EXECUTORS: dict[str, Callable[[Sequence[Run]], list[dict[str, Any]]]] = {"local": local, "ray": runs_on_ray}


def ablate(name: str, out: Path, executor: str) -> Path:
    """Performs the runs of a plan, writes ``out``/<plan>.json, .md and .png, and returns the path of the table (.md).

    ``name``: a shipped plan, or the path of a YAML file. ``executor``: a key of EXECUTORS. Raises UserError before
    anything is trained, like ``read_plan`` and the executor, and for unknown metrics and invalid overrides. Raises
    RunError after the table is written if runs failed."""
    title, budget, studies = read_plan(name)
    check_output(title, out)
    metrics = tuple(dict.fromkeys(m for study in studies for m in study.metrics))
    networks(budget, metrics)
    variants: dict[str, tuple[list[str], list[int]]] = {
        "full model": ([], list(dict.fromkeys(seed for study in studies for seed in study.seeds)))
    }
    variants |= {study.name: (study.overrides, study.seeds) for study in studies}
    end = [f"train.validate_every={load_config(budget.config, budget.overrides).train.steps}"]
    runs = {}
    for seed in variants["full model"][1]:  # all variants of a seed first: comparable results come early
        for variant, (overrides, seeds) in variants.items():
            if seed in seeds:
                words = (*budget.overrides, *end, *overrides, f"train.seed={seed}")
                runs[variant, seed] = Run(budget, words, metrics, out.resolve())
    folders = [run.folder for run in runs.values()]  # also checks every configuration
    records_of(budget, next(iter(runs.values())).cfg)
    log.info(f"{len(runs)} runs, {len(set(folders))} of them distinct")
    results = dict(zip(runs, EXECUTORS[executor](list(runs.values())), strict=True))

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
