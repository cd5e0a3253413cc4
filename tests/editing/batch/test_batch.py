"""Batches: a picture depends only on its row, every row is done once, and an invalid row fails alone."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from galleries import Page
from omegaconf import OmegaConf
from PIL import Image

from reasonbrain import cli
from reasonbrain.editing.batch import scheduler as edits
from reasonbrain.editing.batch.editor import picture_path
from reasonbrain.editing.batch.jobs import read
from reasonbrain.editing.batch.rows import INTEGERS, EditRow, parse
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.modules.data.reasonmini import make

WORDS = ["melt it", "what if the sun burnt the whole village down?", "freeze the lake"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures of three sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        make("test", i, size=64).source.resize([(64, 64), (48, 40), (90, 70)][i % 3]).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def rows(pictures):
    return [
        {"id": f"r{i}", "image": str(pictures / f"{i % 6}.png"), "instruction": WORDS[i % 2], "seed": i}
        for i in range(10)
    ]


@pytest.fixture
def command(checkpoint, tmp_path):
    """``command(rows)``: runs `reasonbrain batch` on the rows, with output in tmp_path/out. Returns the exit code,
    stderr and the results."""

    def call(rows, *args, jobs="jobs.jsonl"):
        if rows is not None:
            (tmp_path / jobs).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        out = tmp_path / "out"
        args = ["batch", str(tmp_path / jobs), "-o", str(out), "--checkpoint", str(checkpoint), *args]
        result = CliRunner().invoke(cli.main, [*args, *([] if "--batch-size" in args else ["--batch-size", "4"])])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stderr, lines(out)

    return call


def lines(out):
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def drawn(pipe, rows, batch_size=4, pixels=lambda image: np.asarray(image).astype(int)):
    results = list(pipe.batch(rows, batch_size))
    assert not [r.error for r in results if r.error]
    assert all((r.reasoning is not None) == r.row.reasoning for r in results)
    return {(r.row.id, r.variant): pixels(r.image) for r in results}


def files(out):
    return {p.name: p.read_bytes() for p in (out / "pictures").iterdir()}


def test_a_picture_does_not_depend_on_the_other_rows(pipe, rows, monkeypatch):
    """Bit-identical before pixels are rounded to 8 bits; with another batch size, equal up to rounding."""
    monkeypatch.setattr(edits, "to_pil", lambda pictures: [pictures[0].double().numpy() * 255])
    rows[4]["steps"], rows[7]["reasoning"] = 2, True  # in one batch with others but for these
    whole = drawn(pipe, rows, pixels=np.asarray)
    assert len(whole) == 10 and len({p.tobytes() for p in whole.values()}) == 10
    assert whole["r1", 0].shape == (3, 40, 48)
    for part in (rows[::-1], rows[3:5], rows[7:8], [{**rows[0], "id": "n", "n": 3}, *rows]):
        for key, picture in drawn(pipe, part, pixels=np.asarray).items():
            if key[0] != "n":
                assert (picture == whole[key]).all(), key
    for size in (1, 3):
        others = drawn(pipe, rows, size, pixels=np.asarray)
        assert max(np.abs(picture - whole[key]).max() for key, picture in others.items()) <= 2


def test_a_row_gives_what_the_pipeline_gives(pipe, rows):
    """Variant v is drawn from seed + v, with the ``steps`` and ``size`` of the row."""
    row = {**rows[0], "n": 2, "steps": 2, "size": 32, "seed": 5}
    found = {r.variant: r for r in pipe.batch([row])}
    small = ReasonBrainPipeline.from_model(pipe.model, pipe.settings)
    small.set_progress_bar_config(disable=True)
    assert [found[v].seed for v in (0, 1)] == [5, 6]
    before = pipe.settings.edit.size
    pipe.settings.edit.size = 32
    try:
        for v in (0, 1):
            generator = torch.Generator().manual_seed(5 + v)
            alone = small(row["image"], row["instruction"], generator=generator, num_inference_steps=2).images[0]
            assert np.abs(np.asarray(alone).astype(int) - np.asarray(found[v].image)).max() <= 2
    finally:
        pipe.settings.edit.size = before


def test_variants_count_seeds_up_to_the_last_and_then_from_zero():
    row = parse({**GOOD, "seed": 2**32 - 2, "n": 3}, 0, set())
    assert not row.error and [edits.Result(row, v).seed for v in row.variants] == [2**32 - 2, 2**32 - 1, 0]


def test_the_seconds_of_results_add_up_to_the_time_of_their_batches(pipe, rows, monkeypatch):
    """By a clock that goes on by 1 whenever it is asked: one batch is conditioned in 1 s, and drawn in another."""
    clock = iter(range(1000))
    monkeypatch.setattr(edits.time, "perf_counter", lambda: float(next(clock)))
    results = list(pipe.batch([{**rows[0], "id": i, "n": 1 + (i == 0)} for i in range(3)], 4))
    assert len(results) == 4 and sum(r.seconds for r in results) == pytest.approx(2)


def test_each_part_runs_as_often_as_needed(pipe, pictures, monkeypatch):
    """The conditioning path runs once per row, whatever the steps and variants; what depends on the picture alone is
    computed once per picture."""
    passed = Counter()

    def count(name, value):
        passed[name] += 1
        return value

    handles = [
        pipe.cme.register_forward_hook(lambda *_: passed.update(["conditioned"])),
        pipe.diffusion.transformer.register_forward_hook(lambda *_: passed.update(["denoised"])),
        pipe.encoders.clip.vision_model.register_forward_hook(lambda *_: passed.update(["looked at"])),
        pipe.mllm.model.model.visual.register_forward_hook(lambda *_: passed.update(["seen"])),
    ]
    encode = pipe.diffusion.encode
    monkeypatch.setattr(pipe.diffusion, "encode", lambda images: count("encoded", encode(images)))
    image = str(pictures / "0.png")
    row = {"image": image, "instruction": "melt it", "steps": 3}
    results = list(pipe.batch([{**row, "id": "a", "n": 4}, {**row, "id": "b"}], batch_size=1))
    # instructions of different lengths: different batches, but the same picture
    results += list(pipe.batch([{**row, "id": "a"}, {**row, "id": "b", "instruction": WORDS[1]}], batch_size=1))
    for handle in handles:
        handle.remove()
    assert len(results) == 7
    assert passed == {"conditioned": 4, "denoised": 7 * 3, "encoded": 2, "looked at": 2, "seen": 2}


def test_rows_are_read_as_needed(pipe, rows):
    taken = Counter()

    def endless():
        for i in range(10**6):
            taken["rows"] += 1
            yield {**rows[0], "id": i}

    results = pipe.batch(endless(), batch_size=1)
    assert [next(results).image is not None for _ in range(3)] == [True] * 3
    assert taken["rows"] <= 16


def test_pictures_in_memory(pipe, pictures):
    image = Image.open(pictures / "1.png").convert("RGB")
    turned = image.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6  # says: rotate back
    row = {"instruction": "melt it"}
    given = {"path": str(pictures / "1.png"), "pil": image, "array": np.asarray(image), "turned": turned}
    found = drawn(pipe, [{**row, "id": k, "image": v} for k, v in given.items()])
    for key in given:
        assert (found[key, 0] == found["path", 0]).all(), key
    (bad,) = pipe.batch([{**row, "id": "x", "image": np.zeros((4, 4, 7), np.uint8)}])
    assert "7" in bad.error and bad.image is None


GOOD = {"id": "a", "image": "a.png", "instruction": "melt it"}


@pytest.mark.parametrize("field", INTEGERS)
def test_the_ends_of_a_range_belong_to_it(field):
    for value in INTEGERS[field]:
        assert getattr(parse({**GOOD, field: value}, 0, set()), field) == value
        outside = value + (1 if value == INTEGERS[field][1] else -1)
        assert f"{field} {outside} is not from" in parse({**GOOD, field: outside}, 0, set()).error


@pytest.mark.parametrize(
    "fields, said",
    [
        ([], "row 1 is not a JSON object"),
        ({**GOOD, "id": None}, "no id"),
        ({**GOOD, "id": True}, "id True is not valid Unicode text"),
        ({**GOOD, "id": "a\ud800"}, "is not valid Unicode text"),
        ({**GOOD, "sed": 1}, "unknown field 'sed'"),
        ({**GOOD, "seed": -1}, "seed -1 is not from 0 to 4294967295"),
        ({**GOOD, "seed": "one"}, "seed 'one' is not a whole number"),
        ({**GOOD, "n": 0}, "n 0 is not from 1"),
        ({**GOOD, "steps": True}, "steps 'True' is not a whole number"),
        ({**GOOD, "steps": 1.5}, "steps '1.5' is not a whole number"),
        ({**GOOD, "size": float("inf")}, "size 'inf' is not a whole number"),
        ({**GOOD, "reasoning": "perhaps"}, "reasoning 'perhaps' is neither true nor false"),
        ({**GOOD, "instruction": "  "}, "instruction '  ' is empty"),
        ({**GOOD, "instruction": ["melt it"]}, "instruction ['melt it'] is not text but a list"),
        ({**GOOD, "instruction": "a\0b"}, "instruction"),
        ({"id": "a", "instruction": "melt it"}, "no image"),
        ({**GOOD, "image": 3}, "image 3 is not a path"),
    ],
)
def test_invalid_rows(fields, said):
    row = parse(fields, 0, set())
    assert said in row.error


def test_every_format_gives_the_same_rows(tmp_path):
    given = [
        {**GOOD, "seed": 3, "reasoning": True, "n": 2},
        {"id": "7", "image": "b/ü.png", "instruction": 'a, "quoted"\nline', "steps": 4, "size": 512},
        {**GOOD, "image": "c.png"},
    ]
    (tmp_path / "j.jsonl").write_text("\n".join(map(json.dumps, given)) + "\n\n")
    names = ["id", "image", "instruction", "seed", "reasoning", "n", "steps", "size"]
    with (tmp_path / "j.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(given)
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([dict.fromkeys(names) | g for g in given]), tmp_path / "j.parquet")
    found = [[vars(row) for row in read(tmp_path / f"j.{kind}")] for kind in ("jsonl", "csv", "parquet")]
    assert found[0] == found[1] == found[2]
    assert [r["error"] for r in found[0]] == ["", "", "id 'a' is already used by an earlier row"]
    assert found[0][0]["variants"] == (0, 1) and found[0][0]["reasoning"] is True and found[0][0]["seed"] == 3
    assert found[0][1]["image"] == tmp_path / "b/ü.png"


IDS = [
    "plain",
    "Plain",
    "a/b",
    "a_b",
    "../x",
    "..",
    ".",
    "con",
    "con.txt",
    "x" * 300,
    "x" * 301,
    "é",
    "a b",
    "nul",
    "-x",
]


def test_names_of_pictures_are_safe_and_differ():
    names = [picture_path(EditRow(0, i), 0) for i in IDS]
    names += [picture_path(EditRow(0, "plain", n=2), v) for v in (0, 1)]
    assert len({n.lower() for n in names}) == len(names)
    assert names[0] == "pictures/plain.png"
    for name in names:
        assert re.fullmatch(r"pictures/[\w~@-]+\.png", name) and len(name) < 120
        assert not re.match(r"(con|nul)(\.|$)", name.removeprefix("pictures/"))


def test_invalid_rows_do_not_stop_the_batch(command, rows, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / "0.png").read_bytes()[:200])
    bad = ["no json", "[1]", {**rows[0], "x": 1}, rows[0], {**rows[1], "id": "miss", "image": "no.png"}]
    bad += [{**rows[1], "id": "cut", "image": str(broken)}]
    code, _, found = command([rows[0], *bad, {**rows[1], "id": "../<b>", "n": 2, "reasoning": True}])
    assert code == 3
    status = {(line["row"], line["variant"]): line for line in found}
    assert sorted(status) == [*((i, 0) for i in range(8)), (7, 1)]
    assert [status[i, 0]["status"] for i in range(8)] == ["ok", *["error"] * 6, "ok"]
    assert "does not exist" in status[5, 0]["error"] and "broken.png" in status[6, 0]["error"]
    made = tmp_path / "out" / status[7, 1]["file"]
    with Image.open(made) as picture:
        assert picture.text["id"] == "../<b>" and picture.text["seed"] == "2" and picture.text["variant"] == "1"
        assert picture.text["reasoning"] == status[7, 1]["reasoning"]
        assert picture.text["instruction"] == rows[1]["instruction"]
    assert status[7, 0]["objects"] and status[7, 0]["seconds"] > 0
    shown = Page((tmp_path / "out" / "gallery.html").read_text()).cards
    assert [card["groups"]["status"] for card in shown] == ["failed"] * 6 + ["made"] * 3
    assert shown[-1]["id"] == "../<b>"
    assert [name for name, _ in shown[-1]["pictures"]] == ["source", "result"]
    assert shown[0]["wrong"] == status[1, 0]["error"] and rows[1]["instruction"] in shown[-1]["words"]


def test_the_same_command_resumes(command, rows, tmp_path):
    """A truncated line is removed, a picture without a line and a line without its picture are made again, and finished
    results are not touched."""
    code, _, whole = command(rows)
    out = tmp_path / "out"
    made = files(out)
    assert code == 0 and len(whole) == 10
    text = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(b"".join(text[:6]) + text[6][:30])
    (out / "pictures" / ".0123456789abcdef.tmp").write_bytes(b"half")
    (out / whole[8]["file"]).unlink()
    kept = {line["file"]: (out / line["file"]).stat().st_mtime_ns for line in whole[:6]}
    assert command(rows)[0] == 0
    found = lines(out)
    assert found[:6] == whole[:6] and sorted(r["row"] for r in found) == list(range(10))
    assert files(out) == made
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert command(rows)[2] == found


def test_a_changed_job_is_refused(command, rows, tmp_path, checkpoint):
    command(rows[:1])
    code, said, _ = command(rows[:2])
    assert code == 2 and "jobs" in said and "has changed" in said and said.count("\n") == 1
    code, said, _ = command(rows[:1], "edit.steps=2")
    assert code == 2 and "edit.steps was 1, not 2" in said
    code, said, _ = command(rows[:1], "--batch-size", "2")
    assert code == 2 and "batch_size was 4, not 2" in said
    written = OmegaConf.load(checkpoint / "config.yaml")
    OmegaConf.save({"model": written.model, "edit": {"steps": 2}}, tmp_path / "mine.yaml")
    code, said, _ = command(rows[:1], "--config", str(tmp_path / "mine.yaml"))
    assert code == 2 and "edit.steps was 1, not 2" in said
    (tmp_path / "out" / "run.json").unlink()
    code, said, _ = command(rows[:1])
    assert code == 2 and "no run.json" in said


@pytest.mark.parametrize(
    "jobs, args, said",
    [
        ("no.jsonl", [], "cannot be read: No such file"),
        ("jobs.txt", [], "must be a folder of images or end in one of .jsonl, .csv, .parquet"),
        (".", [], "--instruction"),
        (".", ["--instruction", "melt it"], "has no images"),
    ],
)
def test_invalid_jobs_are_one_line_errors(command, jobs, args, said, tmp_path):
    code, told, _ = command(None, *args, jobs=jobs)
    assert code == 2 and said in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_pictures(command, pictures, tmp_path):
    os.symlink(pictures, tmp_path / "pictures")
    code, _, found = command(None, "--instruction", "melt it", jobs="pictures")
    assert code == 0 and sorted(r["id"] for r in found) == [f"{i}.png" for i in range(6)]


def test_one_command_per_folder(command, rows, tmp_path):
    import fcntl

    command(rows[:1])
    with (tmp_path / "out" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said, _ = command(rows[:1])
    assert code == 2 and "another command" in said


def test_a_full_disk(command, checkpoint, tmp_path):
    """Files are limited to 4 KiB. results.jsonl ends with a complete line, and the command resumes later."""
    bad = [{"id": f"e{i}"} for i in range(40)]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    call = [sys.executable, "-m", "reasonbrain.cli", "batch", str(tmp_path / "jobs.jsonl"), "-o", str(tmp_path / "out")]
    call += ["--checkpoint", str(checkpoint), "--batch-size", "4"]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    limited = ["bash", "-c", 'ulimit -S -f 4; exec "$@"', "bash", *call]
    done = subprocess.run(limited, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be written" in done.stderr and done.stderr.count("error:") == 1
    first = lines(tmp_path / "out")
    assert 5 < len(first) < 20 and (tmp_path / "out" / "results.jsonl").read_bytes().endswith(b"\n")
    code, _, found = command(bad)
    assert code == 3 and found[: len(first)] == first and [r["row"] for r in found] == list(range(40))


@pytest.mark.long
def test_processes_give_the_same_pictures(command, rows, tmp_path, checkpoint):
    """One process, two workers, and two of three launched processes whose batch a single process then completes."""
    command(rows)
    out = tmp_path / "out"
    wanted = files(out)
    out.rename(tmp_path / "alone")
    code, _, found = command(rows, "--workers", "2")
    assert code == 0 and files(out) == wanted and sorted(r["row"] for r in found) == list(range(10))

    out.rename(tmp_path / "two")
    call = [sys.executable, "-m", "reasonbrain.cli", "batch", str(tmp_path / "jobs.jsonl"), "-o", str(out)]
    call += ["--checkpoint", str(checkpoint), "--batch-size", "4"]
    env = {**os.environ, "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(call, env={**env, "RANK": str(r)}, stderr=subprocess.DEVNULL) for r in (0, 1)]
    assert [p.wait() for p in started] == [0, 0]
    assert (out / "gallery.html").exists()
    assert sorted(r["row"] for r in lines(out)) == [i for i in range(10) if i % 3 < 2]
    assert not list(out.glob("results-*"))
    (out / "results-2.jsonl").write_text('{"row": 2, "variant"')  # where the third process was killed
    assert command(rows)[0] == 0
    assert files(out) == wanted and sorted(r["row"] for r in lines(out)) == list(range(10))


@pytest.mark.long
def test_torchrun(command, rows, tmp_path, checkpoint):
    """A failed row does not end the other processes."""
    command([*rows, "no json"])
    out = tmp_path / "out"
    wanted = files(out)
    out.rename(tmp_path / "alone")
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    call += ["reasonbrain.cli", "batch", str(tmp_path / "jobs.jsonl"), "-o", str(out), "--checkpoint", str(checkpoint)]
    done = subprocess.run([*call, "--batch-size", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(out) == wanted and sorted(r["row"] for r in lines(out)) == list(range(11))
    assert not list(out.glob("results-*"))


def test_a_picture_does_not_depend_on_the_workers(command, tmp_path, monkeypatch):
    """Nor on torch's number of threads: sums over another number of threads are rounded differently, which changes a
    few pixels. Uses the embedded default, because the pictures of untrained models have one colour."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    samples = [make("test", i) for i in range(24)]
    for i, sample in enumerate(samples):
        sample.source.save(tmp_path / f"{i}.png")
    rows = [{"id": i, "image": f"{i}.png", "instruction": sample.instruction} for i, sample in enumerate(samples)]
    found = []
    for threads, workers in ((2, 1), (2, 2), (1, 1)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        code, said, _ = command(rows, "--checkpoint", "tiny", "--workers", str(workers), "--batch-size", "8")
        assert code == 0, said
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        found.append(files(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1] == found[2] and len(found[0]) == 24


@pytest.mark.long
def test_ray(command, rows, tmp_path):
    """Ray on this machine completes a batch that another executor began."""
    pytest.importorskip("ray.data")
    code, _, whole = command(rows)
    out = tmp_path / "out"
    wanted = files(out)
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in whole[:3]))
    for line in whole[3:]:
        (out / line["file"]).unlink()
    code, said, found = command(rows, "--executor", "ray", "--workers", "2")
    assert code == 0, said
    assert found[:3] == whole[:3] and sorted(r["row"] for r in found) == list(range(10))
    assert files(out) == wanted
