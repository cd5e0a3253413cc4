"""Several real processes share a run: gradients are averaged, and each process takes its share of the batch."""

import json
import os
import subprocess
import sys

import pytest

from reasonbrain.train.run import train

SCRIPT = """
import sys, torch, torch.distributed as dist
from reasonbrain.train.distributed.processes import average_gradients, rank, world
dist.init_process_group("gloo")
params = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(1))]
params[0].grad = torch.full((2, 3), float(rank() + 1))
params[1].grad = torch.arange(4.0) * (rank() + 1)
average_gradients(params)
assert world() == 2 and params[2].grad is None
assert torch.equal(params[0].grad, torch.full((2, 3), 1.5)), params[0].grad
assert torch.equal(params[1].grad, torch.arange(4.0) * 1.5), params[1].grad
dist.barrier()
dist.destroy_process_group()
"""

SHARDS = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from reasonbrain.train import checkpoints
from reasonbrain.train.distributed.processes import rank
dist.init_process_group("gloo")
run, hashed, checksum = Path(sys.argv[1]), [], checkpoints._checksum
checkpoints._checksum = lambda path: hashed.append(path.name) or checksum(path)
for step in (1, 2):
    new = checkpoints.folder_of(run, step).with_suffix(".new")
    checkpoints.shard({f"param/w{rank()}": torch.full((3,), float(step))}, new, rank(), 2)
    dist.barrier()
    if rank() == 0:
        checkpoints.finish(run, step, new, keep=2)
    dist.barrier()
hashed.clear()
assert checkpoints.step_of(checkpoints.last(run, together=True)) == 2
assert hashed == [f"shard-{rank()}-of-2.safetensors"], hashed
dist.barrier()
if rank() == 0:
    path = run / "checkpoints" / "step-00000002" / "shard-1-of-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
dist.barrier()
assert checkpoints.step_of(checkpoints.last(run, together=True)) == 1
dist.barrier()
dist.destroy_process_group()
"""


def launch(*args):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)


def test_gradients_are_averaged(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launch(str(tmp_path / "script.py"))
    assert done.returncode == 0, done.stderr[-2000:]


def test_each_shard_is_read_by_one_process_and_all_agree_on_the_checkpoint(tmp_path):
    (tmp_path / "script.py").write_text(SHARDS)
    done = launch(str(tmp_path / "script.py"), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("shard-1-of-2.safetensors has changed") == 1


@pytest.mark.long
def test_two_processes_train_and_one_continues(overrides, settings, tmp_path):
    run = tmp_path / "run"
    common = ["train.batch_size=4", "train.save_every=2", "train.log_every=1", "train.bf16=false"]
    command = ["train", "--config", "tiny", "-o", str(run), *overrides, *common, "train.steps=2"]
    done = launch("-m", "reasonbrain.cli", *command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(str(run / "model")) == 1
    shards = [f.stat().st_size for f in (run / "checkpoints" / "step-00000002").glob("shard-*")]
    assert len(shards) == 2 and max(shards) < 1.1 * min(shards)
    train(settings(*common, "train.steps=3"), run)
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
