"""ReasonMini 2 as a data set, as a benchmark, and on disk."""

import json
import shutil

import pytest

from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.metrics import Case
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.modules.data.reasonmini.score import score
from reasonbrain.modules.data.reasonmini.store import read_manifest, write_split
from reasonbrain.modules.data.reasonmini2.benchmark import TESTED, Mini2Splits, outcome_check
from reasonbrain.modules.data.reasonmini2.dataset import ReasonMini2
from reasonbrain.modules.data.reasonmini2.world import draw, make


def test_a_record_has_all_wordings_that_fit():
    data = ReasonMini2(count=50, seed=2)
    record, sample = data[4], make("train", 4, 2)
    assert len(data) == 50 and record.source.size == data.shape(4) == (128, 128)
    assert list(record.instructions) == list(data.instructions(4)) == sample.instructions
    assert record.target.tobytes() == sample.target.tobytes() and record.objects == sample.objects
    assert set(" ".join(draw("train", 4, 2)[3][:20]).split()) <= set(data.vocabulary())
    assert ReasonMini2.validation(count=3) == {"count": 3, "split": "val"}


@pytest.mark.parametrize("given", [{"split": "tset"}, {"count": 0}, {"seed": -1}])
def test_refuses(given):
    with pytest.raises(UserError, match=next(iter(given))):
        ReasonMini2(**given)


def test_the_benchmark_scores_the_target_and_not_the_source():
    records = Mini2Splits(None, 2)
    assert len(records) == 2 * len(TESTED)
    for index, split in enumerate(TESTED):
        record = records[2 * index + 1]
        assert record.notes["split"] == split
        for edit, expected in ((record.target, 1), (record.source, 0)):
            assert outcome_check(Case(record, edit, record.source, record.target, None), Models()) == expected
    with pytest.raises(UserError, match="'train' is not a split"):
        Mini2Splits("train", 2)


def test_scores_on_disk(tmp_path):
    write_split("pair", 8, 3, tmp_path / "mini", version=2)
    edits = tmp_path / "edits"
    edits.mkdir()
    records = list(read_manifest(tmp_path / "mini"))
    for number, record in enumerate(records):
        shutil.copy(
            tmp_path / "mini" / record["src_image" if number < 2 else "tgt_image"], edits / f"{record['id']}.png"
        )
    result = score(tmp_path / "mini", edits)
    assert result["edits"]["passed"] == 0.75 and result["targets"]["passed"] == 1 and result["sources"]["passed"] == 0

    manifest = tmp_path / "mini" / "manifest.jsonl"
    for broken, message in (
        ({"version": 3}, "version 3"),
        ({"kind": "candle.tall.sing"}, "no kind"),
        ({"params": {}}, "params"),
    ):
        manifest.write_text(json.dumps(records[0] | broken) + "\n")
        with pytest.raises(UserError, match=message):
            score(tmp_path / "mini", edits)
