"""A batch that is killed many times, at random moments, ends with every row done once and every picture complete."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from reasonbrain.checkpoint import save_model
from reasonbrain.modules.data.reasonmini import make

# forks one process per start, so that torch is imported only once; the parent never computes
RUN = """
import os, sys, traceback
import reasonbrain.editing.pipeline
import reasonbrain.modules.diffusion.flux, reasonbrain.modules.mllm.qwen2_5_vl
from pathlib import Path
from reasonbrain.editing.batch.run import Job, run
jobs, checkpoint = sys.argv[1:]
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            run(Job(Path(jobs), Path(line.strip()), None, checkpoint, None, (), 8), 1, "processes")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def jobs(folder, count):
    """Rows with pictures of three sizes and instructions of several lengths; one in twenty is broken, in one of five
    ways."""
    rng = random.Random(0)
    for i in range(12):
        side = (64, 48, 56)[i % 3]
        make("test", i).source.resize((side, side)).save(folder / f"{i}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:100])
    words = ["melt it", "freeze it", "what if the sun burnt it down?", "blow on it"]
    rows = []
    for i in range(count):
        row = {"id": f"row/{i}", "image": f"{i % 12}.png", "instruction": rng.choice(words), "seed": i}
        broken = [{"image": "no.png"}, {"image": "cut.png"}, {"x": 1}, {"id": "row/0"}, {"seed": "one"}]
        rows.append(json.dumps(row | (broken[i // 20 % 5] if i % 20 == 7 else {"n": 2} if i % 20 == 3 else {})))
    (folder / "jobs.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "jobs.jsonl"


def lines(out):
    path = out / "results.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


@pytest.mark.parametrize("count, kills", [(60, 5), pytest.param(500, 22, marks=pytest.mark.long)])
def test_every_row_is_done_once_despite_kills(model, settings, tmp_path, count, kills):
    save_model(model, settings("edit.steps=1"), tmp_path / "model")
    given = jobs(tmp_path, count)
    call = [sys.executable, "-c", RUN, str(given), str(tmp_path / "model")]
    starter = subprocess.Popen(
        call, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def start(out):
        starter.stdin.write(f"{out}\n")
        starter.stdin.flush()
        return int(starter.stdout.readline())

    def status():
        return int(starter.stdout.readline())

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    rng, died, stages = random.Random(1), 0, []
    for number in range(kills):
        before = lines(killed)
        pid = start(killed)
        if number % 5 == 0:  # during start-up
            time.sleep(rng.random())
        else:
            wanted = len(before) + rng.randint(1, max(1, int(1.6 * count / kills)))
            while len(lines(killed)) < wanted and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.002)
            time.sleep(0.05 * rng.random())
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        died += status() == signal.SIGKILL
        after = lines(killed)
        assert after[: len(before)] == before  # finished results are kept
        for line in after:
            if file := json.loads(line)["file"]:
                Image.open(killed / file).load()
        stages.append(len(after))
    for out in (killed, whole):
        start(out)
        assert status() == 0
    starter.stdin.close()
    starter.wait()
    assert died >= kills * 0.8 and len(set(stages)) > kills / 3

    found = [{(r["row"], r["variant"]): r for r in map(json.loads, lines(out))} for out in (killed, whole)]
    assert len(lines(killed)) == len(found[0]) == len(lines(whole))  # no duplicates
    assert {row for row, _ in found[0]} == set(range(count))  # nothing is missing
    assert sum(r["status"] == "error" for r in found[0].values()) == count // 20
    for key, result in found[0].items():
        other = found[1][key]
        assert {**result, "seconds": 0} == {**other, "seconds": 0}
        if result["file"]:
            pictures = [np.asarray(Image.open(out / result["file"])) for out in (killed, whole)]
            assert (pictures[0] == pictures[1]).all()
    named = {r["file"].split("/")[1] for r in found[0].values() if r["file"]}
    assert {p.name for p in (killed / "pictures").iterdir()} == named  # no half-written picture
    assert {p.name for p in killed.iterdir()} == {"pictures", "results.jsonl", "gallery.html", "run.json", "lock"}


@pytest.mark.long
def test_workers_end_with_their_parent(model, settings, tmp_path):
    save_model(model, settings("edit.steps=1"), tmp_path / "model")
    given, out = jobs(tmp_path, 200), tmp_path / "out"
    call = [sys.executable, "-m", "reasonbrain.cli", "batch", str(given), "-o", str(out), "--workers", "2"]
    call += ["--checkpoint", str(tmp_path / "model")]
    parent = subprocess.Popen(call, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while len(lines(out)) < 5:
        assert parent.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    done = lines(out)
    assert subprocess.run(call, stderr=subprocess.DEVNULL).returncode == 3
    assert lines(out)[: len(done)] == done
    found = [(r["row"], r["variant"]) for r in map(json.loads, lines(out))]
    assert len(found) == len(set(found)) and {row for row, _ in found} == set(range(200))
