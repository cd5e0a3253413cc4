"""Batches with the faults of real folders, tables, pictures and libraries."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from reasonbrain import cli
from reasonbrain.config.schema import ModelConfig
from reasonbrain.editing.batch import executors, scheduler
from reasonbrain.editing.batch.identity import model_hash
from reasonbrain.editing.batch.jobs import Job, read
from reasonbrain.editing.batch.rows import EditRow
from reasonbrain.editing.core import Sources, take_rows
from reasonbrain.errors import UserError

WORDS = ["--instruction", "melt it"]


@pytest.fixture
def command(checkpoint):
    """``command(jobs, out)``: exit code, stderr and lines of results of `reasonbrain batch`."""

    def call(jobs, out, *args, model=checkpoint):
        args = ["batch", str(jobs), "-o", str(out), "--checkpoint", str(model), "--batch-size", "2", *args]
        done = CliRunner().invoke(cli.main, args)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        path = out / "results.jsonl"
        return done.exit_code, done.stderr, [json.loads(line) for line in path.open()] if path.exists() else []

    return call


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(2):
        picture(40 + 8 * i, 48, i).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def row(name, image=None, **more):
    return {"id": name, "image": image or picture(64, 48), "instruction": "melt it", **more}


def test_an_exception_fails_only_its_row(pipe, monkeypatch):
    """In conditioning and in drawing. Each variant of the row gets the error; the other rows of the batch are
    unchanged."""
    alone = {r.row.id: np.asarray(r.image) for r in pipe.batch([row("a"), row("c")], 4)}
    for method in ("condition", "draw"):
        real = getattr(scheduler.Core, method)

        def raising(self, sources, what, *args, real=real, method=method, **more):
            if torch.equal(sources.small[0], sources.small[-1]) and (sources.small[0] < 0.01).all():
                raise IndexError("list index\nout of range")
            if (sources.small[1] < 0.01).all():
                raise MemoryError
            return real(self, sources, what, *args, **more)

        monkeypatch.setattr(scheduler.Core, method, raising)
        black = Image.new("RGB", (64, 48))
        found = list(pipe.batch([row("a"), row("b", black, n=3), row("c")], 4))
        monkeypatch.setattr(scheduler.Core, method, real)
        wrong = [r for r in found if r.row.id == "b"]
        assert sorted(r.variant for r in wrong) == [0, 1, 2]
        assert {r.error for r in wrong} == {"IndexError: list index out of range"}
        for result in found:
            if result.row.id != "b":
                assert (np.asarray(result.image) == alone[result.row.id]).all()


def test_extreme_aspect_ratios_and_lack_of_memory_are_one_line_errors(pipe, monkeypatch):
    long = picture(2000, 4)
    with pytest.raises(UserError, match="64:1|200:1"):
        pipe.model.slot("mllm").pixels(torch.zeros(1, 3, 2, 640))
    pipe.settings.edit.size = None
    try:
        (result,) = pipe.batch([row("a", long)], 1)
        assert "250:1" in result.error and "200:1" in result.error
    finally:
        pipe.settings.edit.size = 64

    def no_memory(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(pipe.diffusion, "encode", no_memory)
    with pytest.raises(UserError, match="does not fit into memory"):
        pipe(picture(64, 48), "melt it")
    assert [r.error.count("fit into memory") for r in pipe.batch([row("a", n=2), row("b")], 2)] == [1, 1, 1]


def test_memory_is_bounded_for_pictures_of_many_sizes(pipe, monkeypatch):
    """No edit of one size waits for those of another, and small windows give the same pictures."""
    rows = [row(f"{i}", picture(32 + 8 * i, 64, i), seed=i) for i in range(12)]
    monkeypatch.setattr(pipe.settings.edit, "size", None)
    most, load = [0], scheduler._Window._load

    def counted(self, batches):
        load(self, batches)
        most[0] = max(most[0], len(self.loaded), sum(map(len, self.waiting.values())))

    monkeypatch.setattr(scheduler._Window, "_load", counted)
    whole = {r.row.id: np.asarray(r.image) for r in pipe.batch(rows, 4)}
    assert most[0] <= 3  # the pictures of a batch and of the next one, not those of the window
    monkeypatch.setattr(scheduler, "PIXELS", 3 * 64 * 80)
    found = {r.row.id: np.asarray(r.image) for r in pipe.batch(rows, 4)}
    assert most[0] <= 3 and all((found[name] == whole[name]).all() for name in whole)


def test_a_window_has_the_pixels_that_it_may_have(monkeypatch):
    """A picture used twice counts once; one alone may have more; one of unknown size has none."""
    monkeypatch.setattr(scheduler, "PIXELS", 100)
    given = [("a", (10, 6)), ("a", (10, 6)), ("b", (10, 4)), ("c", (1, 1)), ("d", (20, 20)), ("e", None), ("f", (9, 9))]
    rows = [(EditRow(i, name, Path(name)), size) for i, (name, size) in enumerate(given)]
    found = [[row.id for row, _ in window] for window in scheduler._windows(rows)]
    assert found == [["a", "a", "b"], ["c"], ["d"], ["e", "f"]]


def test_what_waits_keeps_no_other_row_in_memory():
    many = torch.zeros(8, 3, 4, 4)
    one = take_rows(Sources(many, many[:, 0], many, many, {"mllm": many}), [5])
    for part in (*one[:4], one.ready["mllm"]):
        assert len(part) == 1 and part.untyped_storage().nbytes() == part.nbytes


def test_a_model_is_told_by_the_end_of_its_tensors_too(tmp_path):
    (tmp_path / "cme").mkdir()
    seen = set()
    for changed in (None, 0, 20_000, -1):
        weight = torch.zeros(40_000)  # 160 kB: the middle is not read
        if changed is not None:
            weight[changed] = 1
        save_file({"weight": weight}, tmp_path / "cme" / "model.safetensors")
        seen.add(model_hash(tmp_path, ModelConfig()))
    assert len(seen) == 3


def test_jobs_that_change_while_they_are_edited_are_told(command, photos, tmp_path, monkeypatch):
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"id": "a", "image": str(next(photos.glob("*.png"))), "instruction": "melt it"}))

    def changing(*args):
        for line in executors.processes(*args):
            jobs.write_text(jobs.read_text().replace("melt", "burn"))
            yield line

    monkeypatch.setitem(executors.EXECUTORS, "processes", changing)
    code, said, lines = command(jobs, tmp_path / "out")
    assert code == 2 and "changed while it was edited" in said and len(lines) == 1


def test_published_weights_in_a_folder_count_where_they_are_read(tmp_path):
    published, checkpoint = tmp_path / "published", tmp_path / "checkpoint"
    (published / "vae").mkdir(parents=True)
    (checkpoint / "diffusion").mkdir(parents=True)
    folder, hub = ({"name": "editor", "pretrained": name} for name in (str(published), "owner/name"))
    small, whole = {"w": torch.zeros(3)}, checkpoint / "diffusion" / "model.safetensors"

    def hashes(value):
        save_file({"weight": torch.full((3,), value)}, published / "vae" / "model.safetensors")
        return [model_hash(where, ModelConfig(diffusion=folder)) for where in (None, checkpoint)]

    save_file(small, whole.with_name("trained.safetensors"))  # a checkpoint of trained tensors alone
    assert all(one != two for one, two in zip(hashes(0.0), hashes(1.0), strict=True))
    whole.with_name("trained.safetensors").rename(whole)
    one, two = hashes(0.0), hashes(1.0)
    assert one[0] != two[0] and one[1] == two[1]
    assert model_hash(None, ModelConfig(diffusion=hub)) is None


def test_resumes_unless_rows_model_or_settings_changed(command, checkpoint, photos, tmp_path):
    out = photos / "out"
    assert command(photos, out, *WORDS)[0] == 0
    first = (out / "results.jsonl").read_bytes()
    (photos / ".DS_Store").write_text("x")
    (photos / "notes.txt").write_text("x")
    again = tmp_path / "again"
    shutil.copytree(checkpoint, again)
    for path in again.rglob("*.safetensors"):  # the metadata in another order, another file
        with safe_open(path, "pt") as file:
            tensors, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
        save_file(tensors, path, {"other": "1", **about})
    (again / "README.md").write_text("a model")
    code, said, _ = command(photos, out, *WORDS, model=again)
    assert code == 0 and (out / "results.jsonl").read_bytes() == first
    assert "2 entries" in said and ".DS_Store, notes.txt" in said
    assert model_hash(again, ModelConfig()) == model_hash(checkpoint, ModelConfig())
    code, said, _ = command(photos, out, *WORDS, "model.cme=null")
    assert code == 2 and "settings.cme" in said
    key = next(iter(tensors))
    tensors[key] = tensors[key] + 1
    save_file(tensors, path, about)
    code, said, _ = command(photos, out, *WORDS, model=again)
    assert code == 2 and "model was" in said
    picture(50, 50).save(photos / "2.png")
    code, said, _ = command(photos, out, *WORDS)
    assert code == 2 and "has changed" in said


def test_a_picture_of_a_folder_that_was_replaced_by_one_of_its_size_is_noticed(tmp_path):
    """Uncompressed pictures of equal sides always have the same number of bytes."""
    job = Job(tmp_path, tmp_path / "out", "melt it", "tiny", None, (), 8)
    hashes = set()
    for seed in (0, 1, 0):
        picture(20, 10, seed).save(tmp_path / "a.bmp")
        hashes.add(job.survey())
    assert len(hashes) == 2


def test_missing_variants_are_made_and_a_repeated_line_counts_once(command, photos, tmp_path):
    jobs, out = photos / "jobs.jsonl", tmp_path / "out"
    jobs.write_text(json.dumps({"id": "a", "image": "0.png", "instruction": "melt it", "n": 4}) + "\n   \n")
    whole = command(jobs, out)[2]
    kept = [line for line in whole if line["variant"] in (0, 2)]
    times = {line["file"]: (out / line["file"]).stat().st_mtime_ns for line in whole}
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*kept, kept[0]]))
    code, _, found = command(jobs, out)
    assert code == 0 and sorted(line["variant"] for line in found) == [0, 0, 1, 2, 3]
    changed = {name for name in times if (out / name).stat().st_mtime_ns != times[name]}
    assert changed == {line["file"] for line in whole if line["variant"] in (1, 3)}
    assert "4 results, 0 failed" in (out / "gallery.html").read_text()


def test_lost_pictures_are_made_again(command, photos, tmp_path):
    """One was deleted, and one is empty after a power failure. The line of a failed row has no picture."""
    jobs, out = photos / "jobs.jsonl", tmp_path / "out"
    row = {"id": "a", "image": "0.png", "instruction": "melt it", "n": 3}
    jobs.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "b", "image": "gone.png", "n": 1}))
    code, _, whole = command(jobs, out)
    made = {line["file"]: (out / line["file"]).read_bytes() for line in whole if line["file"]}
    assert code == 3 and len(made) == 3
    kept, deleted, empty = made
    (out / deleted).unlink()
    (out / empty).write_bytes(b"")
    time = (out / kept).stat().st_mtime_ns
    code, _, found = command(jobs, out)
    assert code == 3 and {name: (out / name).read_bytes() for name in made} == made
    assert sorted((line["row"], line["variant"]) for line in found) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert (out / kept).stat().st_mtime_ns == time and "4 results, 1 failed" in (out / "gallery.html").read_text()


def test_foreign_files_stay(command, photos, tmp_path):
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    (out / ".work.tmp").write_text("precious")
    (out / ".0123456789abcdef.tmp").write_text("precious")
    assert command(photos, out, *WORDS)[0] == 0 and (out / ".work.tmp").exists()
    for name, said in (("pictures/a.png", "pictures/a.png"), ("gallery.html", "gallery.html")):
        other = tmp_path / name.replace("/", "-")
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("mine")
        code, told, _ = command(photos, other, *WORDS)
        assert code == 2 and said in told and (other / name).read_text() == "mine"
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "run.json")
    assert command(photos, tmp_path / "fifo", *WORDS)[0] == 2


def test_links_pipes_and_undecodable_names_are_rows(command, photos, tmp_path):
    (photos / "gone.png").symlink_to("nowhere")
    os.mkfifo(photos / "pipe.png")
    (photos / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    shutil.copy(photos / "0.png", os.fsencode(photos) + b"/\xe9.png")
    code, _, found = command(photos, tmp_path / "out", *WORDS)
    told = {line["id"]: line["error"] for line in found}
    assert code == 3 and told["0.png"] is None and told["\\udce9.png"] is None
    assert "does not exist" in told["gone.png"] and "not a file" in told["pipe.png"]
    assert "pillow-heif" in told["a.heic"]


TABLE = "id,image,instruction,seed,steps,n\n1,a.png,melt it,7.0,2.0,\n"


@pytest.mark.parametrize(
    "name, data",
    [
        ("j.csv", TABLE.encode()),
        ("j.CSV", TABLE.replace(",", ";").encode("utf-8-sig")),
        ("j.csv", TABLE.replace(",", "\t").replace("id", "ID", 1).replace("seed", "Seed").encode("utf-16")),
        ("j.csv", ("\n" + TABLE + "  , ,,,,\n").replace("\n", "\r\n").encode()),
        ("j.jsonl", b'{"id": 1, "image": "a.png", "instruction": "melt it", "seed": 7.0, "steps": 2.0, "n": NaN}\n \n'),
    ],
)
def test_tables_as_programs_write_them(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (found,) = read(tmp_path / name)
    assert not found.error
    assert (found.id, found.image.name, found.seed, found.steps, found.n) == ("1", "a.png", 7, 2, 1)


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("j.csv", b"1,a.png,melt it\n", "no column 'id' in its heading"),
        ("j.csv", b"", "has no rows"),
        ("j.jsonl", b"\n  \n", "has no rows"),
        ("j.jsonl", "{}\n".encode("utf-16-le"), "not text in UTF-8"),
        ("j.parquet", b"PAR1", "not a Parquet file"),
    ],
)
def test_an_invalid_job_list_is_a_one_line_error(command, tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    code, told, _ = command(tmp_path / name, tmp_path / "out")
    assert code == 2 and said in told and told.count("\n") == 1


def test_invalid_text_is_an_error_of_its_row(command, photos, tmp_path):
    good = {"id": "a", "image": "0.png", "instruction": "melt it"}
    bad = [{"instruction": "a\ud800"}, {"instruction": "x" * 10_001}, {"image": "\ud800.png"}, {"id": "x" * 5000}]
    lines = [json.dumps(good | {"id": f"b{i}"} | fields).encode() for i, fields in enumerate(bad)]
    lines.append(json.dumps(good | {"id": "l"}).replace("melt", "m\xe9lt").encode("latin-1"))
    (photos / "j.jsonl").write_bytes(b"\n".join(lines))
    code, _, found = command(photos / "j.jsonl", tmp_path / "out")
    told = {line["row"]: line["error"] for line in found}
    assert code == 3 and told[3] is None
    assert "valid Unicode" in told[0] and "10001 characters" in told[1] and "valid Unicode" in told[4] and told[2]


def test_a_truncated_instruction_is_reported(command, photos, tmp_path):
    long = "melt the candle and " * 40 + "freeze the lake"
    code, said, found = command(photos, tmp_path / "out", "--instruction", long)
    assert code == 0 and "truncated 2 texts" in said and long.endswith(found[0]["unread"])
    assert "freeze the lake" in found[0]["unread"]


def test_a_heading_that_is_not_csv(tmp_path):
    for heading in ('"id,image,instruction', "id,image,instruction," + "x" * 200_000):
        (tmp_path / "jobs.csv").write_text(heading + "\na,a.png,melt it\n")
        with pytest.raises(UserError, match="jobs.csv': its heading is not CSV"):
            list(read(tmp_path / "jobs.csv"))


def test_a_row_with_a_repeated_key_is_an_error(tmp_path):
    (tmp_path / "j.jsonl").write_text(
        '{"id": "a", "image": "a.png", "instruction": "melt it", "instruction": "burn it"}'
    )
    assert [row.error for row in read(tmp_path / "j.jsonl")] == ["row 1: not JSON: the key 'instruction' occurs twice"]
