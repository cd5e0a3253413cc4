"""Edits of an evaluation: reused only if made from the same inputs, never written over foreign files, and no
record ends an evaluation."""

import json
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.data.record import Record
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.against import read_other
from reasonbrain.eval.evaluation.benchmarks import find_benchmark
from reasonbrain.eval.evaluation.edits import Edits, file_stem
from reasonbrain.eval.evaluation.evaluate import score_records
from reasonbrain.eval.evaluation.metrics import METRICS
from reasonbrain.eval.evaluation.networks import Models


@pytest.fixture(scope="module")
def pipe(model, settings):
    made = ReasonBrainPipeline.from_model(model, settings("edit.steps=1"))
    made.set_progress_bar_config(disable=True)
    return made


def record(name="1", colour="red", says="Melt the ice.", size=(32, 32)):
    return Record(name, Image.new("RGB", size, colour), Image.new("RGB", size), [says])


def scored(records, edits):
    benchmark = find_benchmark("manifest")
    metrics = {"L1": METRICS["L1"]}
    return score_records(records, benchmark, metrics, Models(), edits, benchmark.baselines(None, edits.folder, 0))


def test_an_edit_is_reused_only_for_the_same_inputs(pipe, tmp_path):
    first = Edits(tmp_path / "a", pipe)(record())
    path = tmp_path / "a" / "1.png"
    before = path.stat().st_mtime_ns
    assert Edits(tmp_path / "a", pipe)(record()).tobytes() == first.tobytes() and path.stat().st_mtime_ns == before
    for other in (record(colour="blue"), record(says="Blow."), record(size=(16, 64))):
        assert Edits(tmp_path / "a", pipe)(record()).tobytes() == first.tobytes()  # the one that is there now
        again = Edits(tmp_path / "a", pipe)(other)
        assert again.tobytes() == Edits(tmp_path / str(id(other)), pipe)(other).tobytes() != first.tobytes()
    assert Edits(tmp_path / "a", pipe)(record()).tobytes() == first.tobytes()


def test_in_an_instruction_that_replaces_the_records_no_objects_are_found(pipe, tmp_path):
    says, source = "Melt the red ice cube on the blue plate.", record().source
    found = Edits(tmp_path, pipe, instruction=says)(record())
    without, with_them = (
        pipe(source, says, objects=objects, generator=torch.Generator().manual_seed(0)).images[0].tobytes()
        for objects in ([[]], None)
    )
    assert found.tobytes() == without != with_them


def test_repeated_ids_are_refused(pipe, tmp_path):
    with pytest.raises(UserError, match="records 0 and 2 have the same id '1'"):
        scored([record(), record("2"), record(colour="blue")], Edits(tmp_path, pipe))


@pytest.mark.parametrize("suffix", ["PNG", "Png", "JPG", "jpeg", "TIFF"])
def test_another_systems_pictures_in_any_case(suffix, tmp_path):
    kind = {"JPG": "jpeg", "jpeg": "jpeg", "TIFF": "tiff"}.get(suffix, "png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"1.{suffix}", kind)
    assert Edits(tmp_path)(record()).size == (8, 8)
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    assert Edits(tmp_path)(record()).size == (9, 9)  # the plain name first


def test_foreign_files_are_never_written_over(pipe, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    before = (tmp_path / "1.png").read_bytes()
    with pytest.raises(UserError, match="holds '1.png', which this command did not write"):
        Edits(tmp_path, pipe)
    edits = Edits(tmp_path / "edits", pipe)
    for name in ("1.png", "2.png"):
        (tmp_path / "edits" / name).write_bytes(before)
    with pytest.raises(UserError, match="holds '1.png', which this command did not write"):
        edits.make([record(), record("2")])
    (tmp_path / "edits" / "1.png").unlink()
    (tmp_path / "edits" / "1.png").mkdir()
    with pytest.raises(UserError, match="holds '1.png', which this command did not write"):
        edits.make([record()])
    assert (tmp_path / "edits" / "2.png").read_bytes() == before == (tmp_path / "1.png").read_bytes()


def test_an_incomplete_edit_is_made_again(pipe, tmp_path):
    """A power failure may leave an empty one, as pictures are not synced to disk, and a copy one that is cut off."""
    edits = Edits(tmp_path, pipe)
    made, file = edits(record()), tmp_path / "1.png"
    whole = file.read_bytes()
    for left in (0, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:left])
        assert edits(record()).tobytes() == made.tobytes() and file.read_bytes() == whole


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "{}", "[" * 100_000])
def test_a_damaged_made_by_is_a_one_line_error(text, pipe, tmp_path):
    Edits(tmp_path, pipe)
    (tmp_path / "made-by.json").write_text(text)
    with pytest.raises(UserError, match="made-by.json' is not JSON|holds 'made-by.json', which this command did"):
        Edits(tmp_path, pipe)


