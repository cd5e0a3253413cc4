"""Built-in benchmarks, and a benchmark from a third-party package."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from packages import install
from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.benchmarks import GROUP, find_benchmark

PUBLISHED = ("editworld", "emu_edit", "instructpix2pix", "kris", "magicbrush", "manifest")
PUBLISHED += ("mgie", "reason50k", "reasonedit", "risebench")

THEIRS = '''
import numpy as np
from PIL import Image

from reasonbrain.data.record import Record
from reasonbrain.eval.evaluation.benchmarks import Benchmark
from reasonbrain.eval.evaluation.metrics import Metric


class Greys:
    """Blue squares that should become grey, each with another brightness."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        notes = {"wanted": str(100 * index), "size": "even" if index % 2 == 0 else "odd"}
        square = Image.new("RGB", (8, 8), "blue")
        return Record(f"grey-{index}", square, None, ["what if it were grey?"], category="physical", notes=notes)


def brightness(case, models):
    return float(abs(np.asarray(case.edit.convert("L"), float).mean() - float(case.record.notes["wanted"])))


class Mine(Benchmark):
    metrics = ("brightness", "L1 to source")
    own_metrics = {"brightness": Metric(brightness, higher_is_better=False, regions=False)}
    groups = ("category", "size")
    compared = 4

    def records(self, data, limit, trained_on=None):
        return Greys(min(int(data), limit or int(data)))

    def baselines(self, pipe, folder, seed):
        black = {"black": lambda record: Image.new("RGB", record.source.size)}
        return super().baselines(pipe, folder, seed) | black
'''


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_benchmarks_name_readers_and_metrics_that_exist(name):
    benchmark = find_benchmark(name)
    assert list(benchmark.select_metrics()) == list(benchmark.metrics)
    assert list(benchmark.select_metrics(judge=True)) == [*benchmark.judged_metrics, *benchmark.metrics]
    with pytest.raises(UserError) as e:
        benchmark.records("nowhere", None)
    assert "nowhere" in str(e.value) and "is not one of" not in str(e.value)


def test_no_other_is_built_in():
    points = [point for point in entry_points(group=GROUP) if point.dist.name == "reasonbrain"]
    assert sorted(point.name for point in points) == sorted((*PUBLISHED, "mini", "mini2"))


def test_a_third_party_package_adds_a_benchmark(tmp_path):
    env = install(tmp_path, "their_benchmark", THEIRS, GROUP, "mine", "their_benchmark:Mine")
    edits = tmp_path / "edits"
    edits.mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (100 * index,) * 3).save(edits / f"grey-{index}.png")
    command = [sys.executable, "-m", "reasonbrain.cli", "eval", "--benchmark", "mine", "--data", "5", "--limit", "3"]
    command += ["--edits", str(edits), "-o", str(tmp_path / "report")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["benchmark"] == "mine" and list(found["metrics"]) == ["brightness", "L1 to source"]
    assert [row["scores"]["edits"]["brightness"] for row in found["records"]] == [0, 0, 0]
    assert [row["scores"]["black"]["brightness"] for row in found["records"]] == [0, 100, 200]
    assert list(found["records"][0]["scores"]) == ["edits", "do nothing", "black"]
    sizes = {table["value"]: table["records"] for table in found["tables"] if table["group"] == "size"}
    assert sizes == {"even": 2, "odd": 1}
