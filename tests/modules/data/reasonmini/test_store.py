"""ReasonMini on disk: the files equal the generated records and are reproducible; invalid folders are refused."""

import json
import resource

import numpy as np
import pytest
from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini.store import FIELDS, read_manifest, write_split
from reasonbrain.modules.data.reasonmini.versions import WORLDS


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("version", WORLDS)
def test_written_files_equal_the_records(tmp_path, version):
    manifest = write_split("test", 6, 7, tmp_path / "new" / "folder", version=version)
    folder = tmp_path / "new" / "folder"
    assert manifest == folder / "manifest.jsonl"
    records = list(read_manifest(folder))
    made = [WORLDS[version].make("test", i, 7) for i in range(6)]
    assert records == [json.loads(json.dumps(s.record())) for s in made]
    assert set(records[0]) - {"version"} == set(FIELDS)
    assert made[0].source.size == (WORLDS[version].size,) * 2
    for record, sample in zip(records, made, strict=True):
        assert np.array_equal(Image.open(folder / record["src_image"]), sample.source)
        assert np.array_equal(Image.open(folder / record["tgt_image"]), sample.target)
        mask = Image.open(folder / record["mask"])
        assert mask.mode == "L"
        assert np.array_equal(np.asarray(mask), np.where(sample.mask, 255, 0))
    assert len(contents(folder)) == 3 * 6 + 1, "a file too many"


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_split("paraphrase", 4, seed, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_size(tmp_path):
    write_split("val", 1, 0, tmp_path, size=96)
    assert {Image.open(p).size for p in tmp_path.rglob("*.png")} == {(96, 96)}


def test_refuses_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_split("test", 2, 0, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_refuses_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write to folder .*file"):
            write_split("test", 2, 0, folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "tests"}, "split 'tests' is not one of train, val, test, paraphrase, compositional"),
        ({"count": 0}, "count is 0, but must be 1 or more"),
        ({"seed": -1}, "seed is -1, but must be 0 or more"),
        ({"size": 8}, "size is 8, but must be 16 or more"),
    ],
)
def test_refuses_bad_arguments_and_writes_nothing(tmp_path, change, message):
    folder = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        write_split(**{"split": "test", "count": 2, "seed": 0, "folder": folder, **change})
    assert not folder.exists()


@pytest.mark.parametrize(
    "bad, message",
    [
        (b"{", "line 2 is not JSON"),
        (b"", "line 2 is not JSON"),
        (b'"\xff"', "line 2 is not JSON"),
        (b"[1]", "line 2 is not a JSON object"),
        (b'{"id": "x"}', "line 2 .*missing or wrong category, src_image"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, bad, message):
    write_split("test", 3, 0, tmp_path)
    path = tmp_path / "manifest.jsonl"
    first, _, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((first, bad, third, b"")))
    records = read_manifest(tmp_path)
    assert next(records) == json.loads(first)
    with pytest.raises(UserError, match=message) as error:
        next(records)
    assert "manifest.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_a_field_of_the_wrong_type_is_named(tmp_path):
    write_split("test", 1, 0, tmp_path)
    record = next(read_manifest(tmp_path))
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**record, "objects": "flame", "params": None}))
    with pytest.raises(UserError, match="line 1 .*missing or wrong objects, params"):
        list(read_manifest(tmp_path))


def test_no_manifest(tmp_path):
    with pytest.raises(UserError, match="cannot read .*manifest.jsonl"):
        list(read_manifest(tmp_path / "nowhere"))


def test_a_full_disk_is_a_one_line_error_and_leaves_an_empty_folder(tmp_path):
    """A real failing write: this process may make no file of more than 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UserError, match="cannot write to folder .*: File too large"):
            write_split("test", 2, 0, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    write_split("test", 1, 0, tmp_path)


@pytest.mark.parametrize("field", ["id", "src_image", "mask"])
@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd"])
def test_nothing_outside_the_folder_is_named(field, name, tmp_path):
    path = write_split("test", 1, 0, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: name}))
    with pytest.raises(UserError, match=f"'{name}' leads outside .* in line 1"):
        list(read_manifest(tmp_path))
