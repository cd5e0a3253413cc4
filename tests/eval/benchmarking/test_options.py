"""`reasonbrain bench options`: what precisions, caches and compilation give, and what a model cannot do."""

import json

import pytest
from click.testing import CliRunner

from reasonbrain.cli import main


def bench(tmp_path, *overrides):
    once = ["--warmup", "0", "--repeats", "1"]
    done = CliRunner().invoke(
        main, ["bench", "options", "--checkpoint", "tiny", *once, "-o", tmp_path / "o", *overrides]
    )
    assert done.exit_code == 0, done.stderr or done.exception
    return json.loads((tmp_path / "o").read_text()), done.stdout


@pytest.mark.long
def test_the_options_of_the_embedded_default(tmp_path):
    found, table = bench(tmp_path, "edit.steps=40", "edit.preserve=false")
    exact, bf16, fp8, nf4, first, taylor, compiled = found["options"].values()
    assert exact["mean"] == 0 and exact["psnr"] is None
    assert 0 < compiled["mean"] < 1e-4 < bf16["mean"] < nf4["mean"] < 0.1
    assert 0.51 * exact["gib_of_weights"] > bf16["gib_of_weights"] > max(o["gib_of_weights"] for o in (fp8, nf4))
    for cached in (first, taylor):
        assert cached["gib_of_weights"] == exact["gib_of_weights"] and 0 < cached["mean"] < 0.05
    assert [row["what"] for row in found["rows"]] == list(found["options"])
    assert "| taylor cache | 0.04" in table and f"| {taylor['mean']:.2e} | {taylor['psnr']:.1f} |" in table


def test_what_a_model_cannot_do(tmp_path):
    found, table = bench(tmp_path, "model.diffusion=null")
    assert {name for name, of in found["options"].items() if "error" in of} == {
        "first_block cache",
        "taylor cache",
        "compiled",
    }
    assert "| compiled | edit.compile: model.diffusion is null | | |" in table
