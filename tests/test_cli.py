"""The command line: valid input gives files; invalid input gives one line, exit code 2 and no files."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.modules.data.reasonmini import make
from reasonbrain.modules.data.reasonmini.store import read_manifest
from reasonbrain.registry import SLOTS, plugins

COMMAND = [sys.executable, "-m", "reasonbrain.cli"]
ASK = "What would happen if someone blew on the candle?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model, settings):
    """A complete checkpoint folder of the small model."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    ReasonBrainPipeline.from_model(model, settings()).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder but for ``in.png``. The command silences transformers before it is imported, which here
    it already is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)
    make("test", 0).source.save("in.png")
    return tmp_path


def call(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def ok(*args):
    """The lines that a successful command prints. It must print nothing to stderr."""
    result = call(*args)
    assert result.exit_code == 0, result.stderr or result.exception
    assert result.stderr == ""
    return result.stdout.splitlines()


def everything(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


def refused(*args):
    """The one line on stderr of a command with a user error. It must not have changed any file."""
    before = everything(".")
    result = call(*args)
    assert result.exit_code == 2, result.exception
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert everything(".") == before
    return result.stderr


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def bomb():
    """A PNG of a few bytes whose header declares 60000 x 60000 pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        png += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png


# --- the command itself


@pytest.mark.parametrize("args", [["--help"], ["edit", "--help"], ["modules"]])
def test_light_commands_import_no_heavy_library(args):
    """Importing torch alone takes seconds."""
    program = f"import sys, reasonbrain.cli as c; c.main({args}, standalone_mode=False)"
    program += (
        "; found = {'torch', 'numpy', 'transformers', 'ray', 'datasets'} & {*sys.modules}; assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_modules_lists_each_plugin_in_one_line():
    lines = ok("modules")
    rows = [line.split() for line in lines[1:-1]]
    assert [(r[0], r[1]) for r in rows] == [(p.slot, p.name) for p in plugins()]
    assert {r[0] for r in rows} == {*SLOTS, "data"}
    assert "null" in lines[-1]
    column = lines[0].index("MODULE")
    assert all(line[column - 1] == " " and line[column:].startswith("reasonbrain.") for line in lines[1:-1])


def test_a_closed_pipe_causes_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "modules"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


# --- edit


def test_the_embedded_default_edits_and_prints_only_the_path(here):
    done = subprocess.run([*COMMAND, "edit", "in.png", ASK, "-o", "out.png"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out.png\n", "")
    assert pixels("out.png").shape == pixels("in.png").shape


def test_same_seed_same_pixels_and_settings_are_in_the_metadata(checkpoint):
    edit = ["edit", "in.png", ASK, "--checkpoint", checkpoint, "--steps", 2]
    assert ok(*edit, "-o", "a.png", "--seed", 3) == ["a.png"]
    ok(*edit, "-o", "b.png", "--seed", 3)
    ok(*edit, "-o", "c.png", "--seed", 4)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert (pixels("a.png") != pixels("c.png")).any()
    with Image.open("a.png") as image:
        assert image.info == {"instruction": ASK, "seed": "3", "steps": "2", "checkpoint": str(checkpoint)}


def test_seed_and_steps_have_defaults(checkpoint):
    ok("edit", "in.png", ASK, "--checkpoint", checkpoint, "-o", "a.png")
    ok("edit", "in.png", ASK, "--checkpoint", checkpoint, "-o", "b.png", "--seed", 0, "--steps", 3)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_panel_does_not_change_the_result_and_is_printed_last(checkpoint):
    edit = ["edit", "in.png", ASK, "--checkpoint", checkpoint]
    assert ok(*edit, "-o", "out.png", "--panel", "panel.png") == ["out.png", "panel.png"]
    ok(*edit, "-o", "alone.png")
    assert Path("out.png").read_bytes() == Path("alone.png").read_bytes()
    panel = pixels("panel.png")
    assert panel.shape[1] > 1000 and panel.std() > 10


@pytest.mark.parametrize("slot", ["cme", "mllm", "frce.region", "diffusion"])
def test_a_slot_can_be_null(checkpoint, slot):
    edit = ["edit", "in.png", ASK, "--checkpoint", checkpoint, f"model.{slot}=null"]
    assert ok(*edit, "-o", "out.png", "--panel", "panel.png") == ["out.png", "panel.png"]
    same = (pixels("out.png") == pixels("in.png")).all()
    assert same == (slot == "diffusion")


def test_overrides_reach_the_edit(checkpoint):
    edit = ["edit", "in.png", ASK, "--checkpoint", checkpoint]
    ok(*edit, "-o", "a.png", "edit.preserve=false")
    ok(*edit, "-o", "b.png")
    assert (pixels("a.png") != pixels("b.png")).any()


BAD_EDITS = {
    "missing image": (["none.png", ASK], ["none.png", "does not exist"]),
    "folder": (["folder", ASK], ["folder", "not a picture"]),
    "empty file": (["empty.png", ASK], ["empty.png", "empty file"]),
    "text": (["text.png", ASK], ["text.png", "not a picture"]),
    "truncated": (["cut.png", ASK], ["cut.png", "truncated"]),
    "bomb": (["bomb.png", ASK], ["bomb.png", "million pixels"]),
    "empty instruction": (["in.png", ""], ["instruction", "empty"]),
    "blank instruction": (["in.png", " \n"], ["instruction", "empty"]),
    "no steps": (["in.png", ASK, "--steps", "0"], ["edit.steps", "from 1 to 1000", "0"]),
    "no config": (["in.png", ASK, "--config", "tinny"], ["'tinny'", "preset", "tiny"]),
    "no config file": (["in.png", ASK, "--config", "no.yaml"], ["no.yaml", "does not exist"]),
    "no key": (["in.png", ASK, "edit.stps=3"], ["edit.stps", "unknown", "did you mean 'steps'"]),
    "no plug-in": (["in.png", ASK, "model.cme.name=hybrit"], ["model.cme.name", "'hybrit'", "hybrid", "null"]),
    "no parameter": (["in.png", ASK, "model.cme.blokcs=2"], ["model.cme.blokcs", "'blocks'"]),
    "wrong type": (["in.png", ASK, "edit.size=large"], ["edit.size", "large"]),
    "no equals sign": (["in.png", ASK, "edit.size"], ["'edit.size'", "key=value"]),
    "no checkpoint": (["in.png", ASK, "--checkpoint", "none"], ["checkpoint 'none'"]),
    "no weights for a plug-in": (
        ["in.png", ASK, "model.frce.region.name=sam"],
        ["model.frce.region", "'sam'", "train"],
    ),
    "no folder, told before any loading": (
        ["in.png", ASK, "-o", "none/out.png", "--checkpoint", "none"],
        ["none/out.png", "folder 'none' does not exist"],
    ),
    "no folder, but a panel": (["in.png", ASK, "-o", "none/out.png", "--panel", "p.png"], ["none/out.png"]),
    "no picture's name": (["in.png", ASK, "-o", "out.pdf"], ["out.pdf", ".png"]),
    "output is a folder": (["in.png", ASK, "-o", "folder.png"], ["folder.png", "is a folder"]),
    "no panel folder": (["in.png", ASK, "--panel", "none/p.png"], ["none/p.png", "does not exist"]),
    "output is the image": (["in.png", ASK, "-o", "./in.png"], ["is an input of this command, 'in.png'"]),
    "panel is the image": (["in.png", ASK, "--panel", "link.png"], ["link.png", "is an input of this command"]),
    "panel is output": (["in.png", ASK, "--panel", "./out.png"], ["out.png", "same file"]),
}


@pytest.mark.parametrize("case", BAD_EDITS)
def test_bad_input_of_edit(case, here):
    args, words = BAD_EDITS[case]
    for name in ("folder", "folder.png"):
        (here / name).mkdir()
    Path("empty.png").touch()
    Path("text.png").write_text("not a picture")
    Path("link.png").symlink_to("in.png")
    Path("cut.png").write_bytes(Path("in.png").read_bytes()[:-200])
    Path("bomb.png").write_bytes(bomb())
    said = refused("edit", "-o", "out.png", *args)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "args, word",
    [
        (["edit", "in.png", ASK], "--output"),
        (["edit", "in.png", "-o", "out.png"], "INSTRUCTION"),
        (["edit", "in.png", ASK, "-o", "out.png", "--steps", "few"], "'few'"),
        (["edit", "in.png", ASK, "-o", "out.png", "--seed", "-1"], "--seed"),
        (["edti"], "edti"),
    ],
)
def test_usage_errors(args, word):
    before = everything(".")
    result = call(*args)
    assert result.exit_code == 2 and word in result.stderr
    assert everything(".") == before


def test_a_user_error_in_a_real_shell_is_one_line():
    done = subprocess.run([*COMMAND, "edit", "no.png", ASK, "-o", "out.png"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: image 'no.png' does not exist\n")
    assert not Path("out.png").exists()


def test_only_tiny_has_weights_of_its_own(settings):
    from reasonbrain.config.loading import dump_config

    Path("mine.yaml").write_text(dump_config(settings()))
    said = refused("edit", "in.png", ASK, "-o", "out.png", "--config", "mine.yaml")
    assert "--checkpoint" in said and "reasonbrain train --config mine.yaml" in said


def test_a_checkpoint_must_match_the_given_config(checkpoint, settings):
    from reasonbrain.config.loading import dump_config

    Path("same.yaml").write_text(dump_config(settings()))
    Path("other.yaml").write_text(dump_config(settings("model.connector.queries=5")))
    edit = ["edit", "in.png", ASK, "-o", "out.png", "--checkpoint", checkpoint, "--config"]
    said = refused(*edit, "other.yaml")
    assert "model.connector.queries" in said and "6, not 5" in said
    assert "model.width" in refused(*edit, "tiny")
    ok(*edit, "same.yaml")


@pytest.mark.parametrize(
    "file, keep",
    [
        ("connector/model.safetensors", 0.9),
        ("diffusion/model.safetensors", 0.0),
        ("cme/config.json", 0.5),
        ("mllm/tokenizer.json", 0.5),
        ("config.yaml", 0.5),
        ("config.yaml", 0.0),
    ],
)
def test_a_truncated_checkpoint(checkpoint, file, keep):
    shutil.copytree(checkpoint, "broken")
    path = Path("broken") / file
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    said = refused("edit", "in.png", ASK, "-o", "out.png", "--checkpoint", "broken")
    assert f"broken/{file.split('/')[0]}" in said


def test_weights_of_another_model_in_a_checkpoint(checkpoint):
    shutil.copytree(checkpoint, "mixed")
    shutil.copy("mixed/cme/model.safetensors", "mixed/connector/model.safetensors")
    said = refused("edit", "in.png", ASK, "-o", "out.png", "--checkpoint", "mixed")
    assert "connector/model.safetensors" in said and "does not fit" in said


# --- train


@pytest.fixture
def training(overrides):
    keys = ("train.steps=2", "train.batch_size=2", "train.log_every=1", "train.save_every=1", "data.count=4")
    return ["train", "-o", "run", *overrides, *keys]


def test_train_then_edit_then_resume(training):
    assert ok(*training) == ["run/model"]
    log = Path("run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
    ok("edit", "in.png", ASK, "-o", "out.png", "--checkpoint", "run")
    assert ok(*training, "train.steps=3") == ["run/model"]
    assert json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])["step"] == 3
    assert "model.connector.queries" in refused(*training, "model.connector.queries=5")


def test_a_loss_that_is_not_finite_is_one_line_and_exit_code_1(training):
    result = call(*training, "train.lr=1e30", "train.steps=9", "train.save_every=100", "train.bad_steps=4")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: training diverged at step ") and result.stderr.count("\n") == 1
    assert "records train-0-" in result.stderr and result.stderr.endswith("4 steps in a row were skipped\n")
    assert not Path("run/model").exists()


BAD_TRAINING = {
    "no such folder": (
        ["model.encoders.pretrained=no/such/clip"],
        ["model.encoders.pretrained", "no/such/clip", "give one that holds weights, or a hub id"],
    ),
    "no such narrator": (
        ["model.mllm.pretrained=runs/tiny/mllm_full"],
        ["model.mllm.pretrained", "folder 'runs/tiny/mllm_full' does not exist; give one that holds weights"],
    ),
    "no such autoencoder": (["model.diffusion.autoencoder=./vae"], ["model.diffusion.autoencoder", "./vae"]),
    "not on the hub": (["model.encoders.pretrained=nobody/nothing"], ["model.encoders", "nobody/nothing", "hub"]),
    "nothing to start from": (
        ["model.encoders.name=clip", "model.encoders.pretrained=null"],
        ["model.encoders.pretrained"],
    ),
    "swapped without weights": (["model.mllm.name=llava"], ["model.mllm.pretrained", "'llava'"]),
    "nothing to learn": (["model.mllm=null", "model.diffusion=null"], ["nothing", "mllm and diffusion"]),
    "nothing to learn from a sentence": (
        ["model.mllm.img_tokens=0", "model.diffusion=null"],
        ["nothing", "mllm and diffusion"],
    ),
    "no steps": (["train.steps=0"], ["train.steps", "1 or more"]),
    "no manifest": (["data.name=manifest", "data.path=no.jsonl"], ["no.jsonl", "does not exist"]),
    "run is a file": (["-o", "in.png"], ["in.png", "cannot be created"]),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_of_train(case, training, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    args, words = BAD_TRAINING[case]
    said = refused(*training, *args)
    assert all(word in said for word in words), said


def test_an_interrupted_run_ends_with_130_and_no_traceback(training):
    command = [*COMMAND, *training, "train.steps=100000"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a job in the background ignores it
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "step=1 " in line:
                break
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert rest.endswith("; the same command resumes from there\ninterrupted\n") and "Traceback" not in rest
    assert "stopped by SIGINT; saved at step" in rest
    assert lines[2].startswith("slot") and len(lines) == 4 + len(SLOTS)  # the table, then step 1: nothing else is said


# --- data


def test_data_mini_and_score_round_trip(here):
    write = ["data", "mini", "--split", "test", "--count", 6, "--seed", 7, "-o"]
    assert ok(*write, "mini") == ["mini/manifest.jsonl"]
    ok(*write, "again")
    assert {p.relative_to("mini"): b for p, b in everything("mini").items()} == {
        p.relative_to("again"): b for p, b in everything("again").items()
    }
    (here / "edits").mkdir()
    records = list(read_manifest("mini"))
    assert len(records) == 6
    for r in records[:3]:
        shutil.copy(Path("mini") / r["tgt_image"], f"edits/{r['id']}.png")
    scores = json.loads("\n".join(ok("data", "score", "mini", "edits")))
    assert (scores["count"], scores["missing"], scores["edits"]["passed"]) == (6, 3, 0.5)
    assert scores["targets"]["passed"] == 1


def test_bad_input_of_data(here):
    (here / "full").mkdir()
    Path("full/file").touch()
    assert "'tset'" in refused("data", "mini", "--split", "tset", "-o", "new")
    assert "count" in refused("data", "mini", "--count", 0, "-o", "new")
    assert "not empty" in refused("data", "mini", "-o", "full")
    assert "manifest.jsonl" in refused("data", "score", "full", "full")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH (docs/security.md)")
def test_child_processes_import_nothing_from_the_working_directory(tmp_path):
    for name in ("multiprocessing", "torch", "runpy"):
        (tmp_path / f"{name}.py").write_text("open('PWNED', 'w')")
    program = """
from reasonbrain.cli import main
import multiprocessing
if __name__ == "__main__":
    main(["modules"], standalone_mode=False)
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
    assert not process.exitcode
"""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.py").write_text(program)
    subprocess.run([sys.executable, "scripts/run.py"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert not (tmp_path / "PWNED").exists()


def test_an_error_does_not_repeat_a_password(tmp_path):
    """Errors end in logs, and a hub or a server may be named with a user's password."""
    Image.new("RGB", (8, 8)).save(sample := tmp_path / "x.png")
    named = "https://me:SECRETSECRET@hub.example/model"
    for args in (["edit", str(sample), ASK, "--checkpoint", named], ["train", f"train.start={named}"]):
        result = CliRunner().invoke(main, [*args, "-o", str(tmp_path / "out.png")])
        assert result.exit_code == 2 and "SECRET" not in result.stderr and "//***@hub.example" in result.stderr
