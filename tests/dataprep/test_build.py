"""``data build`` and its review page, with an endpoint of fixed answers and a tiny Stable Diffusion of random
weights."""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

import numpy as np
import pytest
from building import lines, run, url, write_seeds
from PIL import Image

from reasonbrain.data.opening import open_reader
from reasonbrain.dataprep.building import read_seeds
from reasonbrain.dataprep.review import serve
from reasonbrain.dataprep.rows import check_seeds
from reasonbrain.dataprep.split import write_splits
from reasonbrain.dataprep.stages import Settings, answer_of, drop_reason, score_of
from reasonbrain.errors import UserError


def test_content(endpoint, command, tmp_path):
    """Every field of a row, every reason to drop one, then the review and the splits."""
    mask = Image.new("L", (64, 48))
    mask.paste(255, (0, 0, 32, 48))
    candles = [{"id": f"candle-{i}", "prompt": "smoke over a red candle", "category": "causal"} for i in range(4)]
    rows = [
        *candles,
        {"id": "plant", "prompt": "a green plant"},
        {"id": "masked", "prompt": "smoke over a red candle", "category": "physical", "mask": "mask.png"},
        {"id": "lost", "prompt": "x", "image": "lost.jpg"},
        {"id": "silent", "prompt": "nothing at all"},
        {"id": "vague", "prompt": "what is this", "category": "story"},
        {"id": "unsure", "prompt": "smoke"},
        {"id": "turned-down", "prompt": "forbidden"},
    ]
    seeds = write_seeds(tmp_path / "seeds", rows)
    mask.save(seeds.parent / "mask.png")
    built = tmp_path / "built"
    said = run(command(url(endpoint), "--candidates", "3"))
    reasons = {row["id"]: row["reason"] for row in lines(built / "dropped.jsonl") if "image" not in row}
    assert "lost.jpg' does not exist" in reasons["lost"]
    assert reasons["silent"] == "the instruction has 0 characters"
    assert reasons["vague"] == "the instruction names no object"
    assert "against the rules" in reasons["turned-down"]
    assert reasons["unsure"] == "no category in 'I do not know'"
    assert "not reviewed yet: reasonbrain data review" in said and not (built / "train.jsonl").read_text()

    judged = {row["id"]: row for row in lines(built / "judged.jsonl")}
    assert judged.keys() == {"candle-0", "candle-1", "candle-2", "candle-3", "plant", "masked"}
    plant = judged["plant"]
    assert plant["instruction"] == "What would happen if the plant were watered for a month?"
    assert (
        plant["category"] == "temporal" and plant["objects"] == ["plant"] and plant["finder"] in ("textblob", "spacy")
    )
    kept = {name for name, row in judged.items() if "dropped" not in row}
    assert "plant" not in kept and len(kept) > 1
    for row in judged.values():
        scores = [c.get("score", -1) for c in row["candidates"]]
        assert len(scores) == 3 and len({c["seed"] for c in row["candidates"]}) == 3
        for c in row["candidates"]:
            assert (built / c["image"]).exists() and -1 <= c["clip"] <= 1
            assert c["score"] < 7 if "below 7" in c.get("dropped", "") else "score" in c or "no score" in c["dropped"]
        if row["id"] in kept:
            best = next(c for c in row["candidates"] if c["image"] == row["source"])
            assert "dropped" not in best and best["score"] == max(scores) >= 7
            others = [c for c in row["candidates"] if c is not best]
            assert all("dropped" in c for c in others)
        else:
            assert reasons[row["id"]] == "no candidate is left" and max(scores) < 7
    listed = {row["image"] for row in lines(built / "dropped.jsonl") if "image" in row}
    every = {c["image"] for row in judged.values() for c in row["candidates"]}
    assert listed == every - {judged[name]["source"] for name in kept}

    # outside the mask the picture is kept, up to the autoencoder's error; inside, it is generated anew
    before, after = (
        np.asarray(Image.open(built / "pictures/masked" / f"{n}.png")).astype(int) for n in ("target", "0")
    )
    change = np.abs(before - after).mean((0, 2))
    plain = np.asarray(Image.open(built / "pictures/candle-0/0.png")).astype(int)
    assert before.shape == after.shape == plain.shape == (48, 64, 3)
    assert change[40:].mean() < change[:24].mean()

    asked = len(endpoint.asked)
    server = serve(built, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rejected = sorted(kept)[0]
    for name in kept:
        assert post(server, {"id": name, "verdict": "accept"}) == 204
    assert post(server, {"id": rejected, "verdict": "reject"}) == 204
    server.shutdown()
    server.server_close()
    run(command(url(endpoint), "--candidates", "3", "--shares", "1", "0", "0"))
    assert len(endpoint.asked) == asked  # no question is asked twice
    assert {"id": rejected, "reason": "rejected in review"} in lines(built / "dropped.jsonl")
    reader = open_reader("manifest", str(built))
    records = [reader[i] for i in range(len(reader))]
    assert {record.id for record in records} == kept - {rejected}
    assert all(r.source.size == r.target.size == (64, 48) and r.objects and r.captions for r in records)
    assert "was built with candidates=3" in run(command(url(endpoint)), code=2)


def post(server, said, kind="application/json", path="/verdict"):
    address = f"http://127.0.0.1:{server.server_port}{path}"
    request = urllib.request.Request(address, json.dumps(said).encode(), {"Content-Type": kind})
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as e:
        return e.code


def test_review_serves_its_rows_and_nothing_else(tmp_path):
    folder = tmp_path / "pictures" / "a"
    folder.mkdir(parents=True)
    for name in ("target", "0", "1"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    row = {
        "id": "a",
        "instruction": "<b>",
        "category": "story",
        "prompt": "p",
        "objects": [],
        "candidates": [],
        "source": "pictures/a/0.png",
    }
    (tmp_path / "judged.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"id": "b", "dropped": "no"}) + "\n")
    server = serve(tmp_path, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def get(path):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}").read()
        except urllib.error.HTTPError as e:
            return e.code

    assert b"Accept" in get("/") and get("/pictures/a/0.png") == (folder / "0.png").read_bytes()
    assert [get(path) for path in ("/pictures/a/1.png", "/judged.jsonl", "/pictures/../judged.jsonl")] == [404] * 3
    assert [(r["id"], r["verdict"]) for r in json.loads(get("/rows"))] == [("a", None)]
    accept = {"id": "a", "verdict": "accept"}
    assert post(server, accept, kind="text/plain") == post(server, accept | {"id": "b"}) == 400
    assert post(server, accept | {"verdict": "maybe"}) == post(server, [1]) == 400
    assert post(server, accept) == 204
    assert [r["verdict"] for r in json.loads(get("/rows"))] == ["accept"]
    server.shutdown()
    server.server_close()
    assert [(row["id"], row["verdict"]) for row in lines(tmp_path / "review.jsonl")] == [("a", "accept")]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        *[("8", 8), ("10", 10), ("0.", 0), ("**Score: 7**", 7), ("7/10", 7), ("Score: 9 / 10", 9), ("8. Yes, 8.", 8)],
        *[("There are 2 candles. Score: 9", None), ("On a scale from 0 to 10, it is a 9.", None), ("8.5", None)],
        *[("7,5/10", None), ("-3", None), ("11", None), ("90%", None), ("good", None), ("", None)],
    ],
)
def test_a_score_is_the_only_number_of_an_answer(said, score):
    """The first of several need not be the score."""
    assert score_of(said) == score


def test_splits_have_the_shares_of_every_category(tmp_path):
    sizes = {"physical": 200, "temporal": 100, "causal": 40, "story": 7}
    rows = [
        {"id": f"{kind}{i}", "category": kind, "source": "s", "instruction": "i", "prompt": "p", "objects": []}
        for kind, size in sizes.items()
        for i in range(size)
    ]
    assert write_splits(tmp_path, rows, (80, 10, 10)) == {"train": 278, "val": 34, "test": 35}
    found = {name: lines(tmp_path / f"{name}.jsonl") for name in ("train", "val", "test")}
    assert sorted(row["id"] for rows in found.values() for row in rows) == sorted(row["id"] for row in rows)
    assert Counter(row["category"] for row in found["test"]) == {
        "physical": 20,
        "temporal": 10,
        "causal": 4,
        "story": 1,
    }
    assert write_splits(tmp_path, rows[::-1], (80, 10, 10)) and lines(tmp_path / "val.jsonl") == found["val"]


def test_thinking_is_removed_from_answers():
    assert answer_of("<think>a\n</think> What if <think>b</think> it fell? ") == "it fell?"
    assert answer_of("9") == "9"
    start = time.monotonic()
    answer_of("<think>" * 300_000)
    assert time.monotonic() - start < 1


def test_thresholds():
    settings = Settings("m", "p", "c", "alex", min_clip=0.2, min_lpips=0.05, max_lpips=0.7)
    assert (
        drop_reason(0.2, 0.05, settings) is drop_reason(0.9, 0.7, settings) is drop_reason(0.3, None, settings) is None
    )
    said = [drop_reason(*measures, settings) for measures in ((0.1, 0.3), (0.3, 0.01), (0.3, 0.9), (0.1, None))]
    assert ["objects" in said[0], "itself" in said[1], "another" in said[2], "objects" in said[3]] == [True] * 4


@pytest.mark.parametrize("name", ["target.jsonl", "train.jsonl", "dropped.jsonl", "pictures", "settings.json"])
def test_foreign_files_are_never_overwritten(name, command, tmp_path):
    write_seeds(tmp_path / "seeds", [{"id": "a", "prompt": "b"}])
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / name).write_text("{}")
    said = run(command("http://127.0.0.1:9/v1"), code=2)
    assert f"holds '{name}', which this command did not write" in said
    assert (tmp_path / "built" / name).read_text() == "{}"
    assert {p.name for p in (tmp_path / "built").iterdir()} == {name, "lock"}


