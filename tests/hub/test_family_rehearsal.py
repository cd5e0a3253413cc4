"""InstructPix2Pix and its family with their own hub ids, against a hub whose models are small."""

import json

import layouts
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from pipelines import save_pix2pix
from published import lively, save_llama

TRAIN = ["data.size=64", "train.batch_size=2", "train.tracker=null", "train.bf16=false", "train.steps=2"]
EDIT = ["edit.size=64", "edit.steps=2"]


PIX2PIX, SD = "timbrooks/instruct-pix2pix", "stable-diffusion-v1-5/stable-diffusion-v1-5"
LLAVA, CLIP = "llava-hf/llava-1.5-7b-hf", "openai/clip-vit-large-patch14"
SMALL = {  # what belongs to the sizes of the tiny models: everything is 32 wide
    "mgie": ["model.connector.inputs=32", "model.connector.hidden=32"],
    "lgie": ["model.connector.inputs=32", "model.connector.hidden=32"],
    "mgie_fz": [],
    "mgie_ft": [],
    "smartedit": ["model.connector.inputs=32", "model.connector.heads=4", "model.cme.patches=32"]
    + ["model.cme.channels=32", "model.cme.heads=4", "model.encoders.layer=-2"],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory, folders):
    """The tiny hub, with a Stable Diffusion whose UNet has no inputs for the source, and a language model."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    pipe = save_pix2pix(root / PIX2PIX)
    pipe.unet = lively(UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 4}))
    pipe.save_pretrained(root / SD)
    save_llama(root / "huggyllama/llama-7b")
    return {name: root / name for name in (PIX2PIX, SD, "huggyllama/llama-7b")} | {n: folders[n] for n in (LLAVA, CLIP)}


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


@pytest.mark.long
@pytest.mark.parametrize("preset", SMALL)
def test_its_family(preset, hub, published, run, tmp_path):
    """Published weights, training, edits with a sentence of one's own, a batch; then an edit offline."""
    hub.repositories = published
    rows = [json.loads(line) for line in (tmp_path / "data/manifest.jsonl").read_text().splitlines()]
    rows = [row | {"sentence": f"ball {number} lies there"} for number, row in enumerate(rows)]
    (tmp_path / "data/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    layouts.save(layouts.picture(1, (90, 60)), tmp_path / "photos" / "1.png")
    config = ["--config", preset, "model.width=32", *SMALL[preset]]
    edit = ["edit", "photos/1.png", "Melt it."]
    source = ["--checkpoint", "run"]
    commands = []
    if preset == "mgie_fz":
        source = config
    else:
        train = [*config, "data.path=data/manifest.jsonl", *TRAIN]
        commands = [["init", "-o", "start", *config], ["train", "-o", "run", *train, "train.start=start"]]
        commands += [["train", "-o", "direct", *train], ["export", "direct", "-o", "part", "--adapters"]]
        if preset in ("lgie", "smartedit"):
            commands += [["plan", preset, "--gpus", "8", "--gpu-memory", "80"]]
        commands += [[*edit, "--checkpoint", "part", "-o", "part.png", *EDIT]]
    commands += [
        [*edit, *source, "-o", "out.png", *EDIT],
        ["batch", "photos", "--instruction", "Melt it.", *source, "-o", "batch", *EDIT],
    ]
    if preset != "smartedit":
        commands += [[*edit, *source, "-o", "own.png", "--reasoning", "the ball lies there", *EDIT]]
    for words, (code, said, error) in zip(commands, run(commands), strict=True):
        assert code == 0, (words, said, error)
    found = np.asarray(Image.open(tmp_path / "out.png"))
    if preset != "smartedit":
        own = Image.open(tmp_path / "own.png")
        assert own.text["reasoning"] == "the ball lies there" and (np.asarray(own) != found).any()
    before = hub.requests.total()
    again = [*edit, *(config if preset == "mgie_fz" else ["--checkpoint", "part"]), "-o", "again.png", *EDIT]
    ((code, said, error),) = run([again], offline=True)
    assert code == 0, (said, error)
    assert hub.requests.total() == before
