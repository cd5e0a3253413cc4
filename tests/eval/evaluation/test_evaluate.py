"""`reasonbrain eval` and its report: edits, records, intervals, significance, and the page."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from galleries import Page
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.data.record import Record
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.eval.evaluation import page
from reasonbrain.eval.evaluation.against import Other
from reasonbrain.eval.evaluation.benchmarks import find_benchmark
from reasonbrain.eval.evaluation.edits import Edits, file_stem
from reasonbrain.eval.evaluation.published import AnyManifest
from reasonbrain.eval.evaluation.report import markdown, tables
from reasonbrain.modules.data.reasonmini import benchmark as mini
from reasonbrain.modules.data.reasonmini.store import write_split

MINI = ("eval", "--benchmark", "mini", "--data", "test", "--limit", "8")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The command silences transformers before importing it, but here it is imported already."""
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)


def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def ok(output, *args):
    """Runs a command that must succeed. Returns its report."""
    result = run(*args, "-o", output)
    assert result.exit_code == 0, result.stderr or result.exception
    return json.loads((output / "report.json").read_text())


def refused(*args):
    result = run(*args)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def records():
    return mini.MiniSplits("test", 8)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, records):
    """Edits of another system: the targets with noise that increases from record to record."""
    folder = tmp_path_factory.mktemp("theirs")
    rng = np.random.default_rng(0)
    for i in range(8):
        target = np.asarray(records[i].target).astype(int)
        noisy = (target + rng.integers(-8 * i, 8 * i + 1, target.shape)).clip(0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{records[i].id}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model, settings):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    ReasonBrainPipeline.from_model(model, settings()).save_pretrained(folder)
    return folder


def test_another_systems_edits(theirs, records, tmp_path):
    found = ok(tmp_path, *MINI, "--edits", theirs)
    assert [row["id"] for row in found["records"]] == [records[i].id for i in range(8)]
    assert found["records"][0]["scores"]["edits"]["L1"] == 0
    assert list(found["tables"][0]["scores"]["L1"]["systems"]) == ["edits", "do nothing", "true target"]
    for table in found["tables"]:
        rows = [r for r in found["records"] if table["value"] in ("", r["groups"].get(table["group"]))]
        assert table["records"] == len(rows) > 0
        for score, of in table["scores"].items():
            for system, numbers in of["systems"].items():
                known = [v for r in rows if (v := r["scores"][system][score]) is not None]
                assert numbers["n"] == len(known) and numbers["mean"] == pytest.approx(np.mean(known))
                assert len(known) < 2 or numbers["low"] <= numbers["mean"] <= numbers["high"]
    assert {t["group"] for t in found["tables"]} == {"all", "category", "kind"}


def test_missing_and_unreadable_edits_are_reported_and_not_scored(theirs, records, tmp_path):
    ids = [records[i].id for i in range(8)]
    for name in ids[2:]:
        (tmp_path / f"{name}.png").write_bytes((theirs / f"{name}.png").read_bytes())
    Image.open(theirs / f"{ids[3]}.png").save(tmp_path / f"{ids[3]}.webp", lossless=True)
    (tmp_path / f"{ids[3]}.png").unlink()  # another format
    (tmp_path / f"{ids[4]}.png").write_text("no picture")
    found = ok(tmp_path / "report", *MINI, "--edits", tmp_path)
    assert found["missing"] == ids[:2] and list(found["unreadable"]) == [ids[4]]
    assert [row["id"] for row in found["records"]] == [ids[3 - 1], ids[3], *ids[5:]]
    assert found["tables"][0]["scores"]["L1"]["systems"]["do nothing"]["n"] == 5
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"2 missing, not scored: {ids[0]}, {ids[1]}" in text and f"1 unreadable, not scored: {ids[4]}" in text


def test_edits_of_another_aspect_ratio_are_named(theirs, records, tmp_path):
    """Their scores measure the stretching, too: a system that returns squares for every picture looks bad."""
    ids = [records[i].id for i in range(8)]
    for number, name in enumerate(ids):
        picture = Image.open(theirs / f"{name}.png")
        picture.resize([(64, 64), (128, 64), (128, 128), (65, 64)][number % 4]).save(tmp_path / f"{name}.png")
    found = ok(tmp_path / "report", *MINI, "--edits", tmp_path)
    assert found["stretched"] == [ids[1], ids[5]] and len(found["records"]) == 8
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"2 stretched, since their aspect ratio is not that of the picture they are compared with: {ids[1]}," in text


