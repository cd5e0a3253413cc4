"""A checkpoint in a repository of the hub: by name and revision, from the cache, and what can be wrong with it."""

import json
import os
import subprocess
import sys

import pytest
from conftest import DRIVER
from PIL import Image
from server import Hub

from reasonbrain.checkpoint import save_model

PYTHON = """
from reasonbrain import ReasonBrainPipeline
from reasonbrain.errors import UserError
where = {"revision": "v1", "cache_dir": "elsewhere"}
pipe = ReasonBrainPipeline.from_pretrained("someone/melter", token=False, **where)
pipe = ReasonBrainPipeline.from_pretrained("someone/melter", local_files_only=True, **where)
try:
    ReasonBrainPipeline.from_pretrained("model", revision="v1")
except UserError as e:
    print(pipe.settings.edit.steps, e)
"""


@pytest.mark.long
def test_a_checkpoint_of_the_hub(model, settings, tmp_path):
    save_model(model, settings("edit.steps=2"), tmp_path / "model")
    (tmp_path / "model" / "evil.bin").write_bytes(b"a pickle")
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "in.png")
    edit = ["edit", "in.png", "melt it", "-o"]
    commands = [
        [*edit, "plain.png", "--checkpoint", "model"],
        [*edit, "hub.png", "--checkpoint", "someone/melter"],
        [*edit, "at.png", "--checkpoint", "someone/melter@v1"],
        [*edit, "x.png", "--checkpoint", "someone/melter@v9"],
        [*edit, "x.png", "--checkpoint", "someone/else"],
    ]

    def ran(hub, offline=False):
        env = os.environ | hub.environment(tmp_path / "home", offline) | {"OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", DRIVER, json.dumps(commands)]
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
        return [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("RAN ")], env

    with Hub({"someone/melter": tmp_path / "model"}) as hub:
        (plain, whole, at, revision, other), env = ran(hub)
        assert [code for code, *_ in (plain, whole, at, revision, other)] == [0, 0, 0, 2, 2], (
            whole,
            at,
            revision,
            other,
        )
        pixels = [Image.open(tmp_path / f"{name}.png").tobytes() for name in ("plain", "hub", "at")]
        assert pixels[0] == pixels[1] == pixels[2]
        said = "checkpoint 'someone/{}' is no folder, and as a repository of the hub: {}".format
        assert said("melter@v9", "it has no such revision") in revision[1]
        assert said("else", "there is no such repository, or it is private") in other[1]
        assert not [path for path in hub.requests if path.endswith("evil.bin")]
        done = subprocess.run([sys.executable, "-c", PYTHON], env=env, cwd=tmp_path, capture_output=True, text=True)
        said = "2 revision: 'model' is no repository of the hub, so it has no revision 'v1'"
        assert done.stdout.strip() == said, done.stderr[-2000:]
    (plain, whole, at, revision, other), _ = ran(hub, offline=True)
    assert [code for code, *_ in (plain, whole, at, revision, other)] == [0, 0, 0, 2, 2]
    assert "not complete in the cache, and HF_HUB_OFFLINE is set" in other[1]


def test_a_mistyped_path_is_no_repository(tmp_path, monkeypatch):
    from reasonbrain.utils.hub import is_repository

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/mine", "./runs", "runs", "a/b/c", "/tmp/x", "tiny", "some one/x"):
        assert not is_repository(name), name
    assert is_repository("someone/melter") and is_repository("someone/melter@refs/pr/1")
