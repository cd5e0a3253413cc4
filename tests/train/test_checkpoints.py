"""Checkpoints: complete or absent, verified, and only the last few are kept."""

import os

import pytest
import torch

from reasonbrain.errors import UserError
from reasonbrain.train import checkpoints


def write(run, step, keep=2, processes=2):
    """Writes a checkpoint of ``processes`` shards."""
    new = checkpoints.folder_of(run, step).with_suffix(".new")
    for i in range(processes):
        checkpoints.shard({f"param/w{i}": torch.full((3,), float(step))}, new, i, processes)
    checkpoints.finish(run, step, new, keep)


def test_all_shards_are_read(tmp_path):
    write(tmp_path, 5)
    folder = checkpoints.last(tmp_path)
    assert checkpoints.step_of(folder) == 5
    found = sorted((what, name, value.tolist()) for what, name, value in checkpoints.read(folder))
    assert found == [("param", "w0", [5.0] * 3), ("param", "w1", [5.0] * 3)]


def test_the_oldest_are_removed(tmp_path):
    for step in (1, 2, 10):
        write(tmp_path, step)
    assert [checkpoints.step_of(f) for f in checkpoints.complete(tmp_path)] == [2, 10]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_an_incomplete_one_is_ignored(tmp_path):
    write(tmp_path, 1)
    checkpoints.shard({"param/w": torch.ones(1)}, checkpoints.folder_of(tmp_path, 2).with_suffix(".new"), 0, 2)
    (tmp_path / "checkpoints" / "step-00000000.old").mkdir()
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 1
    checkpoints.clean(tmp_path)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def cut(folder):
    path = folder / "shard-0-of-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    path = folder / "shard-0-of-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (cut, "shard-0-of-2.safetensors has changed"),
        (flip, "shard-0-of-2.safetensors has changed"),
        (lambda f: (f / "shard-1-of-2.safetensors").unlink(), "shard-1-of-2.safetensors is missing"),
        (lambda f: (f / "done.json").write_text("{"), "done.json is truncated"),
    ],
)
def test_a_corrupt_one_is_skipped(tmp_path, caplog, harm, named):
    write(tmp_path, 1)
    write(tmp_path, 2)
    harm(checkpoints.folder_of(tmp_path, 2))
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 1 and named in caplog.text
    harm(checkpoints.folder_of(tmp_path, 1))
    with pytest.raises(UserError, match=f"every checkpoint .* is broken; the newest: {named}"):
        checkpoints.last(tmp_path)


def test_a_step_can_be_written_again(tmp_path):
    """After the run fell back to the one before a corrupt checkpoint."""
    write(tmp_path, 2)
    cut(checkpoints.folder_of(tmp_path, 2))
    write(tmp_path, 2)
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 2


def test_a_corrupt_one_does_not_take_the_place_of_an_intact_one(tmp_path):
    """A run that resumed before a corrupt checkpoint, with fewer to keep and more often: each is the newest so far."""
    for step in (1, 2, 4):
        write(tmp_path, step, keep=3)
    cut(checkpoints.folder_of(tmp_path, 4))
    write(tmp_path, 3, keep=1)
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 3
    assert checkpoints.complete(tmp_path) == [checkpoints.folder_of(tmp_path, step) for step in (3, 4)]
    for step in (4, 5):
        write(tmp_path, step, keep=1)
        assert checkpoints.complete(tmp_path) == [checkpoints.last(tmp_path)] == [checkpoints.folder_of(tmp_path, step)]


def test_one_is_on_the_disk_before_the_older_one_is_removed(tmp_path, monkeypatch):
    """A power failure leaves at least one of them whole."""
    synced = {}
    monkeypatch.setattr("os.fsync", lambda f: synced.update({os.readlink(f"/proc/self/fd/{f}"): there(1)}))

    def there(step):
        return checkpoints.folder_of(tmp_path, step).exists()

    write(tmp_path, 1, keep=1)
    synced.clear()
    write(tmp_path, 2, keep=1)
    new = checkpoints.folder_of(tmp_path, 2).with_suffix(".new")
    assert synced == {str(new / path.name): True for path in checkpoints.folder_of(tmp_path, 2).iterdir()}
    assert len(synced) == 3 and not there(1)


def test_no_checkpoint_yet(tmp_path):
    assert checkpoints.last(tmp_path) is None and checkpoints.complete(tmp_path) == []


def test_shards_have_about_the_same_size():
    """Sizes like a transformer's: large and small tensors in turn, which "every second one" would separate."""
    sizes = [9_000_000, 3_000] * 50 + [40_000_000, 10, 1]
    found = checkpoints.owners(sizes, 8)
    shards = [sum(size for size, owner in zip(sizes, found, strict=True) if owner == i) for i in range(8)]
    assert max(shards) < 1.1 * sum(sizes) / 8
    assert checkpoints.owners(sizes, 1) == [0] * len(sizes) and checkpoints.owners([], 2) == []