def test_against_another_report(theirs, records, tmp_path):
    same = ok(tmp_path / "a", *MINI, "--edits", theirs)
    better = tmp_path / "better"
    better.mkdir()
    for i in range(1, 8):
        records[i].target.save(better / f"{records[i].id}.png")
    found = ok(tmp_path / "b", *MINI, "--edits", better, "--against", tmp_path / "a")
    against = found["tables"][0]["scores"]["L1"]["against"]
    by_id = {r["id"]: r["scores"]["edits"]["L1"] for r in same["records"]}
    mean = np.mean([by_id[records[i].id] for i in range(1, 8)])
    assert against["n"] == 7 and against["mean"] == pytest.approx(mean)
    assert against["difference"] == pytest.approx(-mean) and against["low"] < -mean < against["high"] < 0
    assert against["p"] == pytest.approx(2 / 2**7) and against["holm"] > against["p"]
    assert "against" in (tmp_path / "b" / "report.html").read_text()
    itself = ok(tmp_path / "c", *MINI, "--edits", theirs, "--against", tmp_path / "a")
    assert {s["against"]["p"] for s in itself["tables"][0]["scores"].values()} == {1.0}


@pytest.mark.parametrize("part", ["source", "target", "mask", "instruction"])
def test_a_report_of_other_records_is_not_compared_with(part, tmp_path):
    """Records that have the same ids and have changed since, and records with other ids."""
    data, edits = tmp_path / "data", tmp_path / "edits"
    edits.mkdir()

    def write(name, instruction="go", **values):
        data.mkdir(exist_ok=True)
        for key in ("source", "target", "mask"):
            Image.new("RGB", (16, 16), (values.get(key, 255),) * 3).save(data / f"{key}.png")
        row = {key: f"{key}.png" for key in ("source", "target", "mask")}
        (data / "manifest.jsonl").write_text(json.dumps({"id": name, "instruction": instruction, **row}))
        Image.new("RGB", (16, 16)).save(edits / f"{name}.png")

    words = ("eval", "--benchmark", "manifest", "--data", data, "--metric", "L1", "--edits", edits)
    write("a")
    ok(tmp_path / "a", *words)
    ok(tmp_path / "b", *words, "--against", tmp_path / "a")
    write("a", **{part: "stay" if part == "instruction" else 0})
    said = refused(*words, "--against", tmp_path / "a", "-o", tmp_path / "c")
    assert said == f"error: --against '{tmp_path}/a' is of other data: its record 'a' has other content\n"
    write("b")
    said = refused(*words, "--against", tmp_path / "a", "-o", tmp_path / "c")
    assert said == f"error: --against '{tmp_path}/a' has none of these 1 records\n"


def test_the_same_command_writes_the_same_bytes(theirs, tmp_path):
    for name in ("a", "b"):
        ok(tmp_path / name, *MINI, "--edits", theirs, "--seed", "3")
    for suffix in ("json", "md", "html"):
        assert (tmp_path / "a" / f"report.{suffix}").read_bytes() == (tmp_path / "b" / f"report.{suffix}").read_bytes()


def test_edits_are_made_once(checkpoint, tmp_path):
    """An existing edit is reused; a missing one is made with the same result as in the first run."""
    command = ("eval", "--benchmark", "mini", "--data", "test", "--checkpoint", checkpoint)
    first = ok(tmp_path, *command, "--limit", "2")
    kept = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "edits").glob("*.png")}
    assert len(kept) == 2
    lost = sorted(kept)[1]
    lost.unlink()
    again = ok(tmp_path, *command, "--limit", "3")
    assert len(list((tmp_path / "edits").glob("*.png"))) == len(again["records"]) == 3
    assert lost.read_bytes() == kept[lost][0]
    assert sorted(kept)[0].stat().st_mtime_ns == kept[sorted(kept)[0]][1]
    assert again["records"][:2] == first["records"]
    assert again["config"]["edit"]["steps"] == 3

    assert "another seed: 0, not 1" in refused(*command, "-o", tmp_path, "--seed", "1")
    assert "another edit:" in refused(*command, "-o", tmp_path, "edit.steps=2")


def test_edits_of_a_model_with_other_weights_are_refused(model, settings, tmp_path, records):
    pipe = ReasonBrainPipeline.from_model(model, settings())
    Edits(tmp_path, pipe)
    part = next(iter(pipe.model.parts.values()))
    tensor = next(iter(part.parameters()))
    kept = tensor.data.clone()
    tensor.data.flatten()[0] += 1e-3
    try:
        with pytest.raises(Exception, match="another weights"):
            Edits(tmp_path, pipe)
    finally:
        tensor.data.copy_(kept)
    Edits(tmp_path, pipe)