class Odd:
    """Records of which some cannot be read or edited."""

    def __init__(self, *made):
        self.made = made

    def __len__(self):
        return len(self.made)

    def __getitem__(self, index):
        if isinstance(self.made[index], Exception):
            raise self.made[index]
        return self.made[index]


def torn():
    """A truncated picture from a reader, which is decoded only on use."""
    file = BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "png")
    return replace(record("torn"), source=Image.open(BytesIO(file.getvalue()[:500])))


def test_no_record_ends_an_evaluation(pipe, tmp_path):
    made = (
        *(record("good"), KeyError("column"), torn(), record("empty", says=" ")),
        *(Record("none", Image.new("RGB", (8, 8)), None, []), record("lone", says="\ud800"), record("\udfff")),
        *(record("x" * 5000), OSError(5, "Input/output error"), MemoryError(), record("end", "blue")),
    )
    found = scored(Odd(*made), Edits(tmp_path / "edits", pipe))
    assert [row["id"] for row in found["records"]] == ["good", "x" * 5000, "end"]
    said = found["unreadable"]
    assert said.keys() == {"record 1", "torn", "empty", "none", "record 5", "record 6", "record 8", "record 9"}
    assert said["record 1"] == "KeyError: 'column'" and said["record 9"] == "MemoryError"
    assert "IndexError" in said["none"] and "is not valid Unicode" in said["record 5"]
    assert not [text for text in said.values() if not text.isprintable()]
    lost = Edits(tmp_path / "edits", pipe)
    with pytest.raises(UserError, match="none of the 1 records has a readable picture.*; torn: "):
        scored([torn()], lost)


def test_any_id_gives_a_short_file_name_of_valid_unicode():
    names = ["x" * 5000, "x" * 5001, "ü" * 300, "\ud800", "\ud801", "a", "%D800"]
    assert len({file_stem(name) for name in names}) == len(names)
    assert all(len(file_stem(name).encode()) <= 200 for name in names)


ROW = {"id": "1", "content": "0", "scores": {"edits": {"L1": 0.5}}}
FOUND = {"benchmark": "mini", "networks": {}}
GOOD = {**FOUND, "system": "theirs", "edits": "edits", "records": [ROW]}


@pytest.mark.parametrize("edits", ["../secret", "/etc", "edits/../..", "link", "a\0b", "."])
def test_a_report_to_compare_with_shows_nothing_outside_its_folder(edits, tmp_path):
    (tmp_path / "secret").mkdir()
    folder = tmp_path / "report"
    (folder / "edits").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "report.json").write_text(json.dumps(GOOD | {"edits": edits}))
    assert read_other(folder, FOUND).edits is None
    (folder / "report.json").write_text(json.dumps(GOOD))
    other = read_other(folder, FOUND)
    assert other.edits.folder == (folder / "edits").resolve() and other.scores == {"1": {"L1": 0.5}}


BROKEN = [None, 5, "x", [], {}, [5], [{}], [[]], float("nan"), 10**400, True]


@pytest.mark.parametrize(
    "report",
    [
        *BROKEN,
        *(GOOD | {key: value} for key in ("system", "edits") for value in BROKEN if not isinstance(value, str)),
        *(GOOD | {"records": value} for value in BROKEN if value not in ([], {})),
        *(GOOD | {"records": [ROW | {"id": value}]} for value in BROKEN if not isinstance(value, str)),
        *(GOOD | {"records": [ROW | {"content": value}]} for value in BROKEN if not isinstance(value, str)),
        *(GOOD | {"records": [ROW | {"scores": value}]} for value in BROKEN),
        *(GOOD | {"records": [ROW | {"scores": {"edits": value}}]} for value in BROKEN if value != {}),
        *(GOOD | {"records": [ROW | {"scores": {"edits": {"L1": v}}}]} for v in BROKEN if v not in (None, 5)),
        *({k: v for k, v in GOOD.items() if k != key} for key in GOOD),
    ],
)
def test_a_damaged_report_to_compare_with_is_a_one_line_error(report, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="^--against '.*' has no report.json of `reasonbrain eval`") as e:
        read_other(tmp_path, FOUND)
    assert len(str(e.value)) < 1000


def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_foreign_reports_are_never_written_over(tmp_path):
    for name, text in (("report.md", "my thesis"), ("report.json", "{}"), ("report.html", "")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        (tmp_path / "theirs").mkdir(exist_ok=True)
        done = run("eval", "--benchmark", "mini", "--edits", tmp_path / "theirs", "-o", folder)
        assert done.exit_code == 2 and f"holds '{name}', which this command did not write" in done.stderr
        assert [p.name for p in folder.iterdir()] == [name] and (folder / name).read_text() == text
