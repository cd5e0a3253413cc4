"""What `make gpu` runs: its collection of benches, here of the embedded default, and the tables that it writes."""

import json
import subprocess
import sys

import pytest
import torch

from reasonbrain.eval.benchmarking.bench import table
from reasonbrain.eval.benchmarking.gpu import RUNS, measure, write

PAGE = "# Performance\n\n<!-- measured by make gpu -->\nnot yet\n<!-- end -->\n\nMore.\n"
ONCE = ["--config", "tiny", "--random", "--warmup", "0", "--repeats", "1"]


@pytest.mark.long
def test_benches_are_collected_and_errors_among_them(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    runs = {
        "edit": ["edit", *ONCE, "edit.steps=1"],
        "wrong": ["edit", *ONCE, "edit.steps=0"],
        "training step": ["train", *ONCE, "data.count=1", "train.batch_size=1"],
    }
    found = measure(runs)
    write(found, tmp_path / "out" / "gpu.json", tmp_path / "page.md")
    assert json.loads((tmp_path / "out" / "gpu.json").read_text()) == found
    assert found["wrong"] == {"error": "error: edit.steps: must be from 1 to 1000, not 0"}
    page = (tmp_path / "page.md").read_text()
    lines = page.splitlines()
    assert lines[0] == "# Performance" and lines[-1] == "More." and "not yet" not in page
    assert [line for line in lines if line.startswith("### ")] == ["### edit", "### wrong", "### training step"]
    assert table(found["edit"]) in page and table(found["training step"]) in page
    assert "### wrong\n\nerror: edit.steps: must be from 1 to 1000, not 0\n" in page
    write(found, tmp_path / "out" / "gpu.json", tmp_path / "page.md")  # in place of what was there
    assert (tmp_path / "page.md").read_text() == page


def test_its_benches_are_those_of_the_command():
    assert {run[0] for run in RUNS.values()} == {"load", "edit", "train"}
    assert all("--random" in run for run in RUNS.values())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_it_says_so(tmp_path):
    command = [sys.executable, "-m", "reasonbrain.eval.benchmarking.gpu", tmp_path / "gpu.json", tmp_path / "page.md"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and done.stderr.strip().endswith("make gpu: torch finds no accelerator on this machine")