@pytest.mark.parametrize(
    "name", ["a/b", "../../up", "/root", "..", "a\\b", "white space", "ünï 1.0", "a%2Fb", "x" * 40]
)
def test_any_id_gives_one_file_in_the_folder(name, tmp_path):
    folder = tmp_path / "edits"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / f"{file_stem(name)}.png")
    edits = Edits(folder)
    assert edits.find(name).resolve().parent == folder.resolve()
    assert edits(Record(name, Image.new("RGB", (4, 4)), None, ["x"])).size == (4, 4)
    assert file_stem("a/b") != file_stem("a%2Fb")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split") / "mini"
    write_split("test", 4, 3, folder)
    edits = folder / "edits"
    edits.mkdir()
    for path in (folder / "images").glob("*_src.png"):
        Image.open(path).save(edits / f"{path.name.removesuffix('_src.png')}.png")
    return folder


@pytest.fixture
def on_manifest(split, parts, monkeypatch):
    """The benchmark ``manifest`` with the tiny CLIP, and with a DINO that does not exist."""
    for name, value in (
        ("metrics", ("L1", "CLIP-I", "DINO")),
        ("clip", str(parts / "clip")),
        ("dino", "no/where/here"),
    ):
        monkeypatch.setattr(AnyManifest, name, value)
    return ("eval", "--benchmark", "manifest", "--data", split / "manifest.jsonl", "--edits", split / "edits")


def test_a_network_that_cannot_be_loaded_is_reported(on_manifest, parts, tmp_path):
    found = ok(tmp_path, *on_manifest)
    assert list(found["unavailable"]) == ["DINO"] and found["networks"] == {"clip": str(parts / "clip")}
    assert {"L1", "CLIP-I"} <= set(found["tables"][0]["scores"]) and "DINO" not in found["tables"][0]["scores"]
    assert "not available: DINO (dino 'no/where/here' cannot be loaded" in (tmp_path / "report.md").read_text()
    nothing = found["tables"][0]["scores"]["CLIP-I"]["systems"]  # the edits are the sources
    assert nothing["edits"] == nothing["do nothing"]
    assert "metric 'DINO': dino 'no/where/here'" in refused(*on_manifest, "--metric", "dino", "-o", tmp_path)
    assert "--dino: dino 'no/where/again'" in refused(*on_manifest, "--dino", "no/where/again", "-o", tmp_path)


def test_a_network_that_no_metric_uses_is_an_error(on_manifest, parts, tmp_path):
    said = refused(*on_manifest, "--metric", "ssim", "--clip", parts / "clip", "-o", tmp_path)
    assert "--clip: no metric of this evaluation (SSIM) uses it" in said


def test_metrics_by_name(on_manifest, tmp_path):
    found = ok(tmp_path, *on_manifest, "--metric", "ssim", "--metric", "l1 to source")
    assert list(found["metrics"]) == ["SSIM", "L1 to source"]
    assert found["tables"][0]["scores"]["L1 to source"]["systems"]["edits"]["mean"] == 0


def test_mistakes_are_one_line(theirs, split, tmp_path):
    (tmp_path / "empty").mkdir()
    out = ("-o", tmp_path / "out")
    wrong = {
        ("eval", "--benchmark", "maxi", *out): "benchmark 'maxi' is not one of editworld, emu_edit, ",
        ("eval", "--benchmark", "mini", "--data", "train", *out): "data 'train' is not a split of ReasonMini",
        ("eval", "--benchmark", "manifest", *out): "--data: the benchmark needs",
        ("eval", "--benchmark", "manifest", "--data", "nowhere", *out): "manifest 'nowhere' does not exist",
        (*MINI, "--edits", tmp_path / "none", *out): "the folder does not exist",
        (*MINI, "--edits", tmp_path / "empty", *out): "none of the 8 records has a readable picture",
        (*MINI, "--edits", theirs, "--metric", "beauty", *out): "metric 'beauty' is not one of L1, ",
        (*MINI, "--edits", theirs, "--against", tmp_path / "empty", *out): "has no report.json",
        (*MINI, "--edits", theirs, "--checkpoint", "tiny", *out): "are from another system: omit",
        (*MINI, "--config", "reasonbrain_flux_qwen", *out): "needs --checkpoint",
    }
    for args, said in wrong.items():
        assert said in refused(*args)


