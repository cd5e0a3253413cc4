"""Cropping: the bucket sizes, and the bucket of a picture."""

import json

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from reasonbrain.config.schema import DataConfig
from reasonbrain.data.crop import bucket_sizes, edit_size
from reasonbrain.data.opening import open_records
from reasonbrain.errors import UserError


@pytest.mark.parametrize(("size", "multiple"), [(1024, 16), (768, 16), (512, 16), (336, 16), (64, 8), (16, 8), (8, 8)])
def test_bucket_sizes_keep_to_the_budget(size, multiple):
    sizes = bucket_sizes(size, multiple)
    assert sizes[0] == (size, size) and len(set(sizes)) == len(sizes) and {(h, w) for w, h in sizes} == set(sizes)
    assert all(w % multiple == h % multiple == 0 and w * h <= size * size and 1 / 2 <= w / h <= 2 for w, h in sizes)
    if size >= 16 * multiple:
        assert min(w * h for w, h in sizes) > 0.75 * size * size


def test_the_usual_ratios_have_a_bucket():
    sizes = bucket_sizes(1024, 16)
    assert len(sizes) == 11 and {(832, 1248), (1248, 832), (1360, 768), (1408, 704)} <= set(sizes)
    with pytest.raises(UserError, match="data.size: 1000 is not a multiple of 16"):
        bucket_sizes(1000, 16)


@pytest.mark.parametrize(("size", "multiple"), [(1024, 16), (64, 8)])
def test_a_picture_is_edited_at_the_size_at_which_it_is_trained(tmp_path, size, multiple):
    """Larger or smaller than that, in any aspect ratio from 1:2 to 2:1."""
    sides = [(2048, 1152), (512, 512), (40, 30), (96, 128), (100, 200), (333, 334), (64, 64), (1, 1)]
    write_manifest(tmp_path, [(Image.new("RGB", s), Image.new("RGB", s)) for s in sides])
    records = open_records(DataConfig(name="manifest", path=str(tmp_path / "train.jsonl"), size=size), multiple)
    assert [edit_size(s, size, multiple) for s in sides] == records.sizes
    if size == 1024:
        assert records.sizes[:2] == [(1360, 768), (1024, 1024)]


def test_a_picture_longer_than_all_buckets_keeps_its_ratio_and_the_budget():
    assert edit_size((3000, 1000), 1024, 16) == (1760, 592)
    assert edit_size((1000, 3000), 1024, 16) == (592, 1760)
    assert edit_size((8000, 1), 1024, 16) == (65536, 16)
    assert edit_size((20, 31), None, 8) == (24, 32) and edit_size((20, 30), 70, 8) == edit_size((20, 30), 64, 8)


def write_manifest(folder, pairs):
    """The records of pairs (source, target), at 64 pixels and multiple 8."""
    rows = []
    for i, (source, target) in enumerate(pairs):
        source.save(folder / f"{i}_src.png")
        target.save(folder / f"{i}_tgt.png")
        paths = {"src_image": f"{i}_src.png", "tgt_image": f"{i}_tgt.png"}
        rows.append({"id": f"r{i}", **paths, "instruction": "go"})
    path = folder / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read(path)


def read(path):
    return open_records(DataConfig(name="manifest", path=str(path), size=64), 8)


def disc(width, height):
    """A white disc in the centre, half as wide as the short side."""
    picture, r = Image.new("RGB", (width, height)), min(width, height) / 4
    ImageDraw.Draw(picture).ellipse([width / 2 - r, height / 2 - r, width / 2 + r, height / 2 + r], "white")
    return picture


@pytest.mark.parametrize(("shape", "cut"), [((900, 600), (80, 48)), ((600, 900), (48, 80)), ((1000, 300), (80, 40))])
def test_pictures_are_cropped_and_not_distorted(tmp_path, shape, cut):
    """Source and target alike, with a target of twice the size."""
    record = write_manifest(tmp_path, [(disc(*shape), disc(2 * shape[0], 2 * shape[1]))])[0]
    found = []
    for picture in (record.source, record.target):
        assert picture.size == cut
        white = np.asarray(picture.convert("L")) / 255
        assert white.sum(0).max() == pytest.approx(white.sum(1).max(), abs=0.6)  # as high as wide
        assert np.allclose(white, white[::-1], atol=0.2) and np.allclose(white, white[:, ::-1], atol=0.2)
        found.append(white)
    assert np.abs(found[0] - found[1]).max() < 0.15
    scale = max(cut[0] / shape[0], cut[1] / shape[1])
    assert found[0].sum(0).max() == pytest.approx(min(shape) / 2 * scale, abs=1)


def test_exif_orientation_is_applied_before_cropping(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    records = write_manifest(tmp_path, [(Image.new("RGB", (90, 60)), Image.new("RGB", (60, 90)))])
    Image.new("RGB", (90, 60)).save(tmp_path / "0_src.png", exif=exif)
    assert records.sizes == [(48, 80)] and records[0].source.size == records[0].target.size == (48, 80)


def test_sizes_are_read_from_headers(tmp_path):
    """A truncated picture has a size; a file that is not a picture belongs to the next record's bucket."""
    shapes = [(90, 60), (60, 90), (64, 64), (60, 90)]
    write_manifest(tmp_path, [(Image.effect_noise(s, 50), Image.new("RGB", s)) for s in shapes])
    half = (tmp_path / "0_src.png").read_bytes()
    (tmp_path / "0_src.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "2_src.png").write_text("no picture")
    records = read(tmp_path / "train.jsonl")
    assert records.sizes == [(80, 48), (48, 80), (48, 80), (48, 80)]
    for bad in (0, 2):
        with pytest.raises(UserError, match=f"record 'r{bad}' .*{bad}_src.png"):
            records[bad]
    (tmp_path / "3_src.png").unlink()
    assert read(tmp_path / "train.jsonl").sizes == [(80, 48), (48, 80), (80, 48), (80, 48)]


def test_a_target_of_another_shape_is_an_error(tmp_path):
    shapes = [((90, 60), (60, 90)), ((1000, 667), (1024, 688))]  # the second is rounded to a multiple of 16
    records = write_manifest(tmp_path, [tuple(Image.new("RGB", s) for s in pair) for pair in shapes])
    with pytest.raises(UserError, match="record 'r0': the source is 90x60 and the target 60x90"):
        records[0]
    assert records[1].source.size == records[1].target.size == (80, 48)
