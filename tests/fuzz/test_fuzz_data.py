"""Fuzzed data sets: pictures, manifests, Parquet files and shards."""

import json
import shutil
from pathlib import Path

import layouts
import pytest
from hostile import changed, damaged, examples, jsons, survives, text_of
from hypothesis import given
from hypothesis import strategies as st
from layouts import encoded, picture

ROW = {"id": "r", "category": "causal", "src_image": "images/s.png", "tgt_image": "images/t.png", "instruction": "go"}
ROW |= {"mask": "images/t.png", "target_caption": "gone", "objects": ["ball"]}


def dataset(folder):
    (folder / "d" / "images").mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate("st"):
        picture(seed).save(folder / "d" / "images" / f"{name}.png")
    return folder / "d" / "manifest.jsonl"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_pictures(form, box):
    manifest = dataset(box)
    manifest.write_text(json.dumps(ROW) + "\n")
    whole = encoded(picture(0), form)

    @examples(20)
    @given(st.one_of(damaged(whole, 0, 120), damaged(whole)))
    def fuzz(data):
        (box / "d" / "images" / "s.png").write_bytes(data)
        survives(box / "out", "data", "check", "d", "-o", "out/problems.jsonl")

    fuzz()


def test_manifests(box):
    manifest = dataset(box)

    @examples(60)
    @given(st.lists(jsons(ROW), min_size=1, max_size=3))
    def fuzz(rows):
        manifest.write_bytes(b"\n".join(rows))
        survives(box / "out", "data", "check", manifest, "-o", "out/problems.jsonl")
        survives(box / "out", "data", "show", manifest, "-o", "out/gallery.html")

    fuzz()


@pytest.mark.parametrize(
    ("make", "suffix"), [(layouts.hub, ".parquet"), (layouts.magicbrush, ".parquet"), (layouts.shards, ".tar")]
)
def test_parquet_files_and_shards(make, suffix, box):
    path = make(box / "d")
    file = min((box / "d").rglob("*" + suffix))
    whole = file.read_bytes()
    heads = (len(whole) - 2000, len(whole)) if suffix == ".parquet" else (0, 1500)

    @examples(15)
    @given(st.one_of(damaged(whole, *heads), damaged(whole)))
    def fuzz(data):
        file.write_bytes(data)
        survives(box / "out", "data", "check", path, "-o", "out/problems.jsonl")

    fuzz()


@pytest.mark.parametrize(
    "make", [layouts.kris, layouts.editworld, layouts.risebench, layouts.pix2pix, layouts.magicbrush_test]
)
def test_tables_of_public_layouts(make, box):
    path = make(box / "d")
    file = min((box / "d").rglob("*.json"))
    whole = json.loads(file.read_text())

    @examples(15)
    @given(jsons(whole))
    def fuzz(data):
        file.write_bytes(data)
        survives(box / "out", "data", "check", path, "-o", "out/problems.jsonl")

    fuzz()


def test_scores_of_reasonmini(box):
    survives(box, "data", "mini", "--count", 1, "-o", "m")
    whole = json.loads((box / "m" / "manifest.jsonl").read_text())
    (box / "edits").mkdir()
    shutil.copy(box / "m" / whole["tgt_image"], box / "edits" / f"{whole['id']}.png")

    @examples(30)
    @given(jsons(whole))
    def fuzz(data):
        (box / "m" / "manifest.jsonl").write_bytes(data)
        survives(box / "out", "data", "score", "m", "edits")

    fuzz()


def test_seeds_of_a_build(box):
    picture(0).save(box / "a.png")
    row = {"id": "a", "image": "a.png", "prompt": "a candle", "category": "causal", "mask": "a.png"}
    tools = ["--url", "http://127.0.0.1:9/v1", "--model", "m", "--pipeline", "p"]

    @examples(15)
    @given(st.lists(jsons(row), min_size=1, max_size=2))
    def fuzz(rows):
        (box / "seeds.jsonl").write_bytes(b"\n".join(rows))
        shutil.rmtree(box / "out")
        survives(box / "out", "data", "build", "seeds.jsonl", "-o", "out", *tools)
        Path(box / "out").mkdir(exist_ok=True)

    fuzz()


def test_journals_of_a_build(box):
    """A folder that somebody else has built, or damaged."""
    picture(0).save(box / "a.png")
    (box / "seeds.jsonl").write_text(json.dumps({"id": "a", "image": "a.png", "prompt": "a candle"}))
    tools = ["--url", "http://127.0.0.1:9/v1", "--model", "m", "--pipeline", "p"]
    survives(box / "out", "data", "build", "seeds.jsonl", "-o", "out", *tools)
    settings = json.loads((box / "out" / "settings.json").read_text())
    row = {"id": "a", "image": "a.png", "prompt": "a candle", "instruction": "What if?", "category": "causal"}
    row |= {"objects": ["candle"], "finder": "f", "source": "pictures/a/0.png"}
    row |= {"candidates": [{"image": "pictures/a/0.png", "seed": 1, "clip": 0.5, "lpips": None, "score": 8}]}
    stages = ("target", "instruction", "objects", "sources", "measured", "judged")

    @examples(40)
    @given(st.sampled_from([*stages, "review", "settings"]), st.data())
    def fuzz(name, data):
        for stage in stages:
            (box / "out" / f"{stage}.jsonl").write_bytes(text_of(row) + b"\n")
        (box / "out" / "review.jsonl").write_bytes(text_of({"id": "a", "verdict": "accept"}) + b"\n")
        (box / "out" / "settings.json").write_bytes(text_of(settings))
        if name == "settings":
            (box / "out" / "settings.json").write_bytes(data.draw(jsons(settings)))
        else:
            whole = {"id": "a", "verdict": "accept", "time": 1} if name == "review" else row
            (box / "out" / f"{name}.jsonl").write_bytes(data.draw(jsons(whole)) + b"\n")
        survives(box / "out", "data", "build", "seeds.jsonl", "-o", "out", *tools)

    fuzz()


def test_rows_of_a_table_that_parquet_holds(box):
    """Whole files whose cells are of other types than a data set's."""
    rows = [{"source": {"bytes": encoded(picture(0)), "path": None}, "instruction": "go"}]
    rows[0]["target"] = rows[0]["source"]

    @examples(30)
    @given(changed([{**rows[0], "source": {"bytes": "x", "path": None}, "target": {"bytes": "x", "path": None}}]))
    def fuzz(found):
        try:
            path = layouts.parquet(box / "d" / "train-0.parquet", found)
        except Exception:  # what pyarrow cannot write
            return
        survives(box / "out", "data", "check", path, "--name", "parquet", "-o", "out/problems.jsonl")

    fuzz()
