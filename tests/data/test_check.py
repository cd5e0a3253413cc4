"""`data check` finds deliberately broken records and no others; `data show` escapes hostile texts."""

import json
import resource
import zlib
from collections import Counter
from pathlib import Path

import layouts
import numpy as np
import pytest
from click.testing import CliRunner
from galleries import Page
from layouts import encoded, picture
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.data.check import check, duplicates, look
from reasonbrain.data.opening import guess, open_reader


def call(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def bomb() -> bytes:
    """A PNG of a few bytes whose header declares 60000 x 60000 pixels."""
    data = bytearray(encoded(Image.new("L", (8, 8))))
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def spoilt(folder: Path) -> dict[int, str]:
    """Writes a manifest with one of each problem. Returns the expected problems by record."""
    path = Path(layouts.manifest(folder, 13))
    rows, images = rows_of(path), folder / "images"
    (images / "1_src.png").unlink()
    (images / "2_tgt.png").write_bytes((images / "2_tgt.png").read_bytes()[:-300])
    (images / "3_src.png").write_text("<html>not found</html>")
    (images / "4_src.png").write_bytes(bomb())
    rows[5]["instruction"] = "  \n"
    rows[6]["category"] = "musical"
    rows[7]["src_image"] = "../secret.png"
    (images / "8_tgt.png").write_bytes(encoded(picture(17, (48, 40))))
    rows[10] |= {name: rows[9][name] for name in ("src_image", "tgt_image", "instruction")}
    picture(0).save(images / "11_src.png")
    picture(1).save(images / "11_tgt.jpg", quality=95)  # record 0, saved once more
    rows[11] |= {"tgt_image": "images/11_tgt.jpg", "instruction": rows[0]["instruction"].upper()}
    rows[12]["id"] = "r0"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{half a li")
    found = {1: "missing", 2: "truncated", 3: "not a picture", 4: "too large", 5: "empty instruction"}
    found |= {6: "wrong category", 7: "outside the folder", 8: "size mismatch", 10: "duplicate", 11: "near duplicate"}
    return found | {12: "duplicate id", 13: "malformed"}


def test_each_problem_is_found_once_and_no_file_is_changed(tmp_path):
    data = tmp_path / "data"
    wanted = spoilt(data)
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    result = call("data", "check", data, "-o", tmp_path / "problems.jsonl")
    assert result.exit_code == 3, result.output
    found = rows_of(tmp_path / "problems.jsonl")
    assert {row["record"]: row["problem"] for row in found} == wanted and len(found) == len(wanted)
    assert all(f"{kind} " in result.stdout for kind in wanted.values()) and "14 records, 14 decoded" in result.stdout
    by_record = {row["record"]: row for row in found}
    assert "4_src.png" in by_record[4]["detail"] and by_record[8]["detail"] == "source is 48x32, target is 48x40"
    assert by_record[11]["detail"] == "as record 0, 'r0'" and by_record[11]["id"] == "r11"
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == before


def test_a_valid_folder_has_no_problems(tmp_path):
    layouts.manifest(tmp_path / "data", 5)
    result = call("data", "check", tmp_path / "data", "-o", tmp_path / "p.jsonl")
    assert result.exit_code == 0 and "no problems" in result.stdout and rows_of(tmp_path / "p.jsonl") == []


@pytest.mark.parametrize("make", [layouts.shards, layouts.reasonedit, layouts.editworld, layouts.kris])
def test_other_layouts_are_checked(make, tmp_path):
    make(tmp_path / "data")
    path = str(tmp_path / "data")
    counts, decoded = check(open_reader(guess(path), path), tmp_path / "p.jsonl")
    assert decoded >= 2 and set(counts) <= {"near duplicate", "duplicate"}


def test_a_limit_decodes_some_and_reads_all(tmp_path):
    path = Path(layouts.manifest(tmp_path / "data", 10))
    for i in (1, 5):
        (path.parent / "images" / f"{i}_src.png").write_text("no picture")
    (path.parent / "images" / "7_tgt.png").unlink()
    counts, decoded = check(open_reader("manifest", str(path)), tmp_path / "p.jsonl", limit=2)
    assert decoded == 2 and counts == Counter({"not a picture": 1, "missing": 1})  # 0 and 5 were decoded


def test_similar_pictures_are_distinguished_from_others():
    one, again, other = picture(3, (200, 120)), picture(3, (160, 96)), picture(4, (200, 120))
    assert (look(one) ^ look(again)).bit_count() <= 2 < 16 < (look(one) ^ look(other)).bit_count()


def test_near_duplicates_need_the_same_words_and_few_other_bits():
    rng = np.random.default_rng(0)
    keys = rng.integers(1, 1 << 63, (400, 5), dtype=np.uint64)
    keys[:, 2] = 7  # the same words
    for later, earlier, flipped in ((300, 10, 0), (301, 11, 3), (302, 12, 4), (303, 13, 0)):
        keys[later, 3:] = keys[earlier, 3:]
        for bit in range(flipped):
            keys[later, 3 + bit % 2] ^= np.uint64(1 << (17 * bit + 5))
    keys[303, 2] = 8  # other words
    assert list(duplicates(keys)) == [(300, 10, "near duplicate"), (301, 11, "near duplicate")]


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_full_disk_is_a_one_line_error_and_keeps_the_old_file(command, tmp_path):
    """A real failing write: this process may make no file of more than 100 bytes."""
    spoilt(tmp_path / "data")
    (tmp_path / "p.jsonl").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        result = call("data", command, tmp_path / "data", "-o", tmp_path / "p.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "p.jsonl' cannot be written: File too large" in result.stderr
    assert (tmp_path / "p.jsonl").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("command", ["check", "show"])
def test_invalid_arguments_are_one_line_errors(command, tmp_path):
    layouts.manifest(tmp_path / "data")
    for args, said in (
        (["nowhere"], "'nowhere' does not exist; name its reader, one of editworld"),
        (["nowhere", "--name", "kris"], "'nowhere' does not exist"),
        ([tmp_path / "data", "--name", "maxi"], "no data set 'maxi'; choose from editworld"),
        ([tmp_path / "data", "-o", tmp_path / "no" / "p"], "cannot be written: No such file"),
        ([tmp_path / "data", "--name", "kris"], "no record in the layout TASK/annotation.json"),
    ):
        result = call("data", command, *args)
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "show"])
@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
@pytest.mark.parametrize("name", ["manifest.jsonl", "images/0_tgt.png"])
def test_an_input_is_never_the_output(command, link, name, tmp_path):
    layouts.manifest(tmp_path / "data")
    file = output = tmp_path / "data" / name
    before = file.read_bytes()
    if link:
        output = tmp_path / "link"
        (output.symlink_to if link == "symbolic" else output.hardlink_to)(file)
    result = call("data", command, tmp_path / "data", "-o", output)
    assert result.exit_code == 2 and f"output '{output}' is an input of this command" in result.stderr
    assert file.read_bytes() == before and result.stderr.count("\n") == 1


def test_a_list_in_the_data_folder_is_written_again(tmp_path):
    layouts.manifest(tmp_path / "data")
    for _ in range(2):
        assert call("data", "check", tmp_path / "data", "-o", tmp_path / "data" / "p.jsonl").exit_code == 0


def test_a_device_is_written_to_and_a_folder_is_refused(tmp_path):
    layouts.manifest(tmp_path / "data")
    assert call("data", "check", tmp_path / "data", "-o", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()
    result = call("data", "check", tmp_path / "data", "-o", tmp_path)
    assert result.exit_code == 2 and f"output '{tmp_path}' cannot be written: Is a directory" in result.stderr


def test_a_page_shows_all_records_and_escapes_hostile_texts(tmp_path):
    path = Path(layouts.manifest(tmp_path / "data", 30))
    rows = rows_of(path)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<script>"
    rows[3] |= {"instruction": evil, "category": evil, "objects": [evil]}
    rows[4]["src_image"] = "gone.png"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call("data", "show", tmp_path / "data", "-o", tmp_path / "g.html")
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "g.html")
    shown = Page((tmp_path / "g.html").read_text()).cards
    assert [r["id"] for r in shown] == [r["id"] if i != 4 else "record 4" for i, r in enumerate(rows)]
    assert shown[3]["words"] == [evil] and shown[3]["groups"] == {"category": evil} and "gone.png" in shown[4]["wrong"]
    assert [name for name, _ in shown[0]["pictures"]] == ["source", "target"]
    result = call("data", "show", tmp_path / "data", "-o", tmp_path / "g.html", "--limit", 6)
    assert len(Page((tmp_path / "g.html").read_text()).cards) == 6
