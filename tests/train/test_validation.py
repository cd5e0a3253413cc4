"""Validation: fixed records, noise and noise levels, without any effect on training."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import DataConfig, PartConfig
from reasonbrain.data.opening import guess, open_data
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini import make
from reasonbrain.train.engine import Engine
from reasonbrain.train.run import train
from reasonbrain.train.validation import DRAWS, PICTURES, RECORDS, SIDE, Validation, is_trained_on
from reasonbrain.utils.images import to_tensor

QUICK = ["data.count=8", "train.batch_size=4", "train.warmup=2", "train.log_every=1", "train.steps=4"]


def manifest(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"source": "a.png", "instruction": "go {path.stem}"}}\n')
    return str(path)


def test_validation_data_that_are_trained_on_are_recognised(tmp_path):
    one, other = manifest(tmp_path / "one" / "manifest.jsonl"), manifest(tmp_path / "other.jsonl")
    (tmp_path / "link.jsonl").symlink_to(one)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a_source.png").touch()

    def trained_on(validation, **training):
        data = DataConfig(validation=str(validation), **training)
        return is_trained_on(
            data, open_data(data), open_data(DataConfig(name=guess(str(validation)), path=str(validation)))
        )

    shutil.copy(one, tmp_path / "copy.jsonl")
    for held in (one, tmp_path / "link.jsonl", tmp_path / "one", tmp_path / "copy.jsonl"):
        part = [PartConfig(name="manifest", path=other), PartConfig(name="manifest", path=one)]
        assert trained_on(held, name="manifest", path=one) and trained_on(held, name="mixture", mixture=part), held
        assert not trained_on(held, name="manifest", path=other), held
    assert trained_on(tmp_path / "inner", name="folder", path=str(tmp_path))
    assert not trained_on(one, name="mini")


@pytest.fixture()
def validation(settings, model, tmp_path):
    cfg = settings(*QUICK)
    return Validation(cfg, model, Engine(model, cfg.train), tmp_path)


def test_the_loss_is_the_mean_over_the_validation_split(validation, model):
    torch.manual_seed(1)
    found = validation.losses()
    torch.manual_seed(2)
    assert validation.losses() == found and model.training
    expected = []
    model.eval()
    for number, record in enumerate(validation.records):
        batch = validation.inputs(record), record.source[None], record.target[None], [number]
        with torch.no_grad():
            expected.append(float(model(*batch, DRAWS)["dm"]))
    assert found["validation/dm"] == pytest.approx(np.mean(expected)) and len(expected) == min(RECORDS, 8)
    assert validation.records[3].id == make("val", 3).id


def test_pictures_are_source_edit_and_target(validation, tmp_path, wake, model):
    sheet = validation.edits(7)
    assert Image.open(tmp_path / "validation" / "step-00000007.png").size == sheet.size and model.training
    pixels = np.asarray(sheet).astype(float)
    flux, number, sample = model.slot("diffusion"), 1, make("val", 1)
    images = to_tensor([sample.source, sample.target])
    pipe = ReasonBrainPipeline.from_model(model, validation.cfg)
    words = sample.kind.phrasings[0].format(**sample.params)
    edit = pipe(sample.source, words, generator=torch.Generator().manual_seed(number), preserve=False)
    with torch.no_grad():
        known = flux.decode(flux.encode(images))
    shown = [known[0], to_tensor([edit.images[0]])[0], known[1]]
    top = 6 + number * (SIDE + 24) + 18
    for column, expected in enumerate(shown):
        left = 6 + column * (SIDE + 6)
        tile = pixels[top : top + SIDE, left : left + SIDE].reshape(64, 3, 64, 3, 3)[:, 1, :, 1]
        assert np.abs(tile - expected.permute(1, 2, 0).numpy() * 255).max() <= 1, column
    assert sheet.height > PICTURES * SIDE and sheet.width > 3 * SIDE


def test_records_are_prepared_outside_autocast(settings, model, tmp_path, monkeypatch):
    """The records of the losses and those of the pictures."""
    cfg = settings(*QUICK, "train.bf16=true")
    validation, make_inputs, seen = Validation(cfg, model, Engine(model, cfg.train), tmp_path), model.make_inputs, []
    monkeypatch.setattr(
        model, "make_inputs", lambda *a: seen.append(torch.is_autocast_enabled("cpu")) or make_inputs(*a)
    )
    validation.losses()
    validation.edits(1)
    assert seen == [False] * (len(validation.records) + PICTURES)


def test_validation_does_not_change_training(settings, tmp_path, caplog):
    lines = []
    for name, more in (("with", ["train.validate_every=2"]), ("without", ["data.validation=mine.jsonl"])):
        train(settings(*QUICK, *more), tmp_path / name)
        lines.append([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()])
    losses = [[line["loss"] for line in both if "loss" in line] for both in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert [line["step"] for line in lines[0] if "validation/dm" in line] == [2, 4]
    assert len(list((tmp_path / "with" / "validation").glob("*.png"))) == 2
    assert [m for m in caplog.messages if m.startswith("data.validation")] == [
        "data.validation is not used: train.validate_every is null"
    ]


def test_a_manifest_needs_its_own_validation_data():
    with pytest.raises(UserError, match="data.validation: train.validate_every needs data that is not trained on"):
        load_config("tiny", ["data.name=manifest", "data.path=x.jsonl", "train.validate_every=5"])
