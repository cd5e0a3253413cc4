"""Where the rows of a stage are processed: in threads of this machine, or on a Ray cluster.

An executor takes a stage, rows and the tools, and yields the finished rows in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from reasonbrain.dataprep.stages import Stage, Tools
from reasonbrain.errors import UserError
from reasonbrain.utils.cluster import connect
from reasonbrain.utils.journal import JsonRow
from reasonbrain.utils.threads import as_finished

Executor = Callable[[Stage, Sequence[JsonRow], Tools], Iterator[JsonRow]]


def local(stage: Stage, rows: Sequence[JsonRow], tools: Tools) -> Iterator[JsonRow]:
    """Processes rows in ``stage.threads`` threads. The first error ends the stage; rows in progress are discarded."""
    if stage.threads == 1:  # models run in the main thread, which can be interrupted
        yield from (stage(row, tools) for row in rows)
    else:
        yield from (row for _, row in as_finished(lambda row: stage(row, tools), rows, stage.threads))


def stage_on_ray(stage: Stage, rows: Sequence[JsonRow], tools: Tools) -> Iterator[JsonRow]:
    """Processes rows with Ray Data, on the cluster at RAY_ADDRESS or on one started on this machine. All nodes must
    share the output folder.

    A stage with models of its own has one actor per GPU, or a single one without GPUs; an actor loads the models once.
    Other stages run as tasks. Raises UserError if Ray is not installed, or if a stage does."""
    import torch

    ray = connect()
    data = ray.data.from_items([{"row": json.dumps(row)} for row in rows], override_num_blocks=min(len(rows), 1000))
    if stage.models:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actors = ray.data.ActorPoolStrategy(size=min(max(1, gpus), len(rows)))
        # Ray would give torch one thread per CPU of the actor; with another number of threads than the local executor
        # uses, sums are rounded differently
        variables = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        options = {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "runtime_env": {"env_vars": variables}}
        made = data.map(_Worker, fn_constructor_args=(stage, tools), compute=actors, **options)  # type: ignore[arg-type]
    else:
        worker = _Worker(stage, tools)
        tasks = ray.data.TaskPoolStrategy(size=stage.threads)
        made = data.map(lambda row: worker(row), compute=tasks, num_cpus=0.1)  # mostly waits for endpoint or disk
    for line in made.iter_rows():
        if line["mistake"]:
            raise UserError(line["mistake"])
        yield json.loads(line["row"])


class _Worker:
    """Processes rows in a Ray worker. Rows are passed as JSON text, so that Arrow infers no types. The message of a
    UserError is returned as text, because Ray would wrap the exception in a traceback."""

    def __init__(self, stage: Stage, tools: Tools) -> None:
        self.stage, self.tools = stage, tools

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            return {"row": json.dumps(self.stage(json.loads(row["row"]), self.tools)), "mistake": ""}
        except UserError as e:
            return {"row": "", "mistake": str(e)}


EXECUTORS: dict[str, Executor] = {"local": local, "ray": stage_on_ray}
