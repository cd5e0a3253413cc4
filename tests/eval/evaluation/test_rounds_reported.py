"""A report compares the best edit after each round, and says what the rounds cost."""

import json

import numpy as np
from click.testing import CliRunner
from PIL import Image
from pipelines import save_editor
from thinker import SAID, Thinker

from reasonbrain.cli import main

SCORES = {"first": [(3, 9), (9, 9)], "second": [(9, 9)]}  # of the reviews: the first record needs two rounds


def test_a_report_compares_the_rounds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_editor("black-forest-labs/FLUX.2-klein-4B", tmp_path / "klein")
    rng = np.random.default_rng(0)
    lines = []
    for name in SCORES:
        for role in ("src", "tgt"):
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(f"{name}_{role}.png")
        pictures = {f"{role}_image": f"{name}_{role}.png" for role in ("src", "tgt")}
        lines.append(json.dumps({"id": name, "category": "", "instruction": f"the {name} gets hot"} | pictures))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    left = {name: list(scores) for name, scores in SCORES.items()}

    def answer(asked, pictures):
        name = next(name for name in SCORES if f"the {name} gets hot" in asked)
        if "The editor was told" not in asked:
            return json.dumps(SAID)
        follows, keeps = left[name].pop(0)
        return json.dumps(SAID | {"change": "Melt all of it", "follows": follows, "keeps": keeps})

    with Thinker(answer) as server:
        config = {
            "model": {
                "width": 8,
                "mllm": {"name": "endpoint", "url": server.url, "model": "thinker", "answers": "answers"},
                "diffusion": {"name": "editor", "pretrained": "klein", "pixels": 96 * 96, "precision": "float32"},
                "thinking": {},
            },
            "edit": {"steps": 1, "preserve": False, "rounds": 3},
        }
        (tmp_path / "model.yaml").write_text(json.dumps(config))
        command = ["eval", "--benchmark", "manifest", "--data", "train.jsonl", "--metric", "L1", "-o", "report"]

        def evaluate():
            done = CliRunner().invoke(main, [*command, "--checkpoint", "model.yaml"])
            assert done.exit_code == 0, done.stderr or done.exception
            return json.loads((tmp_path / "report" / "report.json").read_text())

        report = evaluate()
        assert evaluate() == report  # all is reused
        assert left == {"first": [], "second": []}
        (tmp_path / "report" / "edits" / "after-1" / "second.png").unlink()
        again = evaluate()
        assert again["records"] == report["records"] and not again["unreadable"]
    first, second = (row["scores"] for row in report["records"])
    assert list(first) == ["edits", "do nothing", "1 of 3 rounds", "2 of 3 rounds"]
    assert first["1 of 3 rounds"] != first["2 of 3 rounds"] == first["edits"]
    assert second["1 of 3 rounds"] == second["2 of 3 rounds"] == second["edits"]
    seconds = report["seconds"]
    assert seconds["1 of 3 rounds"] < seconds["2 of 3 rounds"] == seconds["3 of 3 rounds"]
    assert "mean seconds of an edit: " in (tmp_path / "report" / "report.md").read_text()
