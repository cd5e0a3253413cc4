"""Batches: the sentences of the records."""

import json

import layouts
import pytest

from reasonbrain.errors import UserError
from reasonbrain.train.batches import Batches
from reasonbrain.train.feature_cache import FeatureCache


def manifest(folder, sentences):
    path = layouts.manifest(folder)
    rows = [json.loads(line) for line in open(path)]
    for row, said in zip(rows, sentences, strict=True):
        row |= {"sentence": said} if said else {}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.path={path}", "data.name=manifest", "train.batch_size=3"]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("sentences", [["one", "two", "three"], ["one", "", "three"]])
def test_sentences_are_the_records_or_the_mllms(settings, model, tmp_path, sentences, cached):
    """Those of the records if all have one; also from a folder of features."""
    overrides = manifest(tmp_path / "data", sentences)
    if cached:
        FeatureCache(settings(*overrides), model).write(tmp_path / "features")
        overrides.append(f"data.features={tmp_path / 'features'}")
    batches = Batches(settings(*overrides), model)
    inputs = batches(0)[0]
    said = dict(zip((f"What if number {i} fell?" for i in range(3)), sentences, strict=True))
    expected = [said[text] for text in inputs.instructions]
    assert inputs.sentences == (expected if all(expected) else None)


def test_a_sentence_to_learn_that_is_not_there(settings, model, tmp_path, monkeypatch):
    """An MLLM that generated its own would learn nothing."""
    overrides = manifest(tmp_path / "data", ["one", "", "three"])
    batches = Batches(settings(*overrides), model)
    monkeypatch.setattr(type(model.slot("mllm")), "reads_sentence", True)
    with pytest.raises(UserError, match="record 'r1' has no 'sentence'"):
        batches(0)
