"""The embedded default on ReasonMini, measured by `reasonbrain eval`."""

import json

import pytest
from click.testing import CliRunner

from reasonbrain.checkpoint import embedded
from reasonbrain.cli import main
from reasonbrain.modules.data.reasonmini import benchmark as mini
from reasonbrain.modules.data.reasonmini.score import score
from reasonbrain.modules.data.reasonmini.store import write_split
from reasonbrain.modules.data.reasonmini.world import kinds, scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    command = "eval --benchmark mini --data test --limit 33 edit.steps=5 -o"  # half its steps: as good, and quicker
    result = CliRunner().invoke(main, [*command.split(), str(folder)])
    assert result.exit_code == 0, result.stderr or result.exception
    assert result.stdout.split() == [str(folder / "report.md"), str(folder / "report.html")]
    assert len(list((folder / "edits").glob("*.png"))) == 33
    return folder


@pytest.fixture(scope="module")
def means(folder):
    """system -> score -> mean over the split"""
    table = json.loads((folder / "report.json").read_text())["tables"][0]
    assert table["records"] == 33
    systems = table["scores"]["outcome"]["systems"]
    return {s: {name: of["systems"][s]["mean"] for name, of in table["scores"].items()} for s in systems}


def test_the_embedded_default_passes_its_checks(means):
    """One held-out record of each kind. Untrained or broken weights pass almost no check."""
    edits = means["edits"]
    assert edits["outcome"] >= 0.9
    assert edits["L1 outside"] <= 0.01
    assert edits["L1 inside"] < 0.3 * means["do nothing"]["L1 inside"]


def test_the_instruction_is_needed(means):
    """Kinds share scenes, so a model that sees only the picture can pass once per scene, 16 times in 33."""
    withheld = means["instruction withheld"]["outcome"]
    assert withheld <= len(scenes()) / len(kinds()) and withheld < 0.5 * means["edits"]["outcome"]


def test_the_baselines_have_the_expected_scores(means):
    assert means["do nothing"]["outcome"] < 0.05 and means["do nothing"]["L1 outside"] == 0
    assert means["true target"]["outcome"] == 1 and means["true target"]["L1 inside"] == 0
    assert 0 < means["autoencoder on the true target"]["L1 outside"] < 0.05


def test_scores_agree_with_those_of_a_written_split(folder, means, tmp_path):
    """`reasonbrain data score` reads the same pictures from a folder and computes the scores independently."""
    write_split("test", 33, mini.SEED, tmp_path / "split")
    scored = score(tmp_path / "split", folder / "edits")["edits"]
    ours = [means["edits"][name] for name in ("outcome", "L1 inside", "L1 outside")]
    assert ours == pytest.approx([scored["passed"], scored["error_inside"], scored["error_outside"]], abs=6e-5)


def test_all_three_splits_and_their_kinds():
    records = mini.MiniSplits(None, 40)
    assert len(records) == 120
    assert [records[i].notes["split"] for i in (0, 39, 40, 119)] == ["test", "test", "paraphrase", "compositional"]
    assert len({records[i].id for i in range(120)}) == 120
    assert {records[i].notes["kind"] for i in range(33)} == {kind.name for _, kind in kinds()}


def test_the_shipped_weights_are_small_and_contain_no_local_paths():
    files = [f for f in embedded().rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40_000_000
    for file in files:
        if file.suffix in (".json", ".yaml") and file.name != "tokenizer.json":
            assert '"/' not in file.read_text() and ": /" not in file.read_text(), file
