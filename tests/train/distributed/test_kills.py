"""A run that is killed many times, at random moments, ends like an uninterrupted one."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launching import state

from reasonbrain.train import checkpoints

STEPS, KILLS = 40, 22

# forks a process a start, so that torch is imported once; the parent never computes
RUN = """
import os, sys, traceback
import reasonbrain.train.run as t
import reasonbrain.modules.diffusion.flux, reasonbrain.modules.mllm.qwen2_5_vl
from reasonbrain.config.loading import load_config
overrides = sys.argv[1:]
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            t.train(load_config("tiny", overrides), t.Path(line.strip()))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(status, flush=True)
"""


class Starter:
    """Starts and kills runs."""

    def __init__(self, overrides):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, *overrides], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _line(self):
        return int(self.process.stdout.readline())

    def start(self, run):
        self.process.stdin.write(f"{run}\n")
        self.process.stdin.flush()
        return self._line()

    def wait(self):
        return self._line()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def curve(run):
    """step -> loss; a repeated step must have the same loss."""
    found = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        try:
            line = json.loads(line)
        except ValueError:  # the process died while it wrote the line
            continue
        assert found.setdefault(line["step"], line["loss"]) == line["loss"]
    return found


def writing(run):
    return list((run / "checkpoints").glob("*.new")) + list((run / "checkpoints").glob("*.old"))


@pytest.mark.long
def test_killed_many_times(overrides, tmp_path):
    quick = ["data.count=6", "train.batch_size=2", "train.warmup=2", "train.log_every=1", "train.save_every=2"]
    starter = Starter([*overrides, *quick, f"train.steps={STEPS}"])
    starter.start(whole := tmp_path / "whole")
    assert starter.wait() == 0
    run, rng, in_a_write, kills = tmp_path / "killed", random.Random(0), 0, 0
    while kills < KILLS:
        pid = starter.start(run)
        done = checkpoints.complete(run)
        at_a_write = kills % 2  # every other time while a checkpoint is being written
        deadline = time.monotonic() + 60
        while checkpoints.complete(run) == done and not (at_a_write and writing(run)) and time.monotonic() < deadline:
            time.sleep(0.001)
        if not at_a_write:
            time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert starter.wait() == signal.SIGKILL, "the run was over before it could be killed"
        kills += 1
        in_a_write += bool(writing(run))
        if found := checkpoints.complete(run):
            assert checkpoints.last(run) == found[-1]  # the newest is whole
    assert in_a_write >= 3
    starter.start(run)
    assert starter.wait() == 0
    starter.close()
    assert curve(run) == curve(whole) and len(curve(whole)) == STEPS
    one, other = state(whole), state(run)
    assert one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())
    assert not writing(run)


@pytest.mark.long
def test_sigterm_writes_a_checkpoint(overrides, tmp_path):
    """The exit code is 0, and the same command resumes with the same result."""
    command = [sys.executable, "-m", "reasonbrain.cli", "train", "--config", "tiny", *overrides, "data.count=6"]
    command += ["train.batch_size=2", "train.log_every=1", "train.save_every=1000", "train.steps=2000"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    process = subprocess.Popen([*command, "-o", str(run)], env=env, stderr=subprocess.PIPE, text=True)
    while not (run / "log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped by SIGTERM; saved at step" in said and "Traceback" not in said
    (folder,) = checkpoints.complete(run)
    step = checkpoints.step_of(folder)
    again = subprocess.run(
        [*command, f"train.steps={step + 1}", "-o", str(run)], env=env, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert f"resuming {run} at step {step}" in again.stderr and Path(run / "model" / "config.yaml").exists()


@pytest.mark.long
def test_a_full_disk_is_a_one_line_error_and_damages_nothing(overrides, tmp_path):
    """Files are limited to 1 MB, less than a checkpoint; then the limit is removed."""
    command = [sys.executable, "-m", "reasonbrain.cli", "train", "--config", "tiny", *overrides, "data.count=4"]
    command += ["train.batch_size=2", "train.save_every=2", "train.steps=4", "-o", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    full = subprocess.run(command, env=env, capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 2 and "error: checkpoint of step 2 cannot be written to" in full.stderr
    assert "File too large" in full.stderr and "Traceback" not in full.stderr
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 4
