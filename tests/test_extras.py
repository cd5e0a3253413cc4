"""The core install edits; a command that needs an extra that is not installed names it in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import manifest, picture, save

ROOT = Path(__file__).parents[1]
HIDDEN = "pymunk tensorboard deepspeed bitsandbytes torchmetrics datasets pyarrow imagehash ray"

# Hides the packages of all extras, except those that the core's dependencies install, then runs the commands.
SCRIPT = f"""
import json, sys
sys.modules.update(dict.fromkeys("{HIDDEN}".split()))
from click.testing import CliRunner
from reasonbrain.cli import main
found = {{}}
for words in json.load(sys.stdin):
    result = CliRunner().invoke(main, words.split())
    found[words] = [result.exit_code, result.stderr.strip().splitlines()[-1:]]
json.dump(found, sys.stdout)
"""
ZERO = ROOT / "configs" / "deepspeed" / "zero2.json"
TRAIN = "train data.name=manifest data.path=manifest.jsonl data.validation=manifest.jsonl train.batch_size=1"
EVAL = "eval --benchmark manifest --data manifest.jsonl --edits edits -o report"
CORE = [
    "edit images/0_src.png Melt. edit.steps=1 -o out.png --panel panel.png",
    "batch images --instruction Melt. -o b",
]
EXTRAS = {  # a command, and the extra that it lacks
    "data mini --count 1 -o mini": "mini",
    "eval --benchmark mini -o report": "mini",
    f"{TRAIN} -o run": "train",
    f"{TRAIN} -o run8 train.tracker=null train.optimizer=adamw_8bit": "train",
    f"{TRAIN} -o zero --deepspeed {ZERO}": "train",
    f"{EVAL} --metric LPIPS": "eval",
    "data show rows.parquet -o page.html": "data",
    "batch rows.parquet -o out": "data",
    "data check manifest.jsonl": "data",
    "batch images --instruction Melt. -o out --executor ray": "ray",
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How each command ended in an interpreter without the extras: exit code and last line."""
    folder = tmp_path_factory.mktemp("core")
    manifest(folder)
    save(picture(0), folder / "edits" / "r0.png")
    (folder / "rows.parquet").touch()
    command = [sys.executable, "-c", SCRIPT]
    words = json.dumps([*CORE, *EXTRAS])
    done = subprocess.run(command, input=words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", CORE)
def test_the_core_edits(ended, words):
    assert ended[words][0] == 0, ended[words]


@pytest.mark.parametrize(("words", "extra"), EXTRAS.items())
def test_a_missing_extra_is_named(ended, words, extra):
    code, (line,) = ended[words]
    assert code == 2 and line.startswith("error: ") and f"pip install 'reasonbrain[{extra}]'" in line
