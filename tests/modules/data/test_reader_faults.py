"""Readers and unexpected names, encodings, orders and files."""

import io
import json
import os
import resource
import tarfile
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import cell, encoded, parquet, picture

from reasonbrain.data.check import check
from reasonbrain.data.opening import guess, open_reader
from reasonbrain.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """``datasets`` takes its cache folder from here."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def ids(reader):
    return [reader.raw(i).id for i in range(len(reader))]


def problems(path: Path, output: Path) -> list[tuple[str, str]]:
    check(open_reader(guess(str(path)), str(path)), output)
    return [(row["problem"], row["detail"]) for row in map(json.loads, output.read_text().splitlines())]


def shard(path: Path, *members: tuple[str, bytes], **header) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def rows_in_every_format(folder: Path, rows: list[dict]) -> list:
    """The same table as a manifest, Parquet and shards, with whole numbers as floats, as in a column with gaps."""
    (folder / "m").mkdir(parents=True)
    picture(0).save(folder / "m" / "a.png")
    lines = [json.dumps(row | {"source": "a.png"}) + "\n" for row in rows]
    (folder / "m" / "manifest.jsonl").write_text("".join(lines))
    parquet(folder / "p" / "a.parquet", [row | {"source": cell(picture(0))} for row in rows])
    (folder / "t").mkdir()
    members = []
    for i, row in enumerate(rows):
        members += [(f"{i}.json", json.dumps(row).encode()), (f"{i}.source.png", encoded(picture(0)))]
    shard(folder / "t" / "a.tar", *members)
    found = (("manifest", "m"), ("parquet", "p"), ("webdataset", "t"))
    return [open_reader(name, str(folder / part)) for name, part in found]


def test_a_table_reads_the_same_in_every_format(tmp_path):
    rows = [{"id": 7.0, "instruction": "go", "category": 3.0}, {"id": None, "instruction": "on", "category": np.nan}]
    for reader in rows_in_every_format(tmp_path, rows):
        assert ids(reader)[0] == "7" and [reader.raw(i).category for i in (0, 1)] == ["3", ""]
        assert "nan" not in ids(reader)[1].lower()


@pytest.mark.parametrize("field", ["id", "instruction", "objects", "category"])
def test_invalid_text_is_a_one_line_error(field, tmp_path):
    row = {"id": "a", "instruction": "go", "category": "x", "objects": ["cup"]}
    for bad in ("\ud800", "a\0b"):
        spoilt = row | {field: [bad] if field == "objects" else bad}
        picture(0).save(tmp_path / "a.png")
        line = json.dumps(spoilt | {"source": "a.png"})
        (tmp_path / "manifest.jsonl").write_text(line)
        with pytest.raises(UserError, match=f"{field} .*is not valid Unicode text") as error:
            open_reader("manifest", str(tmp_path)).raw(0)
        assert str(error.value).isprintable()
        found = problems(tmp_path / "manifest.jsonl", tmp_path / "p.jsonl")
        assert [kind for kind, _ in found] == ["not valid text"]
        path = shard(tmp_path / "a.tar", ("0.json", json.dumps(spoilt).encode()), ("0.source.png", encoded(picture(0))))
        with pytest.raises(UserError, match="is not valid Unicode text"):
            open_reader("webdataset", path).raw(0)


def test_wrong_encodings_are_one_line_errors(tmp_path):
    path = Path(layouts.manifest(tmp_path / "m", 1))
    text = path.read_text().replace("fell", "fällt")
    path.write_bytes(text.encode("latin-1"))
    assert [kind for kind, _ in problems(path, tmp_path / "p.jsonl")] == ["not valid text"]
    path.write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match="manifest .* is UTF-16; save it as UTF-8"):
        open_reader("manifest", str(path))
    path.write_text(text, encoding="utf-8-sig")
    assert open_reader("manifest", str(path)).raw(0).instructions == ["What if number 0 fällt?"]
    layouts.triples(tmp_path / "t")
    (tmp_path / "t" / "heat" / "0.txt").write_text("Heat it.", encoding="utf-8-sig")
    assert open_reader("folder", str(tmp_path / "t")).raw(0).instructions == ["Heat it."]


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"caf\xe9_source.png"])
def test_a_file_name_in_another_encoding_is_a_one_line_error(name, tmp_path):
    layouts.triples(tmp_path)
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"x")
    reader = open_reader("folder", str(tmp_path))
    with pytest.raises(UserError) as error:
        ids(reader)
    assert str(error.value).isprintable()


def test_an_id_has_a_limit(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "x" * 5000, "source": "a.png", "instruction": "go"}))
    with pytest.raises(UserError, match=r"'x{80}\.\.\.' of .*the id has 5000 characters, but may have 1000"):
        open_reader("manifest", str(tmp_path)).raw(0)


@pytest.mark.parametrize("blank", ["   \n", "\t\n", " \r\n", "   ", "\n \n"])
def test_lines_of_spaces_are_skipped(blank, tmp_path):
    path = Path(layouts.manifest(tmp_path, 2))
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(blank.rstrip(" ") + first + ("   " + second) + blank)
    assert ids(open_reader("manifest", str(path))) == ["r0", "r1"]


def test_lines_across_chunks_are_found(tmp_path, monkeypatch):
    from reasonbrain.modules.data import manifest

    path = Path(layouts.manifest(tmp_path, 3))
    path.write_text(path.read_text().replace("\n", "\n  \n"))
    for chunk in (1, 2, 3, 7, 50, len(path.read_bytes())):
        monkeypatch.setattr(manifest, "CHUNK", chunk)
        assert ids(open_reader("manifest", str(path))) == ["r0", "r1", "r2"]


def test_repeated_ids_are_refused_where_records_are_stored_by_id(tmp_path):
    rows = [{"id": name, "instruction": "go"} for name in ("a", "b", "a")]
    for reader in rows_in_every_format(tmp_path, rows):
        reader.check_ids(2)
        with pytest.raises(UserError, match="'a' of .*: records 0 and 2 have this id; each needs its own"):
            reader.check_ids()


def test_files_that_would_give_the_same_id_keep_their_folder(tmp_path):
    for name in ("a/b", "a-b", "c/d"):
        layouts.save(picture(0), tmp_path / f"{name}_source.png")
        (tmp_path / f"{name}.txt").write_text("go")
    assert ids(open_reader("folder", str(tmp_path))) == ["a-b", "a/b", "c-d"]


def test_a_key_may_be_in_two_shards_but_not_twice_in_one(tmp_path):
    source = encoded(picture(0))
    for name in ("a", "b"):
        keys = ("0", "1") if name == "a" else ("0",)
        members = [part for key in keys for part in ((f"{key}.source.png", source), (f"{key}.txt", b"go"))]
        shard(tmp_path / f"{name}.tar", *members)
    assert ids(open_reader("webdataset", str(tmp_path))) == ["a.tar/0", "1", "b.tar/0"]
    apart = [("0.source.png", source), ("1.source.png", source), ("1.txt", b"go"), ("0.txt", b"go")]
    reader = open_reader("webdataset", shard(tmp_path / "b.tar", *apart))
    with pytest.raises(UserError, match="record '0' of .*its files are not adjacent"):
        reader.raw(0)
    assert reader.raw(1).id == "1"


@pytest.mark.parametrize("role", ["source", "input_image", "target", "edited_image", "mask"])
def test_the_order_of_a_records_files_does_not_matter(role, tmp_path):
    said = {"instruction": "json's", "source": "web", "target": "a cat", "mask": "no", "input_image": "x"}
    pictures = {"source" if role in ("source", "input_image") else role: role, "source": "source"}
    files = [(f"0.{part}.png", encoded(picture(i))) for i, part in enumerate({*pictures.values(), role})]
    files = [file for file in files if role != "input_image" or "source" not in file[0]]
    files += [("0.json", json.dumps(said).encode()), ("0.txt", b"txt's")]
    found = []
    for turn in range(len(files)):
        reader = open_reader("webdataset", shard(tmp_path / f"{turn}.tar", *files[turn:], *files[:turn]))
        found.append(reader.raw(0))
        assert found[0] == found[-1]
    given = {part for part in ("source", "target", "mask") if getattr(found[0], part) is not None}
    assert given == {"source", *({role} & {"target", "mask"}), *({"target"} if role == "edited_image" else ())}
    assert found[0].instructions == ["txt's"] and isinstance(found[0].source, bytes)


def test_files_that_macos_adds_to_a_tar_file_are_skipped(tmp_path):
    members = [("./._0.source.png", b"mac"), ("./0.source.png", encoded(picture(0))), ("./._0.txt", b"mac")]
    reader = open_reader("webdataset", shard(tmp_path / "a.tar", *members, ("./0.txt", b"go")))
    assert len(reader) == 1 and reader.raw(0).instructions == ["go"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("0.source.png", b"a"), ("0.source.jpg", b"b"), ("0.txt", b"go")], "two files 'source'"),
        ([("0.source.png", b"a"), ("0.json", b'[["instruction", "go"]]')], "json is a list, not an object"),
        ([("0.source.png", b"a"), ("0.json", b"[" * 100_000)], "not a record"),
        ([("0.source.png", b"a"), ("0.txt", b"\xff\xfe")], "codec can't decode"),
    ],
)
def test_a_malformed_record_of_a_shard_is_a_one_line_error(members, said, tmp_path):
    with pytest.raises(UserError, match=f"record '0' of .*{said}"):
        open_reader("webdataset", shard(tmp_path / "a.tar", *members)).raw(0)


@pytest.mark.parametrize("end", ["", "_image", "_img", "_file_name"])
def test_a_mask_is_named_like_its_source_and_target(end, tmp_path):
    """A mask under a name that is not known would be ignored without a word."""
    row = {f"{role}{end}": f"{role}.png" for role in ("source", "target", "mask")} | {"instruction": "go"}
    for number, role in enumerate(("source", "target", "mask")):
        picture(number).save(tmp_path / f"{role}.png")
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    raw = open_reader("manifest", str(tmp_path)).raw(0)
    assert [Path(part).name for part in (raw.source, raw.target, raw.mask)] == ["source.png", "target.png", "mask.png"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_mask_that_tar_packed_as_a_link_is_an_error(link, tmp_path):
    """GNU tar packs the second name of a file as a link to the first, so the mask of record 1 would be missing."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in "01":
        picture(0).save(folder / f"{number}.source.png")
        (folder / f"{number}.txt").write_text("go")
    picture(1).save(folder / "0.mask.png")
    link(folder / "0.mask.png", folder / "1.mask.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    reader = open_reader("webdataset", str(tmp_path / "a.tar"))
    assert reader.raw(0).mask
    with pytest.raises(UserError, match="record '1' of .*: not a record .'1.mask.png' is a link; pack the file"):
        reader.raw(1)


@pytest.mark.parametrize("fault", ["two archives in one file", "a damaged header", "cut in a header"])
def test_records_behind_the_end_of_a_shard_are_not_lost_silently(fault, tmp_path):
    one = [("0.source.png", encoded(picture(0))), ("0.txt", b"go")]
    two = [("1.source.png", encoded(picture(0))), ("1.txt", b"go")]
    whole, parts = (Path(shard(tmp_path / f"{n}.tar", *m)) for n, m in (("a", one + two), ("b", two)))
    data = bytearray(whole.read_bytes())
    at = data.index(b"1.source.png")
    if fault == "two archives in one file":
        data += parts.read_bytes()
    elif fault == "a damaged header":
        data[at + 20] ^= 1
    else:
        del data[at + 100 :]
    parts.unlink()
    whole.write_bytes(data)
    with pytest.raises(UserError, match="a.tar' is not an uncompressed tar file, or damaged: something other than"):
        open_reader("webdataset", str(whole))


def test_a_data_set_may_have_more_shards_than_open_files(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(70):
        shard(tmp_path / f"{number:02}.tar", (f"{number}.source.png", b"a"), (f"{number}.txt", b"go"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        reader = open_reader("webdataset", str(tmp_path))
        assert ids(reader) == [str(number) for number in range(70)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_sparse_tar_file_takes_no_memory(tmp_path):
    """A file of 31 KB that declares 15 GB."""
    data = b""
    for number in range(60):
        head = bytearray(512)
        for at, text in (
            (0, b"a.f%d.png" % number),
            (100, b"0000644\0"),
            (108, b"0000000\0" * 2),
            (124, b"00000000000\0" * 2),
            (148, b" " * 8 + b"S"),
            (257, b"ustar  \0"),
            (386, b"%011o\0" % 250_000_000 + b"%011o\0" % 0),
            (483, b"%011o\0" % 250_000_000),
        ):
            head[at : at + len(text)] = text
        head[148:156] = b"%06o\0 " % sum(head)
        data += bytes(head)
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    with pytest.raises(UserError, match="'a.f0.png' is a sparse file"):
        open_reader("webdataset", str(tmp_path)).raw(0)


def test_a_table_that_is_replaced_by_one_of_the_same_date_is_read_anew(tmp_path):
    for word in ("snow", "rain"):
        path = parquet(tmp_path / "a.parquet", [{"source": cell(picture(0)), "instruction": word}])
        os.utime(path, (0, 0))
        assert open_reader("parquet", path).raw(0).instructions == [word]


@pytest.mark.parametrize("name", ["train[1].parquet", "[v1]/a.parquet", "a*b?.parquet", "[a/b].parquet"])
def test_a_file_name_is_not_read_as_a_pattern(name, tmp_path):
    row = {"source": cell(picture(0)), "instruction": "go"}
    path = parquet(tmp_path / "data" / name, [row])
    assert len(open_reader(guess(path), path)) == 1 and len(open_reader("parquet", str(Path(path).parent))) == 1
    tar = shard(tmp_path / "x[1].tar", ("0.source.png", encoded(picture(0))), ("0.txt", b"go"))
    assert len(open_reader("webdataset", tar)) == 1


def test_a_damaged_page_is_named_with_its_file_and_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 1000
    words = [f"{i * 7919 % 10007} {i}" for i in range(rows)]
    table = pa.table({"source": ["x.png"] * rows, "instruction": words})
    for name in ("a", "b"):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=500, use_dictionary=False)
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    at = pq.ParquetFile(tmp_path / "b.parquet").metadata.row_group(1).column(1).data_page_offset + 30
    data[at : at + 400] = bytes(byte ^ 255 for byte in data[at : at + 400])
    (tmp_path / "b.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"b.parquet', rows 256 to 511, cannot be read as Parquet") as error:
        open_reader("parquet", str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "dangling"])
@pytest.mark.parametrize(
    ("reader", "name"),
    [("manifest", "a.jsonl"), ("parquet", "a.parquet"), ("webdataset", "a.tar"), ("folder", "0.txt")],
)
def test_pipes_and_dangling_links_are_one_line_errors(reader, name, kind, tmp_path):
    layouts.save(picture(0), tmp_path / "0_source.png")
    os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("gone")
    for path in (tmp_path / name, tmp_path):
        if reader in ("manifest", "folder") and path == (tmp_path if reader == "manifest" else tmp_path / name):
            continue
        with pytest.raises(UserError, match="not a file|does not exist") as error:
            open_reader(reader, str(path)).raw(0)
        assert name in str(error.value)


def test_a_pipe_as_a_picture_is_found_without_decoding(tmp_path):
    path = Path(layouts.manifest(tmp_path / "m", 4))
    for name in ("1_src", "2_tgt"):
        (path.parent / "images" / f"{name}.png").unlink()
        os.mkfifo(path.parent / "images" / f"{name}.png")
    for limit in (None, 1):
        counts, _ = check(open_reader("manifest", str(path)), tmp_path / "p.jsonl", limit)
        assert counts == {"not a file": 2}


def test_nothing_in_a_folder_is_skipped_silently(tmp_path):
    layouts.triples(tmp_path / "d")
    heat = tmp_path / "d" / "heat"
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    for name in ("9_source.heic", "no_text_source.png", "photo.HEIC"):
        (heat / name).write_bytes(heic)
    (heat / "9.txt").write_text("go")
    (heat / ".DS_Store").write_text("mac")
    (heat / "2_source.jpg").write_bytes(heic)
    (heat / "more").symlink_to(tmp_path)
    (heat / "1_source.png").rename(heat / "1_source.PNG")
    found = dict(problems(tmp_path / "d", tmp_path / "p.jsonl")[::-1])
    details = [detail for _, detail in problems(tmp_path / "d", tmp_path / "p.jsonl")]
    for said in ("9_source.heic", "no_text.txt' does not exist", "photo.txt", "2_source.jpg", "more.txt"):
        assert any(said in detail for detail in details), said
    assert len(details) == 5 and found
    assert any("pillow-heif" in detail or "damaged" in detail for detail in details)


def test_a_repeated_key_is_an_error(tmp_path):
    layouts.kris(tmp_path)
    file = tmp_path / "viewpoint_change" / "annotation.json"
    row = file.read_text().strip()[1:-1]
    file.write_text("{" + row + "," + row + "}")
    with pytest.raises(UserError, match="the key '4' occurs twice"):
        open_reader("kris", str(tmp_path))


@pytest.mark.parametrize("name", ["manifest", "webdataset"])
def test_a_repeated_key_of_a_record_is_an_error(name, tmp_path):
    picture(0).save(tmp_path / "a.png")
    line = b'{"source": "a.png", "instruction": "Let it snow.", "instruction": "Let it rain."}'
    (tmp_path / "a.jsonl").write_bytes(line)
    shard(tmp_path / "a.tar", ("0.json", line), ("0.source.png", encoded(picture(0))))
    with pytest.raises(UserError, match="not a record .the key 'instruction' occurs twice"):
        open_reader(name, str(tmp_path / {"manifest": "a.jsonl", "webdataset": "a.tar"}[name])).raw(0)
