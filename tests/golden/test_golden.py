"""Results equal the golden values: bit-identical on the machine that recorded them, within tolerances on others.

pytest tests/golden -m "not long"    # the tolerances, and how to record: see record.py
"""

import copy
import json

import pytest
import record
from PIL import Image, ImageChops

LONG = ("train", "zero2", "zero3")
OTHER = {"cpu": "another"}


@pytest.mark.parametrize("part", [pytest.param(p, marks=[pytest.mark.long] * (p in LONG)) for p in record.PARTS])
def test_results_equal_the_golden_values(part, tmp_path):
    if part.startswith("zero"):
        pytest.importorskip("deepspeed")
    assert record.differences(part, *record.PARTS[part](tmp_path)) == []


@pytest.fixture
def golden():
    return json.loads(record.VALUES.read_text())


def changed(values, way, to):
    """A copy in which the value at ``way`` is replaced by ``to``, or by ``to(value)``."""
    values = copy.deepcopy(values)
    *path, last = way
    at = values
    for key in path:
        at = at[key]
    at[last] = to(at[last]) if callable(to) else to
    return values


def test_all_kinds_and_all_steps_are_recorded(golden):
    assert len(golden["edits"]) == 33 and all(v["reasoning"] for v in golden["edits"].values())
    assert [line["status"] for line in golden["batch"].values()].count("error") == 1 and len(golden["batch"]) == 10
    assert all(golden[p]["step"] == list(range(1, 21)) for p in ("train", *LONG))


@pytest.mark.parametrize(
    "part, way, to, elsewhere",
    [
        ("edits", ("ice_melts", "pixels sha"), "0", True),
        ("edits", ("ice_melts", "focus sha"), None, False),
        ("edits", ("ice_melts", "reasoning"), lambda x: x + "!", False),
        ("edits", ("ice_melts", "objects"), [], False),
        ("batch", ("ice_melts@0", "size"), [64, 64], False),
        ("eval", ("SSIM", "edits"), lambda x: x - 0.015, True),
        ("eval", ("SSIM", "edits"), lambda x: x - 0.03, False),
        ("train", ("loss", 19), lambda x: x * 1.005, True),
        ("train", ("loss", 19), lambda x: x * 1.02, False),
        ("train", ("norm", 19), lambda x: x * 1.04, True),
        ("train", ("norm", 19), lambda x: x * 1.06, False),
        ("train", ("loss", 19), float("nan"), False),
        ("train", ("loss",), lambda x: x[:-1], False),
        ("zero3", ("checkpoint sha",), "0", True),
    ],
)
def test_a_changed_value_is_detected(golden, part, way, to, elsewhere):
    """On this machine every change; on another machine changes beyond the tolerance."""
    values = changed(golden[part], way, to)
    assert record.differences(part, golden[part], {}, OTHER) == []
    assert record.differences(part, golden[part], {}, golden["fingerprint"]) == []
    (line,) = record.differences(part, values, {}, golden["fingerprint"])
    assert line.startswith(f"{part}/{way[0]}")
    assert (record.differences(part, values, {}, OTHER) == []) == elsewhere


@pytest.mark.parametrize("part", ["edits", "batch"])
@pytest.mark.parametrize("levels, elsewhere", [(0, True), (1, True), (3, False)])
def test_a_changed_picture_is_detected(golden, part, levels, elsewhere):
    sizes = {name: Image.new("RGB", v["size"]) for name, v in golden[part].items() if "size" in v}
    with Image.open(record.HERE / f"{part}.png") as made:
        pictures = {name: made.crop(box) for name, box in record.cells(sizes)}
    pictures = {n: ImageChops.add(p, Image.new("RGB", p.size, (levels,) * 3)) for n, p in pictures.items()}
    assert (record.differences(part, golden[part], pictures, OTHER) == []) == elsewhere
    assert (record.differences(part, golden[part], pictures, golden["fingerprint"]) == []) == (levels == 0)
