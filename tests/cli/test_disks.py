"""Every command that writes, on a disk that is read-only or full: one line, exit code 2, and no part of an output that
could be mistaken for the whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from building import write_seeds
from click.testing import CliRunner
from disks import FULL, NO_FILES, READ_ONLY, disk

from reasonbrain.cli import main
from reasonbrain.modules.data.reasonmini import make
from reasonbrain.modules.data.reasonmini.store import write_split

PLAN = "budget: b.yaml\nstudies: [{ablated_part: CME, action: REMOVE, overrides: [model.cme=null], metrics: [L1], "
BUDGET = "config: tiny\noverrides: [train.steps=1, data.count=2, train.tracker=null]\nbenchmark: mini\nlimit: 1\n"
BUILD = ["--url", "http://127.0.0.1:9/v1", "--model", "m", "--pipeline", "p"]
STEPS = ["data.count=2", "train.steps=1", "train.batch_size=1"]
TRAIN = [*STEPS, "train.validate_every=1"]
BENCH = ["bench", "edit", "--warmup", 0, "--repeats", 1, "edit.steps=1"]
COMMANDS = {
    "edit": lambda d: ["edit", "in.png", "x", "-o", d / "o.png", "--panel", d / "p.png", "edit.steps=1"],
    "batch": lambda d: ["batch", "jobs.jsonl", "-o", d / "out", "edit.steps=1"],
    "train": lambda d: ["train", "-o", d / "out", *TRAIN],
    "init": lambda d: ["init", "-o", d / "out"],
    "export": lambda d: ["export", "run", "-o", d / "out"],
    "eval": lambda d: ["eval", "--benchmark", "mini", "--limit", 1, "-o", d / "out", "edit.steps=1"],
    "ablate": lambda d: ["ablate", "p.yaml", "-o", d / "out"],
    "bench": lambda d: [*BENCH, "-o", d / "o.json"],
    "data mini": lambda d: ["data", "mini", "--count", 40, "-o", d / "out"],
    "data check": lambda d: ["data", "check", "mini", "-o", d / "o.jsonl"],
    "data show": lambda d: ["data", "show", "mini", "-o", d / "o.html"],
    "data cache": lambda d: ["data", "cache", "-o", d / "out", "data.count=2"],
    "data build": lambda d: ["data", "build", "seeds/seeds.jsonl", "-o", d / "out", *BUILD],
}
SMALL = ("edit", "batch", "bench", "data check", "data show")  # they write less than a full disk has left
WHOLE = ("o.png", "p.png", "o.json", "o.html", "o.jsonl", "config.yaml", "manifest.jsonl", "report.html", "p.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an input for every command."""
    folder = tmp_path_factory.mktemp("inputs")
    make("test", 0).source.save(folder / "in.png")
    (folder / "jobs.jsonl").write_text(json.dumps({"id": "a", "image": "in.png", "instruction": "x"}))
    (folder / "p.yaml").write_text(PLAN + "seeds: [0]}]\n")
    (folder / "b.yaml").write_text(BUDGET)
    write_split("test", 3, 0, folder / "mini")
    write_seeds(folder / "seeds", [{"id": f"s{i}", "prompt": "a red candle"} for i in range(8)])
    done = CliRunner().invoke(main, ["train", "-o", str(folder / "run"), *STEPS, "train.tracker=null"])
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def refused(folder, tmp_path, monkeypatch):
    """``refused(name, options)``: what a command says that cannot write to a disk with these mount options."""
    monkeypatch.chdir(folder)

    def call(name, options):
        with disk(tmp_path / "disk", options) as full:
            done = CliRunner().invoke(main, [str(a) for a in COMMANDS[name](full)])
            assert isinstance(done.exception, SystemExit), done.exception
            left = [path.name for path in full.rglob("*") if path.name in WHOLE]
        said = done.stderr.splitlines()
        assert done.exit_code == 2 and done.stdout == "", done.stderr
        assert said[-1].startswith("error: ") and "Traceback" not in done.stderr
        assert not {*left} - ({"config.yaml"} if name == "train" else set()), left
        return said[-1]

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_disk(name, refused):
    assert "Read-only file system" in refused(name, READ_ONLY)


@pytest.mark.parametrize("options", [FULL, NO_FILES])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SMALL])
def test_a_full_disk(name, options, refused):
    if (name, options) == ("ablate", FULL):  # all its runs fail, and the table, which fits, says why
        return
    assert "No space left on device" in refused(name, options)


def test_what_a_full_disk_interrupts_is_written_by_the_same_command_later(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with disk(tmp_path / "disk", "size=90m") as small:
        words = [str(word) for word in COMMANDS["export"](small)]
        (small / "filler").write_bytes(bytes(80 << 20))
        assert CliRunner().invoke(main, words).exit_code == 2
        (small / "filler").unlink()
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.stderr


def test_a_second_evaluation_into_a_folder_waits_for_none(folder, tmp_path, monkeypatch):
    from reasonbrain.utils.locks import alone

    monkeypatch.chdir(folder)
    words = ["eval", "--benchmark", "mini", "--limit", "1", "-o", str(tmp_path / "out"), "edit.steps=1"]
    with alone(tmp_path / "out" / "lock"):
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "is being written by another command" in done.stderr
    assert os.listdir(tmp_path / "out") == ["lock"]


@pytest.mark.parametrize("name", ["init", "data cache", "train", "export", "ablate"])
def test_a_folder_that_libraries_cannot_name(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    out = tmp_path / os.fsdecode(b"d\xc3")
    done = CliRunner().invoke(main, [str(a) for a in COMMANDS[name](out)])
    assert done.exit_code == 2 and "is not valid Unicode" in done.stderr, done.exception
    assert not out.exists()


@pytest.mark.parametrize(
    "words", [["edit", "é.png", "Wäre es heiß?", "-o", "ä.png", "edit.steps=1"], ["config", "é.yaml"]]
)
def test_a_locale_without_utf8(words, tmp_path):
    """Python then takes names as bytes that are not text, and cannot print them as they are."""
    make("test", 0).source.save(tmp_path / "é.png")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "reasonbrain.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **plain}, capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "words", [["data", "check", "mini"], ["config", "tiny"], ["data", "mini", "--count", "1", "-o", "m"]]
)
def test_standard_output_that_is_full(words, folder, tmp_path):
    (tmp_path / "mini").symlink_to(folder / "mini")
    command = [sys.executable, "-m", "reasonbrain.cli", *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: standard output cannot be written: No space left on device\n",
    )