def test_a_seed_that_has_changed_is_refused(tmp_path):
    seed = {"id": "a", "image": "a.png", "prompt": "smoke", "category": "causal"}
    (tmp_path / "target.jsonl").write_text(json.dumps(seed | {"dropped": "lost"}) + "\n")
    check_seeds(tmp_path, [seed, {"id": "b", "image": "b.png", "prompt": "fire"}])
    for change, said in (
        ({"prompt": "fire"}, "prompt='smoke', not 'fire'"),
        ({"mask": "m.png"}, "mask=None, not 'm.png'"),
    ):
        with pytest.raises(UserError, match=f"seed 'a' was begun with {said}; give it another id"):
            check_seeds(tmp_path, [seed | change])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "../x", "image": "a", "prompt": "b"}', "not a file name"),
        ('{"id": 1, "image": "a"}', "line 1"),
        ('{"id": 1, "image": "a", "prompt": 2}', "line 1: prompt is not text"),
        (
            '{"id": 1, "image": "a", "prompt": "b"}\n{"id": "1", "image": "a", "prompt": "b"}',
            "line 2: id '1' is used twice",
        ),
        ('{"id": 1, "image": "a", "prompt": "b", "category": "sad"}', "'sad' is not one of physical"),
        ("[]", "line 1"),
        ('{"id": 1, "image": "a", "prompt": "b", "prompt": "c"}', "the key 'prompt' occurs twice"),
        ("[" * 100_000, "line 1"),
        ('{"id": 1, "image": "a", "prompt": "\\ud800"}', "line 1: prompt is not text"),
        ('{"id": 1, "image": "a", "prompt": "b", "mask": 5}', "line 1: mask is not text"),
        ('{"id": "%s", "image": "a", "prompt": "b"}' % ("x" * 300), "at most 200 bytes"),
        ("", "contain no seed"),
    ],
)
def test_malformed_seeds(line, said, command, tmp_path):
    write_seeds(tmp_path / "seeds", []).write_text(line)
    assert said in run(command("http://127.0.0.1:9/v1"), code=2)
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_seeds_from_other_programs_are_read(end, tmp_path):
    """JSON may hold U+2028 and U+0085 in its texts as they are, and Windows programs write a byte order mark."""
    seeds = [{"id": name, "image": "a.png", "prompt": "smoke\u2028and\x85fire\x1c"} for name in "ab"]
    text = end.join(json.dumps(seed, ensure_ascii=False) for seed in seeds) + end
    (tmp_path / "seeds.jsonl").write_text(text, encoding="utf-8-sig", newline="")
    assert read_seeds(tmp_path / "seeds.jsonl") == seeds


def test_seeds_that_are_a_pipe_are_not_waited_for(command, tmp_path):
    seeds = write_seeds(tmp_path / "seeds", [])
    seeds.unlink()
    os.mkfifo(seeds)
    assert "seeds.jsonl' are not a file" in run(command("http://127.0.0.1:9/v1"), code=2)
