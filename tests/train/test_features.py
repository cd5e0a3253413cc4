"""Features: computed once, on disk the same to the bit, never those of other data or other models."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from reasonbrain import cli
from reasonbrain.errors import UserError
from reasonbrain.train import features as module
from reasonbrain.train.features import Features
from reasonbrain.train.train import train

QUICK = ["train.batch_size=4", "train.steps=4", "train.log_every=1", "train.save_every=4"]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_that_reads_them_is_the_same_to_the_bit(settings, overrides, model, tmp_path, monkeypatch):
    """As the command writes them, 70 records in two files."""
    written = CliRunner().invoke(cli.main, ["data", "cache", "-o", str(tmp_path / "f"), *overrides, "data.count=70"])
    assert written.exit_code == 0 and written.stdout == f"{tmp_path / 'f'}\n"
    train(settings(*QUICK, "data.count=70"), tmp_path / "without")
    monkeypatch.setattr(module, "compute", lambda *_: pytest.fail("computed again"))
    train(settings(*QUICK, "data.count=70", f"data.features={tmp_path / 'f'}"), tmp_path / "with")
    assert losses(tmp_path / "with") == losses(tmp_path / "without") and len(losses(tmp_path / "with")) == 4
    one, other = (next((tmp_path / run / "checkpoints").rglob("*.safetensors")) for run in ("with", "without"))
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_writing_goes_on_where_it_stopped(settings, model, tmp_path):
    features = Features(settings("data.count=130"), model)
    features.write(tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    files = ["000000.safetensors", "000001.safetensors", "000002.safetensors", "key.json", "sizes.json"]
    assert sorted(before) == files
    (tmp_path / "000001.safetensors").unlink()
    with pytest.raises(UserError, match="holds 2 of 3 files; finish it: reasonbrain data cache -o"):
        Features(settings("data.count=130", f"data.features={tmp_path}"), model)
    kept = (tmp_path / "000000.safetensors").stat().st_mtime_ns
    features.write(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    assert (tmp_path / "000000.safetensors").stat().st_mtime_ns == kept


def test_others_features_are_refused(settings, model, build, tmp_path):
    Features(settings("data.count=2"), model).write(tmp_path)
    folder = f"data.features={tmp_path}"
    assert Features(settings("data.count=2", folder), model)[0].id == "train-0-000000"
    for change, named in (("data.seed=1", "data"), ("model.frce.region.max_regions=5", "region")):
        with pytest.raises(UserError, match=f"was made with another {named}"):
            Features(settings("data.count=2", folder, change), model)
    other = build()
    other.slot("diffusion").vae.decoder.conv_in.bias.data += 1
    with pytest.raises(UserError, match="was made with another weights"):
        Features(settings("data.count=2", folder), other)
    with pytest.raises(UserError, match="is not a folder that `reasonbrain data cache` made"):
        Features(settings("data.features=nowhere"), model)


def test_a_bad_record_stays_skipped(settings, model, tmp_path):
    rows = []
    for i in range(3):
        for end in ("src", "tgt"):
            Image.new("RGB", (64, 64), (60 * i, 90, 200)).save(tmp_path / f"{i}_{end}.png")
        rows.append({"id": f"r{i}", "src_image": f"{i}_src.png", "tgt_image": f"{i}_tgt.png", "instruction": "go"})
    (tmp_path / "1_src.png").write_text("no picture")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = ["data.name=manifest", f"data.path={tmp_path / 'train.jsonl'}"]
    with pytest.raises(UserError, match="record 'r1'"):
        Features(settings(*manifest), model).write(tmp_path / "f")
    Features(settings(*manifest, "data.skip_bad=true"), model).write(tmp_path / "f")
    found = Features(settings(*manifest, f"data.features={tmp_path / 'f'}"), model)
    assert [found[i].id for i in range(3)] == ["r0", "r2", "r2"]


def test_memory_is_bounded(settings, model, monkeypatch):
    features = Features(settings("data.count=10"), model)
    monkeypatch.setattr(module, "MEMORY", 3 * features[0].bytes)
    assert [features[i].id for i in range(10)] == [f"train-0-{i:06d}" for i in range(10)]
    assert list(features.kept) == [7, 8, 9] and features.held == 3 * features[9].bytes
