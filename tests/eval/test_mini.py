"""The embedded default and the command that measures it."""

import json
import sys

import pytest

from reasonbrain.checkpoint import embedded
from reasonbrain.data.mini.world import kinds, scenes
from reasonbrain.eval import mini


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    argv = ["mini", "--splits", "test", "--count", "33", "--seed", "5", "--blank", "-o", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        mini.main()
    assert len(list((folder / "test" / "edits").glob("*.png"))) == 33
    return json.loads((folder / "report.json").read_text())["test"]


def test_the_embedded_default_does_what_is_asked(report):
    """One record of each kind, never trained on. Untrained or broken weights pass next to nothing."""
    edits = report["ReasonBrain tiny"]
    assert edits["passed"] >= 0.9
    assert edits["error_outside"] <= 0.01
    assert edits["error_inside"] < 0.3 * report["do nothing"]["error_inside"]


def test_the_instruction_is_needed(report):
    """Kinds share their scenes: a model that sees only the picture can be right once a scene, 16 times in 33."""
    withheld = report["the same, instruction withheld"]["passed"]
    assert withheld <= len(scenes()) / len(kinds()) and withheld <= report["ReasonBrain tiny"]["passed"] / 2.5


def test_the_baselines_are_what_they_are_called(report):
    assert report["do nothing"]["passed"] < 0.05 and report["do nothing"]["error_outside"] == 0
    assert report["true target"]["passed"] == 1 and report["true target"]["error_inside"] == 0
    assert 0 < report["autoencoder on the true target"]["error_outside"] < 0.05


def test_the_shipped_weights_are_small_and_name_no_machine():
    files = [f for f in embedded().rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40_000_000
    for file in files:
        if file.suffix in (".json", ".yaml") and file.name != "tokenizer.json":
            assert '"/' not in file.read_text() and ": /" not in file.read_text(), file