def test_pictures_are_not_cropped(tmp_path):
    """Pictures may have any size, as the edits may come from another system."""
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 131, 3), dtype=np.uint8))
    wide.save(tmp_path / "a.png")
    row = {"id": "a", "src_image": "a.png", "tgt_image": "a.png", "instruction": "what if"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    record = find_benchmark("manifest").records(str(tmp_path / "m.jsonl"), 1)[0]
    assert record.source.tobytes() == record.target.tobytes() == wide.tobytes()


def test_records_with_and_without_a_mask():
    def row(name, **scores):
        return {"id": name, "groups": {}, "scores": {"edits": scores, "do nothing": scores}}

    rows = [row("a", L1=0.1), row("b", **{"L1": 0.3, "L1 inside": 0.5, "L1 outside": None})]
    found = {"records": rows, "seed": 0, "metrics": {"L1": False}}
    (table,) = tables(found, (), Other("x", None, {"b": {"L1 inside": 0.4}}, {}))
    n = {score: of["systems"]["do nothing"]["n"] for score, of in table["scores"].items()}
    assert n == {"L1": 2, "L1 inside": 1, "L1 outside": 0}
    assert [of["against"]["n"] for of in table["scores"].values()] == [0, 1, 0]
    assert not table["scores"]["L1 outside"]["higher_is_better"]


HOSTILE = """<script>alert(1)</script> "quoted" 'so' & </article> {{ 7 * 7 }} | `x`"""


def test_the_page(theirs, tmp_path):
    found = ok(tmp_path, *MINI, "--edits", theirs)
    shown = Page((tmp_path / "report.html").read_text())
    worst = page.worst_first(found["records"], found["metrics"])
    assert [card["scores"] for card in shown.cards] == [row["scores"]["edits"] for row in worst]
    assert [card["groups"] for card in shown.cards] == [row["groups"] for row in worst]
    assert [name for name, _ in shown.cards[0]["pictures"]] == ["source", "target", str(theirs)]
    assert shown.better["outcome"] and not shown.better["L1 inside"]
    assert f"{found['tables'][0]['scores']['L1']['systems']['edits']['mean']:.4g}" in " ".join(shown.text)


def test_texts_are_escaped(theirs, records, tmp_path):
    found = ok(tmp_path, *MINI, "--edits", theirs)
    found["records"][0] |= {"instruction": HOSTILE, "id": HOSTILE}
    found["records"][0]["groups"]["category"] = HOSTILE
    found["tables"][1]["value"] = HOSTILE
    found["missing"] = [HOSTILE]
    pieces = page.page(found, [HOSTILE], [(HOSTILE, [[HOSTILE], [HOSTILE]])], records, Edits(theirs), None)
    shown = Page("".join(pieces))
    assert sum(text == HOSTILE for text in shown.text) == 4  # the note, the heading, two cells
    (card,) = (card for card in shown.cards if card["id"] == HOSTILE)
    assert card["words"] == [HOSTILE] and card["groups"]["category"] == HOSTILE
    assert "<script" not in markdown(found, None)


def test_worst_first():
    def row(name, category, **scores):
        return {"id": name, "groups": {"category": category}, "scores": {"edits": scores}}

    rows = [row("good", "x", up=1.0, down=0.1), row("bad", "y", up=0.0, down=0.1), row("worse", "x", up=0.0, down=0.3)]
    rows += [row("unknown", "x", up=None, down=0.0), row("middle", "y", up=0.5, down=0.9)]
    shown = page.worst_first(rows, {"up": True, "down": False})
    assert [r["id"] for r in shown] == ["worse", "bad", "middle", "good", "unknown"]
    many = [row(str(i), "x" if i % 2 else "y", up=float(i), down=0.0) for i in range(500)]
    assert [r["id"] for r in page.worst_first(many, {"up": True, "down": False})] == [str(i) for i in range(200)]


def test_there_is_a_table_for_each_value_of_a_group_that_has_several():
    rows = [
        {"id": str(i), "groups": {"category": c, "task": "one"}, "scores": {"edits": {"L1": float(i)}}}
        for i, c in enumerate(["a", "b", "a", ""])
    ]
    for count, expected in ((1, [("all", "", 1)]), (2, [("all", "", 2), ("category", "a", 1), ("category", "b", 1)])):
        made = tables({"records": rows[:count], "seed": 0, "metrics": {"L1": False}}, ("category", "task"), None)
        assert [(table["group"], table["value"], table["records"]) for table in made] == expected
    made = tables({"records": rows, "seed": 0, "metrics": {"L1": False}}, ("category",), None)
    means = {table["value"]: table["scores"]["L1"]["systems"]["edits"]["mean"] for table in made}
    assert means == {"": 1.5, "a": 1, "b": 1, "none": 3}
