"""Aspect-ratio buckets: a step has one size, every record is used, and non-square pictures train like square ones."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from reasonbrain.errors import UserError
from reasonbrain.train.batches import Batches
from reasonbrain.train.buckets import Buckets
from reasonbrain.train.feature_cache import FeatureCache
from reasonbrain.train.run import train

SHAPES = [(96, 64), (64, 96), (64, 64), (130, 70), (64, 96), (120, 80), (50, 50), (64, 80)]
CUT = [(80, 48), (48, 80), (64, 64), (80, 40), (48, 80), (80, 48), (64, 64), (56, 72)]  # at 64 pixels and multiple 8
RUN = ["train.batch_size=4", "train.micro_batch=2", "train.log_every=1", "train.save_every=20"]


def write_manifest(folder):
    """Writes records of SHAPES whose edit recolours the picture."""
    rows = []
    for i, size in enumerate(SHAPES):
        for end in ("src", "tgt"):
            Image.new("RGB", size, (25 * i, 90, 30 if end == "src" else 200)).save(folder / f"{i}_{end}.png")
        paths = {"src_image": f"{i}_src.png", "tgt_image": f"{i}_tgt.png"}
        rows.append({"id": i, **paths, "instruction": "What if the red ball fell?", "objects": ["ball"]})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["data.name=manifest", f"data.path={folder / 'train.jsonl'}"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("mixed"))


def tensors(run):
    return load_file(next((run / "checkpoints" / "step-00000020").rglob("*.safetensors")))


def test_one_size_draws_as_before():
    """So that runs on square pictures resume unchanged."""
    rng, plain = np.random.default_rng([3, 5]), np.random.default_rng([3, 5])
    assert Buckets([(64, 64)] * 50).draw(rng, 16) == plain.integers(0, 50, 16).tolist()
    assert rng.integers(0, 1 << 32) == plain.integers(0, 1 << 32)


def test_a_draw_has_one_size_and_all_records_are_used():
    sizes = [(64, 64)] * 5 + [(48, 80)] * 2 + [(80, 48)] * 12 + [(40, 80)]
    buckets = Buckets(sizes)
    taken, drawn = Counter(), Counter()
    for step in range(4000):
        numbers = buckets.draw(np.random.default_rng([0, step]), 8)
        assert len(numbers) == 8 and len({sizes[n] for n in numbers}) == 1
        taken.update(numbers)
        drawn[sizes[numbers[0]]] += 1
    for size, count in Counter(sizes).items():  # four standard deviations
        assert abs(drawn[size] / 4000 - count / 20) < 4 * (count / 20 * (1 - count / 20) / 4000) ** 0.5
    assert all(abs(taken[n] / 1600 - 1) < 0.35 for n in range(20))


def test_a_bad_record_is_replaced_by_the_next_of_its_size():
    buckets = Buckets([(64, 64), (48, 80), (64, 64), (80, 48), (48, 80), (64, 64)])
    assert list(buckets.instead(2)) == [2, 5, 0, 3, 4, 1]  # its own, then bucket after bucket
    assert list(buckets.instead(4)) == [4, 1, 5, 0, 2, 3]
    assert list(Buckets([(8, 8)] * 4).instead(2)) == [2, 3, 0, 1]


def test_batches_hold_one_bucket(settings, model, manifest):
    batches, seen = Batches(settings(*RUN, *manifest), model), Counter()
    for step in range(12):
        shapes = set()
        for part in range(batches.parts):
            inputs, source, target, _ = batches(step, part)
            h, w = inputs.images.shape[-2:]
            assert inputs.regions.shape[-2:] == (h, w)
            assert source.shape == target.shape == (2, 4, h // 4, w // 4)
            assert all(CUT[n] == (w, h) for n in batches.rows(step, part)[0])
            shapes.add((w, h))
        assert len(shapes) == 1
        seen.update(shapes)
    assert len(seen) > 2


def test_a_bad_record_is_replaced_within_its_size(settings, model, tmp_path):
    """Truncated after their headers: one of two records of 80x48, and both squares."""
    manifest = write_manifest(tmp_path)
    for i in (0, 2, 6):
        picture = (tmp_path / f"{i}_tgt.png").read_bytes()
        (tmp_path / f"{i}_tgt.png").write_bytes(picture[:60])
    features = FeatureCache(settings("data.skip_bad=true", *manifest), model)
    assert features[0].id == "5"
    assert {CUT[int(features[i].id)] for i in (2, 6)} == {(80, 40)}  # together into the next bucket
    assert features.bad == {0, 2, 6}


def test_two_processes_take_the_rows_of_one(settings, model, manifest, monkeypatch):
    whole = Batches(settings("train.batch_size=8", *manifest), model)
    for rank in (0, 1):
        monkeypatch.setattr("reasonbrain.train.distributed.processes.rank", lambda rank=rank: rank)
        monkeypatch.setattr("reasonbrain.train.distributed.processes.world", lambda: 2)
        share = Batches(settings("train.batch_size=8", "train.micro_batch=2", *manifest), model)
        mine = [[list(share.rows(step, part)) for part in (0, 1)] for step in range(5)]
        monkeypatch.undo()
        for step in range(5):
            numbers, seeds = whole.rows(step, 0)
            assert mine[step][0][0] + mine[step][1][0] == numbers[rank::2]
            assert mine[step][0][1] + mine[step][1][1] == seeds[rank::2]


def test_mixed_shapes_train_and_resume_bit_identically(settings, manifest, tmp_path):
    """All gradients are finite, the loss falls, and an interrupted run ends like an uninterrupted one."""
    cfg = [*RUN, *manifest, "train.warmup=2", "train.final_lr=1", "train.lr=3e-3", "train.draws=4"]
    train(settings(*cfg, "train.steps=20"), tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0] * 20 and all(np.isfinite(line["norm"]) for line in lines)
    for name in ("lm", "dm"):
        found = [line[name] for line in lines]
        assert np.mean(found[-6:]) < 0.9 * np.mean(found[:6]), (name, found)
    for stop in (9, 20):
        train(settings(*cfg, f"train.steps={stop}"), tmp_path / "stopped")
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_precomputed_features_need_no_pictures(settings, model, manifest, tmp_path):
    """Batches equal those of a run without features. The manifest is in a folder without pictures."""
    FeatureCache(settings(*manifest), model).write(tmp_path / "f")
    copy = tmp_path / "train.jsonl"
    copy.write_bytes(Path(manifest[1].removeprefix("data.path=")).read_bytes())
    one = Batches(settings(*RUN, *manifest), model)
    other = Batches(settings(*RUN, manifest[0], f"data.path={copy}", f"data.features={tmp_path / 'f'}"), model)
    for step in range(6):
        assert one.rows(step, 1) == other.rows(step, 1)
        assert torch.equal(one(step)[0].images, other(step)[0].images) and torch.equal(one(step)[1], other(step)[1])
    (tmp_path / "f" / "sizes.json").unlink()
    with pytest.raises(UserError, match="has no sizes.json"):
        FeatureCache(settings(manifest[0], f"data.path={copy}", f"data.features={tmp_path / 'f'}"), model)
