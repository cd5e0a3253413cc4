"""Real runs whose processes are killed, halted, short of memory or launched wrongly: one line each, and a resume."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import state

from reasonbrain.errors import UserError
from reasonbrain.train import checkpoints
from reasonbrain.train.run import check_partitioned_loading, train

ROOT = Path(__file__).parents[3]
QUICK = ["data.count=4", "train.batch_size=4", "train.warmup=2", "train.log_every=1", "train.optimizer=adamw"]
QUICK += ["train.save_every=2", "train.steps=6"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

# `reasonbrain train`, but a process kills or halts itself, or runs out of memory, when a given forward pass begins
HARMED = """
import os, resource, signal, sys, threading
import torch
from reasonbrain import cli
from reasonbrain.model import ReasonBrain
from reasonbrain.train.distributed import faults
rank, number, how = sys.argv[1:4]
faults.SILENT = 5
calls = []

def harm(module, args):
    if not isinstance(module, ReasonBrain):
        return
    calls.append(module)
    if len(calls) == int(number) and os.environ.get("RANK", "0") == rank:
        if how == "starve":
            held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 20), resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), getattr(signal, how))

torch.nn.modules.module.register_module_forward_pre_hook(harm)
try:
    cli.main(["train", "--config", "tiny", *sys.argv[4:]])
except SystemExit as e:
    watching = [t.name for t in threading.enumerate() if t.name.endswith(("(_listen)", "(_judge)"))]
    sys.stderr.write(f"rank {os.environ.get('RANK', '0')} exits with {e.code}, watching: {watching}\\n")  # in one piece
    raise
"""


@pytest.fixture
def start(overrides, tmp_path):
    """``start(rank, number, how, *arguments)``: (exit code, error lines, all output) of a run with that fault."""
    script = tmp_path / "script.py"
    script.write_text(HARMED)

    def run(rank, number, how, *arguments, launcher=TORCHRUN, quick=QUICK):
        command = [sys.executable, *launcher, script, rank, number, how, *arguments, *overrides, *quick]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*map(str, command)], env=env, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("error: ") and how == "SIGSTOP":
                os.kill(halted(script), signal.SIGKILL)  # as torchrun does, 30 seconds later
        code = process.wait()
        assert not any(f'File "{ROOT}/{folder}/' in "".join(said) for folder in ("train", "reasonbrain")), said
        return code, [line for line in said if line.startswith("error: ")], "".join(said)

    return run


def halted(script):
    """The halted process among those of a script."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(script) in (folder / "cmdline").read_text() and "State:\tT" in (folder / "status").read_text():
                return int(folder.name)
        except OSError:  # it has ended meanwhile
            pass
    raise LookupError(script)


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.long)])
def test_other_processes_name_a_lost_process(start, tmp_path, how):
    """The connections of a killed process end. Those of a halted one stay, and others would wait for half an hour."""
    code, (line,), said = start(1, 4, how, "-o", tmp_path / "run")
    assert code == 1 and "error: step 3: rank 1 was lost" in line
    assert "the last checkpoint, of step 2, is complete: the same command resumes" in line
    assert "exitcode  : 1 " in said  # the other one's


@pytest.mark.long
@pytest.mark.parametrize("stage", [None, 2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_loss_the_same_command_gives_the_same_result(start, tmp_path, stage, rank):
    zero = ["--deepspeed", ROOT / f"configs/deepspeed/zero{stage}.json"] if stage else []
    code, _, said = start(rank, -1, "SIGKILL", "-o", tmp_path / "whole", *zero)
    assert code == 0 and said.count(" exits with 0, watching: []\n") == 2
    code, (line,), _ = start(rank, 4, "SIGKILL", "-o", tmp_path / "run", *zero)
    assert code == 1 and f"step 3: rank {rank} " in line and "of step 2, is complete" in line
    assert start(rank, -1, "SIGKILL", "-o", tmp_path / "run", *zero)[0] == 0
    one, other = state(tmp_path / "whole"), state(tmp_path / "run")
    assert one.keys() == other.keys()
    assert all(torch.equal(v, other[k]) for k, v in one.items())


def test_out_of_memory_says_what_to_change(start, tmp_path):
    code, (line,), _ = start(0, 2, "starve", "-o", tmp_path / "run", launcher=[])
    assert code == 2 and "error: step 1: rank 0 is out of memory; its peak was " in line and "train.micro_batch" in line


def test_a_run_is_trained_by_one_command_at_a_time(settings, tmp_path):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"run '{tmp_path}' is being trained by another command"):
            train(settings(*QUICK), tmp_path)
    train(settings(*QUICK, "train.steps=1"), tmp_path)


def test_a_second_launch_says_so_once_and_leaves_the_first_alone(start, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, (line,), said = start(0, -1, "SIGKILL", "-o", tmp_path / "run")
    assert "is being trained by another command" in line and "exitcode  : 2 " in said
    # printed by both processes: torchrun reports only those that had ended when it looked. Python would abort one that
    # ends while it watches
    assert said.count(" exits with 2, watching: []\n") == 2
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["lock"]


def test_an_invalid_launch(monkeypatch, settings, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="launch: WORLD_SIZE is 2, but MASTER_ADDR, MASTER_PORT is not set.*torchrun"):
        train(settings(*QUICK), tmp_path / "run")


def test_nf4_cannot_be_partitioned(settings, tmp_path):
    """The error comes before anything is built."""
    cfg = settings(*QUICK, "model.mllm.precision=nf4", "train.start=nowhere")
    with pytest.raises(UserError, match="model.mllm.precision: 'nf4' cannot be read from train.start under ZeRO-3"):
        check_partitioned_loading(cfg)
    check_partitioned_loading(settings(*QUICK, "train.start=nowhere"))
    check_partitioned_loading(settings(*QUICK, "model.mllm.precision=nf4"))


def test_a_run_must_not_be_a_file(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output folder .*file' cannot be created: File exists"):
        train(settings(*QUICK), tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "where"), [("config.yaml.new", "before the first step|step 2"), ("log.jsonl", "step 3")]
)
def test_a_full_disk_outside_the_checkpoints(settings, tmp_path, name, where):
    """On a device that is really full. Files from before stay readable."""
    train(settings(*QUICK, "train.steps=2"), tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"({where}): run .* cannot be written: No space left on device. Make room; "):
        train(settings(*QUICK), tmp_path)
    (tmp_path / name).unlink()
    train(settings(*QUICK), tmp_path)
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 6
