"""Scores of edits: targets pass, sources hardly, and wrong, missing or broken edits fail."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini.score import score
from reasonbrain.modules.data.reasonmini.store import read_manifest, write_split
from reasonbrain.modules.data.reasonmini.world import CATEGORIES, find_kind, kinds

COUNT = 2 * len(kinds())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini") / "test"
    write_split("test", COUNT, 7, folder)
    return folder


@pytest.fixture(scope="module")
def records(folder):
    return list(read_manifest(folder))


@pytest.fixture
def truth(folder, records, tmp_path):
    """A folder of edits that equal the targets."""
    edits = tmp_path / "edits"
    edits.mkdir()
    for r in records:
        shutil.copy(folder / r["tgt_image"], edits / f"{r['id']}.png")
    return edits


def redraw(edits, records, picture):
    """Replaces each edit by ``picture(record, old edit)``."""
    for r in records:
        path = edits / f"{r['id']}.png"
        with Image.open(path) as old:
            picture(r, old.convert("RGB")).save(path)


def test_truth_sources_and_targets(folder, truth):
    result = score(folder, truth)
    assert (result["count"], result["missing"], result["broken"]) == (COUNT, 0, 0)
    for system in ("edits", "targets"):
        assert result[system]["passed"] == 1
        assert result[system]["by_category"] == dict.fromkeys(CATEGORIES, 1)
        assert result[system]["by_kind"] == {k.name: 1 for _, k in kinds()}
        assert result[system]["error_inside"] == result[system]["error_outside"] == 0
    assert result["sources"]["passed"] < 0.05
    assert result["sources"]["error_inside"] > 0.2
    assert result["sources"]["error_outside"] < 0.001


def test_the_sources_as_edits_score_as_the_sources(folder, records, truth):
    redraw(truth, records, lambda r, _: Image.open(folder / r["src_image"]))
    result = score(folder, truth)
    assert result["edits"] == result["sources"]


def test_the_outcome_of_another_kind_fails(folder, records, truth):
    def sibling(record, old):
        scene, kind = find_kind(record["kind"])
        other = next((k for k in scene.kinds if k is not kind), None)
        return scene.render(other.after(record["params"])) if other else old

    redraw(truth, records, sibling)
    by_kind = score(folder, truth)["edits"]["by_kind"]
    for scene, kind in kinds():
        assert by_kind[kind.name] == (0 if len(scene.kinds) > 1 else 1), kind.name


def test_shares_are_counted_by_category_and_kind(folder, records, truth):
    wrong = [r for r in records if r["category"] == "story"][1:4]
    redraw(truth, wrong, lambda r, _: Image.new("RGB", (64, 64)))
    result = score(folder, truth)["edits"]
    stories = sum(r["category"] == "story" for r in records)
    assert result["passed"] == round(1 - 3 / COUNT, 4)
    assert result["by_category"] == {**dict.fromkeys(CATEGORIES, 1), "story": round(1 - 3 / stories, 4)}
    expected = Counter(r["kind"] for r in wrong)
    assert result["by_kind"] == {k.name: 1 - expected[k.name] / 2 for _, k in kinds()}


@pytest.mark.parametrize("region", ["inside", "outside"])
def test_errors_are_measured_against_the_mask(folder, records, truth, region):
    def off(record, old):
        """Shifts every channel of the region by 51 of 255."""
        pixels = np.asarray(old).astype(int)
        mask = np.asarray(Image.open(folder / record["mask"])) > 127
        where = mask if region == "inside" else ~mask
        pixels[where] += np.where(pixels[where] > 127, -51, 51)
        return Image.fromarray(pixels.astype(np.uint8))

    redraw(truth, records, off)
    result = score(folder, truth)["edits"]
    assert result[f"error_{region}"] == pytest.approx(0.2, abs=1e-4)
    assert result["error_outside" if region == "inside" else "error_inside"] == 0


def test_errors_are_a_mean_over_records_not_pixels(folder, records, truth):
    """A record that is wrong everywhere counts as one record, however small its mask is."""
    sizes = [(np.asarray(Image.open(folder / r["mask"])) > 127).mean() for r in records]
    smallest = records[int(np.argmin(sizes))]
    redraw(truth, [smallest], lambda r, old: Image.eval(old, lambda v: v - 51 if v > 127 else v + 51))
    assert score(folder, truth)["edits"]["error_inside"] == pytest.approx(0.2 / COUNT, abs=1e-4)


def test_missing_and_broken_edits_fail_and_are_counted(folder, records, truth):
    names = [truth / f"{r['id']}.png" for r in records]
    for path in names[:3]:
        path.unlink()
    names[3].write_bytes(names[3].read_bytes()[:100])
    names[4].write_bytes(b"")
    names[5].write_text("not a picture")
    result = score(folder, truth)
    assert (result["count"], result["missing"], result["broken"]) == (COUNT, 3, 3)
    assert result["edits"]["passed"] == round(1 - 6 / COUNT, 4)
    assert result["edits"]["error_inside"] == 0, "what cannot be read has no error"
    assert result["targets"]["passed"] == 1


def test_only_broken_edits(folder, records, tmp_path):
    (tmp_path / f"{records[0]['id']}.png").write_text("not a picture")
    result = score(folder, tmp_path)
    assert (result["missing"], result["broken"]) == (COUNT - 1, 1)
    assert result["edits"]["passed"] == 0
    assert result["edits"]["error_inside"] is result["edits"]["error_outside"] is None


@pytest.mark.parametrize("size", [(192, 192), (256, 128)])
def test_edits_of_another_size_are_resized(folder, records, truth, size):
    redraw(truth, records, lambda r, old: old.resize(size, Image.Resampling.BICUBIC))
    result = score(folder, truth)["edits"]
    assert result["passed"] == 1
    assert 0 < result["error_inside"] < 0.02


def test_the_result_is_json_with_four_decimals(folder, truth):
    result = score(folder, truth)
    assert json.loads(json.dumps(result)) == result
    numbers = [v for s in ("edits", "sources") for v in result[s].values() if isinstance(v, float)]
    assert numbers and all(round(v, 4) == v for v in numbers)


def test_no_edit_at_all(folder, records, tmp_path):
    (tmp_path / "other.png").write_bytes(b"")
    for edits in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"no edit in .*{records[0]['id']}.png"):
            score(folder, edits)


def test_not_a_folder_of_reason_mini(folder, records, truth, tmp_path):
    with pytest.raises(UserError, match="manifest.jsonl"):
        score(tmp_path / "nowhere", truth)
    (tmp_path / "manifest.jsonl").write_text("")
    with pytest.raises(UserError, match="has no record"):
        score(tmp_path, truth)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**records[0], "kind": "candle_sings"}))
    with pytest.raises(UserError, match="no kind 'candle_sings'"):
        score(tmp_path, truth)
    (tmp_path / "manifest.jsonl").write_text(json.dumps(records[0]))
    with pytest.raises(UserError, match=f"{records[0]['id']}_src.png"):
        score(tmp_path, truth)
