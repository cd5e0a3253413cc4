"""InstructPix2Pix and its family with their own hub ids, against a hub whose models are small."""

import layouts
import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import EDITORS

TRAIN = ["data.size=64", "train.batch_size=2", "train.tracker=null", "train.bf16=false", "train.steps=2"]
EDIT = ["edit.size=64", "edit.steps=2"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    names = ("timbrooks/instruct-pix2pix",)
    torch.manual_seed(0)
    for name in names:
        EDITORS[name](root / name)
    return {name: root / name for name in names}


@pytest.mark.long
def test_instructpix2pix(hub, published, run, tmp_path):
    """Every command, then an edit offline. The tiny models are 32 wide."""
    hub.repositories = published
    data = layouts.pix2pix(tmp_path / "p2p")
    (tmp_path / "photos").mkdir()
    layouts.save(layouts.picture(1, (90, 60)), tmp_path / "photos" / "1.png")
    layouts.magicbrush(tmp_path / "mb")
    width = "model.width=32"
    config = ["--config", "instructpix2pix", width]
    edit = ["edit", "photos/1.png", "Melt it."]
    commands = [
        [*edit, *config, "-o", "published.png", *EDIT],
        ["init", "-o", "start", *config],
        ["plan", "instructpix2pix", "--gpus", "1", "--gpu-memory", "80"],
        ["train", "-o", "run", *config, f"data.path={data}", *TRAIN, "train.start=start"],
        ["train", "-o", "direct", *config, f"data.path={data}", *TRAIN],
        ["export", "direct", "-o", "adapters", "--adapters"],
        [*edit, "--checkpoint", "run", "-o", "trained.png", *EDIT],
        [*edit, "--checkpoint", "start", "-o", "started.png", *EDIT],
        ["batch", "photos", "--instruction", "Melt it.", "--checkpoint", "run", "-o", "out", *EDIT],
        ["eval", "--benchmark", "magicbrush", "--data", "mb", "--checkpoint", "run", "-o", "report", *EDIT]
        + ["--metric", "L1", "--limit", "1"],
    ]
    for words, (code, said, error) in zip(commands, run(commands), strict=True):
        assert code == 0, (words, said, error)
    edits = {name: np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("published", "started", "trained")}
    assert (edits["published"] == edits["started"]).all() and (edits["published"] != edits["trained"]).any()
    before = hub.requests.total()
    again = [*edit, *config, "-o", "again.png", *EDIT]
    ((code, said, error),) = run([again], offline=True)
    assert code == 0, (said, error)
    assert (
        hub.requests.total() == before and (np.asarray(Image.open(tmp_path / "again.png")) == edits["published"]).all()
    )
