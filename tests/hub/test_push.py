"""A checkpoint is uploaded, with its model card, and edits from there; what the hub refuses is one line."""

import json
import os
import subprocess
import sys

import pytest
from conftest import DRIVER
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from PIL import Image
from server import Hub
from uploads import TOKEN

from reasonbrain.checkpoint import save_model

PYTHON = """
from reasonbrain import ReasonBrainPipeline
from reasonbrain.errors import UserError
pipe = ReasonBrainPipeline.from_pretrained("model")
print(pipe.push_to_hub("someone/again", commit_message="by hand"))
pipe.save_pretrained("saved", push_to_hub=True, repo_id="someone/saved", max_shard_size="100KB")
for wrong in ({"repo_id": "saved"}, {"branch": "x"}):
    try:
        pipe.save_pretrained("saved", push_to_hub=True, **wrong)
    except UserError as e:
        print(e)
"""


def report(folder):
    folder.mkdir()
    edits = {"n": 40, "mean": 0.91234, "low": 0.8, "high": 0.97}
    score = {"higher_is_better": True, "systems": {"edits": edits}}
    tables = [{"group": "all", "scores": {"outcome": score}}]
    (folder / "report.json").write_text(json.dumps({"benchmark": "mini", "tables": tables}))


@pytest.mark.long
def test_a_checkpoint_is_uploaded_and_edits_from_the_hub(model, settings, tmp_path):
    cfg = settings("edit.steps=2", "data.path=/home/someone/secret/train.jsonl")
    save_model(model, cfg, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (tmp_path / "model" / "cme" / "optimizer.bin").write_bytes(b"large")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["settings"]["model"]["mllm"] |= {
        "answers": str(tmp_path),
        "url": "http://me:open-sesame@host/v1",
        "system": "/no_think",
    }
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "someone").mkdir()  # a folder of the repository's owner does not matter
    report(tmp_path / "report")
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "in.png")
    edit = ["edit", "in.png", "melt it", "-o"]
    push = ["push", "model", "someone/melter"]

    def ran(hub, commands, token=TOKEN):
        env = os.environ | hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1", "HF_TOKEN": token}
        words = [sys.executable, "-c", DRIVER, json.dumps(commands)]
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
        found = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("RAN ")]
        assert len(found) == len(commands), done.stderr[-3000:]
        return found, env

    with Hub({}, tmp_path / "uploads") as hub:
        (refused,), _ = ran(hub, [push], token="hf_of_nobody")
        assert refused[0] == 2 and "'model' was not uploaded to 'someone/melter': you may not write there" in refused[1]
        assert not hub.repositories
        (tmp_path / "someone").rmdir()
        commands = [
            [*push, "--private", "--report", "report"],
            [*edit, "plain.png", "--checkpoint", "model"],
            [*edit, "hub.png", "--checkpoint", "someone/melter"],
            [*push, "-m", "again", "--pr"],
            ["push", "model", "melter"],
            [*push, "--report", "model"],
        ]
        found, env = ran(hub, commands)
        assert [code for code, *_ in found] == [0, 0, 0, 0, 2, 2], found
        assert "repository 'melter' is not of the form ORG/NAME" in found[4][1]
        assert "report 'model': there is no file" in found[5][1]
        assert hub.visibility == {"someone/melter": "private"} and len(hub.messages) == 1
        plain, edited = (Image.open(tmp_path / f"{name}.png").tobytes() for name in ("plain", "hub"))
        assert plain == edited

        there = tmp_path / "uploads" / "someone" / "melter"
        files = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
        here = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.*")}
        assert files == here - {"notes.txt", "cme/optimizer.bin"} | {"README.md"}
        assert OmegaConf.load(there / "config.yaml").data.path == "train.jsonl"
        sent = json.loads((there / "model_index.json").read_text())["settings"]["model"]["mllm"]
        assert sent["answers"] == tmp_path.name and sent["system"] == "/no_think"
        assert sent["url"] == "http://***@host/v1"
        assert not [f for f in files if f.endswith((".json", ".yaml")) and str(tmp_path) in (there / f).read_text()]
        card = ModelCard.load(there / "README.md")
        assert (card.data.library_name, card.data.pipeline_tag) == ("reasonbrain", "image-to-image")
        assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("outcome", 0.9123)]
        assert "| mini | outcome (higher is better) | 40 | 0.9123 | 0.8 to 0.97 |" in card.text
        assert "--checkpoint someone/melter" in card.text and "/home" not in card.text

        # a new commit removes weights that the checkpoint no longer has, and keeps other files of the repository
        (there / "cme" / "trained.safetensors").write_bytes(b"")
        (there / "panel.png").write_bytes(b"")
        (tmp_path / "model" / "README.md").write_text("my own card")
        assert ran(hub, [push])[0][0][0] == 0
        assert not (there / "cme" / "trained.safetensors").exists() and (there / "panel.png").exists()
        assert (there / "README.md").read_text() == "my own card"

        done = subprocess.run([sys.executable, "-c", PYTHON], env=env, cwd=tmp_path, capture_output=True, text=True)
        url, bare, unknown = done.stdout.strip().splitlines()
        assert url.endswith(f"/someone/again/commit/{'0' * 40}") and hub.messages[-2] == "by hand"
        assert bare == "repository 'saved' is not of the form ORG/NAME"
        assert unknown.startswith("argument 'branch' is not one of repo_id")
        assert (tmp_path / "uploads/someone/saved/mllm/model.safetensors.index.json").is_file()
