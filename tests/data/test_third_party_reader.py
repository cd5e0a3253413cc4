"""A data set from a third-party package: the reader that CONTRIBUTING.md shows, installed, checked and trained on."""

import json
import re
import shutil
from pathlib import Path

import pytest
from packages import install, run_with

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"

USE = """
import json, sys
from pathlib import Path

from click.testing import CliRunner

from reasonbrain.cli import main
from reasonbrain.config.loading import load_config
from reasonbrain.model import ReasonBrain
from reasonbrain.train.batches import Batches

diary, out, *overrides = sys.argv[1:]


def command(*args):
    done = CliRunner().invoke(main, [str(a) for a in args])
    assert done.exit_code == 0, (args, done.stderr, done.exception)
    return done.output


overrides += ["data.name=diary", f"data.path={diary}", "train.steps=2", "train.save_every=1", "train.batch_size=4"]
cfg = load_config("tiny", overrides)
batches = Batches(cfg, ReasonBrain.from_config(cfg.model))
print(json.dumps({
    "check": command("data", "check", diary),
    "show": command("data", "show", diary, "-o", Path(out) / "page.html"),
    "names": command("modules"),
    "trained": command("train", "--config", "tiny", "-o", Path(out) / "run", *overrides),
    "instructions": sorted({words for step in range(4) for words in batches(step)[0].instructions}),
}))
"""


def snippet():
    """The reader of CONTRIBUTING.md's section on data sets."""
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(), re.S) if "(Reader)" in c)
    return code


@pytest.mark.long
def test_it_is_checked_shown_and_trained_on_and_its_checkpoint_edits_without_it(tmp_path, overrides, records):
    diary = tmp_path / "diary"
    diary.mkdir()
    entries = []
    for i, record in enumerate(records):
        record.source.save(diary / f"{i}_a.png")
        record.target.save(diary / f"{i}_b.png")
        entries.append({"before": f"{i}_a.png", "after": f"{i}_b.png", "edit": f"What hits the harbour crane {i}?"})
    (diary / "diary.json").write_text(json.dumps(entries))
    env = install(tmp_path, "their_diary", snippet(), "reasonbrain.data", "diary", "their_diary:Diary")

    said = json.loads(run_with(env, USE, diary, tmp_path, *overrides, timeout=120).splitlines()[-1])
    assert "diary" in said["names"] and "their-diary" in said["names"]
    assert f"{len(records)} records" in said["check"] and (tmp_path / "page.html").exists()
    assert set(said["instructions"]) <= {e["edit"] for e in entries}  # no augmentation of any data set reaches them

    shutil.rmtree(tmp_path / "site")  # the package is gone: editing reads no data
    edit = ["edit", str(diary / "0_a.png"), "What fell?", "-o", str(tmp_path / "o.png")]
    call = "import sys; from reasonbrain.cli import main; main(sys.argv[1:])"
    run_with(env, call, *edit, "--checkpoint", tmp_path / "run")
    assert (tmp_path / "o.png").exists()
