"""Every reader on a small data set in its public layout, and its errors."""

import json
import os
import tarfile
import zlib
from io import BytesIO
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import HOLE, cell, encoded, parquet, picture
from PIL import Image

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import DataConfig
from reasonbrain.data.opening import fingerprint, guess, identity, open_data, open_reader, open_records
from reasonbrain.data.reader import Reader, first, transparent, white
from reasonbrain.errors import UserError
from reasonbrain.registry import plugin, plugins

# reader, layout, ids of all records
DATA = [
    ("manifest", layouts.manifest, ["r0", "r1", "r2"]),
    ("folder", layouts.triples, ["heat-0", "heat-1", "heat-2"]),
    ("parquet", layouts.hub, ["0", "1", "2"]),
    ("webdataset", layouts.shards, [f"w{i}" for i in range(5)]),
    ("magicbrush", layouts.magicbrush, ["139306-1", "139306-2", "30-1"]),
    ("magicbrush", layouts.magicbrush_test, ["7-1", "7-2"]),
    ("emu_edit", layouts.emu_edit, ["17", "18"]),
    (
        "editworld",
        layouts.editworld,
        [f"{b}_img-group_0-sample{i}" for b in ("generated", "human_select") for i in (0, 1)],
    ),
    ("reasonedit", layouts.reasonedit, [f"{b}-00{i}" for b in ("1-Left-Right", "6-Reasoning") for i in (1, 2)]),
    ("instructpix2pix", layouts.pix2pix, ["0000000-12", "0000000-99", "0000001-5"]),
    ("instructpix2pix", layouts.pix2pix_hub, ["0"]),
    ("risebench", layouts.risebench, ["x_0", "x_1"]),
    ("kris", layouts.kris, ["abstract_reasoning-1", "viewpoint_change-4"]),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """``datasets`` takes its cache folder from here."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def close(image, wanted):
    """Whether two pictures are equal up to JPEG artefacts."""
    assert image.mode == "RGB" and image.size == wanted.size
    return np.abs(np.asarray(image, float) - np.asarray(wanted, float)).mean() < 8


@pytest.mark.parametrize(("name", "make", "ids"), DATA, ids=[f"{n}-{m.__name__}" for n, m, _ in DATA])
def test_a_layout_is_known_and_read_in_any_order(name, make, ids, tmp_path):
    path = make(tmp_path / "data")
    assert guess(path) == name and (guess(str(tmp_path / "data")) == name)
    reader = open_reader(name, path)
    assert len(reader) == len(ids) and [reader[i].id for i in range(len(ids))] == ids
    again = open_reader(name, path)
    assert [again[i].id for i in reversed(range(len(ids)))] == ids[::-1]
    for i in range(len(ids)):
        row, record = reader.raw(i), again[i]
        assert row.id == record.id and record.instructions == row.instructions and len(row.instructions[0]) > 3
        assert record.source.size == (48, 32) and record.source.tobytes() == reader[i].source.tobytes()


def test_every_reader_is_tested():
    names = [info.name for info in plugins("data")]
    assert {name for name, _, _ in DATA} == {name for name in names if issubclass(plugin("data", name), Reader)}


def test_a_manifests_fields(tmp_path):
    record = open_reader("manifest", layouts.manifest(tmp_path))[1]
    assert record.instructions == ["What if number 1 fell?"] and record.objects == ["ball"]
    assert record.category == "causal" and record.captions == ("", "fallen 1") and record.mask is None
    assert close(record.source, picture(2)) and close(record.target, picture(3))


def test_of_several_names_of_a_field_the_first_that_holds_something_counts():
    """Merged tables have a column of each name, empty where the other one is used."""
    names = ("source", "source_img", "input_image")
    assert first({"input_image": "c", "source": "", "source_img": "b"}, names) == "b"
    assert first({"source": float("nan"), "source_img": None, "input_image": "c"}, names) == "c"
    assert first({"source": "", "source_img": None}, names) == "" and first({"other": "a"}, names) is None


def test_training_records_are_scaled(tmp_path):
    cfg = DataConfig(name="manifest", path=layouts.manifest(tmp_path), size=24)
    record = open_records(cfg, 1)[0]
    assert record.source.size == record.target.size == (28, 20)  # of 24 x 24 pixels, shaped 3:2
    assert open_data(cfg)[0].source.size == (48, 32)


def test_blank_lines_and_line_endings(tmp_path):
    path = Path(layouts.manifest(tmp_path))
    lines = path.read_text().splitlines()
    path.write_bytes(("\n\r\n" + lines[0] + "\r\n\n" + lines[1] + "\n\n" + lines[2]).encode())
    reader = open_reader("manifest", str(path))
    assert [reader[i].id for i in range(len(reader))] == ["r0", "r1", "r2"]
    path.write_text(lines[0] + "\n\n{broken}\n[1, 2]\n" + '{"src_image": "a.png"}\n')
    for index, said in (
        (1, "record 'line 3'.*not a record"),
        (2, "record 'line 4'.*not a record"),
        (3, "record 'line 5'.*no instruction"),
    ):
        with pytest.raises(UserError, match=said):
            open_reader("manifest", str(path)).raw(index)


def test_magicbrush_has_masks_and_consecutive_turns(tmp_path):
    reader = open_reader("magicbrush", layouts.magicbrush(tmp_path))
    first, second = reader[0], reader[1]
    assert first.target.tobytes() == second.source.tobytes() and second.instructions == ["turn 2 of 139306"]
    assert first.mask.mode == "L" and first.mask.tobytes() == layouts.mask().tobytes()
    session = open_reader("magicbrush", layouts.magicbrush_test(tmp_path / "test"))
    assert session[0].target.tobytes() == session[1].source.tobytes()
    assert session[1].mask.tobytes() == layouts.mask().tobytes() and session[1].instructions == ["second"]


def test_emu_edit_has_captions_and_no_target(tmp_path):
    record = open_reader("emu_edit", layouts.emu_edit(tmp_path))[1]
    assert record.target is None and record.captions == ("before 1", "after 1") and record.category == "style"
    assert record.notes == {"split": "test", "hash": "h1"} and close(record.source, picture(1))


def test_editworld_pictures_are_next_to_the_json_in_both_spellings(tmp_path):
    reader = open_reader("editworld", layouts.editworld(tmp_path))
    for record in (reader[1], reader[3]):
        assert record.instructions == ["leave it in the sun 1"]
        assert close(record.source, picture(2)) and close(record.target, picture(3))
    assert (reader[1].category, reader[3].category) == ("generated_img", "human_select_img")


def test_reasonedit_has_masks_and_the_object(tmp_path):
    reader = open_reader("reasonedit", layouts.reasonedit(tmp_path))
    record = reader[3]
    assert record.instructions == ["Remove the thing 2"] and record.notes == {"CLIP": "thing 2"}
    mask = np.asarray(record.mask)
    assert record.category == "6-Reasoning" and mask[HOLE[1] + 2, HOLE[0] + 2] > 200 and mask[0, 0] < 50
    (tmp_path / "6-Reasoning" / "Reason_test.txt").write_text("only one CLIP: line\n")
    with pytest.raises(UserError, match="has 1 lines for 2 pictures"):
        open_reader("reasonedit", str(tmp_path))


def test_instructpix2pix_in_both_layouts(tmp_path):
    reader = open_reader("instructpix2pix", layouts.pix2pix(tmp_path / "folder"))
    assert reader[1].instructions == ["make it 0000000"] and reader[1].captions == ("a dog", "a cat")
    assert close(reader[1].source, picture(99)) and close(reader[1].target, picture(100))
    record = open_reader("instructpix2pix", layouts.pix2pix_hub(tmp_path / "hub"))[0]
    assert record.instructions == ["make it a cat"] and record.captions == ("a dog", "a cat")
    assert close(record.target, picture(1))


def test_benchmarks_have_notes_for_the_judge(tmp_path):
    first, second = (open_reader("risebench", layouts.risebench(tmp_path / "rise"))[i] for i in (0, 1))
    assert first.notes == {"reference": "A bitten apple."} and first.target is None
    assert first.category == "causal_reasoning" and close(second.target, picture(3))
    assert second.notes["reference_img"].endswith("2_ref.png")
    first, second = (open_reader("kris", layouts.kris(tmp_path / "kris"))[i] for i in (0, 1))
    assert first.notes == {"explain_en": "32"} and first.target is None and first.category == "abstract_reasoning"
    assert close(second.target, picture(1)) and second.instructions == ["top view"]


def test_a_shard_is_read_in_place(tmp_path):
    reader = open_reader("webdataset", layouts.shards(tmp_path))
    record = reader[3]
    assert close(record.source, picture(6)) and close(record.target, picture(7))
    assert (record.objects, record.category, record.instructions) == (["cup"], "story", ["do 3"])
    assert len(list(tmp_path.iterdir())) == 3  # nothing was unpacked
    whole = (tmp_path / "edits-000001.tar").read_bytes()
    (tmp_path / "edits-000001.tar").write_bytes(whole[:3000])
    with pytest.raises(UserError, match="edits-000001.tar' is not an uncompressed tar file, or damaged"):
        open_reader("webdataset", str(tmp_path))


def test_links_in_a_shard_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("0.source.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        words = b'{"instruction": "go", "target": "../secret.png"}'
        info = tarfile.TarInfo("0.json")
        info.size = len(words)
        tar.addfile(info, BytesIO(words))
    with pytest.raises(UserError, match="'0.source.png' is a link"):
        open_reader("webdataset", str(tmp_path / "a.tar")).raw(0)


def hostile(folder: Path, name: str):
    """Writes a manifest whose source is ``name``, and a picture outside its folder."""
    picture(0).save(folder / "secret.png")
    data = folder / "data"
    data.mkdir()
    picture(1).save(data / "ok.png")
    (data / "file").symlink_to(folder / "secret.png")
    (data / "dir").symlink_to(folder)
    (data / "near.png").symlink_to("ok.png")
    row = {"id": "evil", "src_image": name, "tgt_image": "ok.png", "instruction": "go"}
    (data / "manifest.jsonl").write_text(json.dumps(row))
    return open_reader("manifest", str(data))


OUTSIDE = ["../secret.png", "dir/secret.png", "file", "/etc/passwd", "..", "dir/..", "x/../../secret.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_the_folder_is_read(tmp_path, name):
    with pytest.raises(UserError, match=f"record 'evil' of .*'{name}' leads outside the data folder"):
        hostile(tmp_path, name)[0]


@pytest.mark.parametrize("name", ["ok.png", "./ok.png", "near.png"])
def test_links_that_stay_inside_are_read(tmp_path, name):
    assert hostile(tmp_path, name)[0].source.tobytes() == picture(1).tobytes()


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (layouts.editworld, "generated_img/group_0/img_txt.json"),
        (layouts.kris, "abstract_reasoning/annotation.json"),
        (layouts.pix2pix, "0000000/prompt.json"),
        (layouts.triples, "heat/0.txt"),
        (layouts.triples, "heat/0_target.jpg"),
        (layouts.reasonedit, "6-Reasoning/001_mask.jpg"),
    ],
)
def test_links_out_of_the_folder_are_not_read(make, file, tmp_path):
    path = make(tmp_path / "data")
    (tmp_path / "data" / file).rename(tmp_path / "moved")
    (tmp_path / "data" / file).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="leads outside the data folder"):
        reader = open_reader(guess(path), path)
        for i in range(len(reader)):
            reader.raw(i)


def test_reading_does_not_wait_for_a_pipe(tmp_path):
    layouts.pix2pix(tmp_path)
    (tmp_path / "0000000" / "prompt.json").unlink()
    os.mkfifo(tmp_path / "0000000" / "prompt.json")
    with pytest.raises(UserError, match="is not a file"):
        open_reader("instructpix2pix", str(tmp_path)).raw(0)


def test_a_line_without_end_is_not_read(tmp_path):
    """The file is sparse and takes no disk space."""
    path = Path(layouts.manifest(tmp_path))
    with path.open("ab") as file:
        file.truncate(300 << 20)
    reader = open_reader("manifest", str(path))
    assert len(reader) == 4 and reader.raw(2).id == "r2"
    with pytest.raises(UserError, match="record 'line 4' .*a line of 3145"):
        reader.raw(3)


def test_a_parquet_file_cannot_name_a_file_outside(tmp_path):
    picture(0).save(tmp_path / "secret.png")
    row = {"source": {"bytes": None, "path": "../secret.png"}, "instruction": "go", "target": cell(picture(1))}
    reader = open_reader("parquet", parquet(tmp_path / "data" / "a.parquet", [row]))
    with pytest.raises(UserError, match="leads outside"):
        reader[0]


def test_a_bomb_in_a_shard_is_rejected_by_its_header(tmp_path):
    header = bytearray(encoded(Image.new("L", (8, 8))))
    header[16:24] = (60000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    row = {"source": {"bytes": bytes(header), "path": None}, "instruction": "go", "target": cell(picture(1))}
    with pytest.raises(UserError, match="record '0' of .*million pixels"):
        open_reader("parquet", parquet(tmp_path / "a.parquet", [row]))[0]


def test_an_odd_manifest_gives_records_or_one_line(tmp_path):
    path = Path(layouts.manifest(tmp_path, 1))
    line = path.read_bytes()
    odd = [b"null", b'"text"', b"\xff\xfe{}", b"[" * 100_000, b'{"id": 1}', line.replace(b"0_src.png", b"a" * 5000)]
    odd += [line.replace(b"0_src", name) for name in (b"\\u0000", b"\\ud800", b"a\\nb")]
    odd += [
        line.replace(b'"images/0_src.png"', value) for value in (b"3", b"{}", b"[]", b"null", b"true", b'{"path": 4}')
    ]
    odd += [line.replace(b'["ball"]', value) for value in (b"[1]", b'"ball"', b"{}")]
    told = 0
    for content in odd:
        path.write_bytes(content)
        try:
            reader = open_reader("manifest", str(path))
            for i in range(len(reader)):
                assert reader[i].source.size == (48, 32)
        except UserError as e:
            assert str(e).isprintable() and str(path) in str(e)
            told += 1
    assert told > 10


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("editworld", {"group_0/img_txt.json": "[1]"}, "not in the layout group_K"),
        ("editworld", {"group_0/img_txt.json": "{"}, "is not JSON"),
        ("editworld", {}, "no record in the layout"),
        ("kris", {"task/annotation.json": '{"1": {"ins_en": "x"}}'}, "not in the layout TASK"),
        ("risebench", {"data_total.json": "{}"}, "no record in the layout"),
        ("risebench", {}, "datav2_total_w_subtask.json' does not exist"),
        ("instructpix2pix", {"seeds.json": "[[1]]"}, "not in the layout seeds.json"),
        ("parquet", {"a.parquet": "no parquet"}, "cannot be read as Parquet"),
        ("parquet", {}, r"has none of \*\*/\*.parquet"),
        ("magicbrush", {}, r"has none of edit_sessions.json, \*\*/\*.parquet"),
        ("webdataset", {}, r"has no \*.tar file"),
        ("webdataset", {"a.tar": "no tar"}, "is not an uncompressed tar file"),
        ("manifest", {"manifest.jsonl": "\n\n"}, "has no record"),
        ("manifest", {}, "does not exist"),
    ],
)
def test_another_layout_is_an_error(tmp_path, name, content, said):
    for file, text in content.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=said):
        open_reader(name, str(tmp_path))


def test_missing_columns_are_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", [{"img_id": 1, "instruction": "x"}])
    with pytest.raises(
        UserError, match="has no column turn_index, source_img, mask_img, target_img; its columns are img_id"
    ):
        open_reader("magicbrush", path)
    with pytest.raises(UserError, match="data.name: there is no data set 'magicbrash'; choose from editworld"):
        open_reader("magicbrash", path)
    layouts.save(picture(0), tmp_path / "x" / "a.png")
    with pytest.raises(UserError, match="has no layout known here; name its reader, one of editworld, emu_edit"):
        guess(str(tmp_path / "x"))


@pytest.mark.parametrize("name", ["manifest.jsonl", "img_txt.json", "words.txt"])
def test_a_word_in_the_middle_of_a_folders_text_counts(name, tmp_path):
    words = "x" * 10_000
    (tmp_path / name).write_text(f"{words} rain {words}")
    before = fingerprint(str(tmp_path))
    (tmp_path / name).write_text(f"{words} snow {words}")
    assert fingerprint(str(tmp_path)) != before


def test_a_fingerprint_depends_on_the_content(tmp_path):
    one, two, less = (layouts.manifest(tmp_path / name, count) for name, count in (("a", 3), ("b", 3), ("c", 2)))
    assert fingerprint(one) == fingerprint(two) != fingerprint(less)
    one, two = (fingerprint(layouts.triples(tmp_path / name)) for name in ("d", "e"))
    for hidden in ("heat/.DS_Store", ".cache/huggingface/lock"):
        (tmp_path / "e" / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "e" / hidden).write_text("of a file manager or a download")
    assert one == fingerprint(str(tmp_path / "e"))
    (tmp_path / "e" / "heat" / "0.txt").write_text("Heat it all.")
    assert one == two != fingerprint(str(tmp_path / "e"))


def test_a_mask_without_white_is_an_error_unless_it_is_black(tmp_path):
    """Masks of 0 and 1, or in the colours of a palette, would say that nothing may change."""
    for value, said in ((0, None), (1, "at most 1"), (127, "at most 127"), (128, None)):
        mask = Image.new("L", (2, 2))
        mask.putpixel((0, 0), value)
        mask.save(tmp_path / "a.png")
        if said:
            with pytest.raises(UserError, match=f"no white pixel: its values are {said}, but white is 255"):
                white(tmp_path / "a.png")
        else:
            assert white(tmp_path / "a.png").getextrema() == (0, value)


def test_a_mask_that_is_transparent_in_places_is_an_error(tmp_path):
    """White strokes on a transparent layer would say that everything may change."""
    mask = np.full((4, 4, 4), 255, np.uint8)
    for opacity in (255, 254, 0):
        mask[1, 1, 3] = opacity
        Image.fromarray(mask).save(tmp_path / "a.png")
        if opacity < 255:
            with pytest.raises(UserError, match="the mask is transparent in places; it must be black and white"):
                white(tmp_path / "a.png")
        else:
            assert white(tmp_path / "a.png").getextrema() == (255, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_transparent_mask_is_turned_like_a_picture(suffix, tmp_path):
    path, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[0x0112] = 6  # stored with its top at the left
    stored = Image.new("RGBA", (4, 2), "red")
    stored.paste((0, 0, 0, 0), (0, 0, 1, 2))
    stored.save(path, exif=exif)
    assert np.asarray(transparent(path)).tolist() == [[255, 255], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("make", [layouts.hub, layouts.shards])
def test_pictures_inside_the_files_of_a_data_set_are_not_read_to_identify_it(make, tmp_path, monkeypatch):
    path = make(tmp_path / "d")
    reader = open_reader(guess(path), path)
    read, raw = [], type(reader).raw
    monkeypatch.setattr(type(reader), "raw", lambda self, index: read.append(index) or raw(self, index))
    assert [*reader.inputs()] == [*reader.files] and len(read) <= 1


def test_a_missing_picture_does_not_hide_that_another_has_changed(tmp_path):
    path = layouts.manifest(tmp_path / "d")
    cfg, reader = DataConfig(name="manifest", path=path), open_reader("manifest", path)
    Path(reader.raw(1).source).unlink()
    before = identity(cfg)
    picture(5).save(reader.raw(0).source, "PNG")
    assert identity(cfg) != before and before["pictures"]
    for part in reader.inputs():
        if part not in reader.files:
            part.unlink(missing_ok=True)
    assert identity(cfg)["pictures"] is None


@pytest.mark.parametrize("make", [layouts.manifest, layouts.triples])
def test_a_data_set_has_another_identity_after_its_pictures_changed(make, tmp_path):
    """Features are cached under it. BMP files have the same size whatever they show."""
    path = make(tmp_path / "d")
    source = open_reader(guess(path), path).raw(0).source
    picture(0).save(source, "BMP")
    cfg = DataConfig(name=guess(path), path=path)
    before = identity(cfg)
    assert identity(cfg) == before
    picture(1).save(source, "BMP")
    assert identity(cfg) != before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.name=mixture"], "data.mixture: data.name=mixture needs a list"),
        (
            ["data.name=mixture", "data.mixture=[{name: mixture, path: x}]"],
            "no data set 'mixture'; choose from editworld",
        ),
        (["data.name=mixture", "data.mixture=[{name: kris}]"], r"data.mixture\[0\].path: data.name=kris needs a path"),
        (["data.name=mixture", "data.mixture=[{nam: kris}]"], "nam"),
        (["data.name=kris"], "data.path: data.name=kris needs a path"),
    ],
)
def test_a_wrong_configuration_is_one_line(overrides, said):
    with pytest.raises(UserError, match=said):
        load_config("tiny", overrides)
