"""ReasonMini as a training set: its records, the frequency of kinds, its validation split, its vocabulary."""

from collections import Counter

import pytest

from reasonbrain.config.loading import load_config, make_config
from reasonbrain.data.opening import identity, open_data, open_records, open_validation
from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini import ReasonMini, find_kind, kinds, make


def test_without_turns_the_records_are_the_training_split():
    records = ReasonMini(count=40)
    assert len(records) == 40
    for i in (0, 7, 39):
        sample = make("train", i)
        assert records[i].source.tobytes() == sample.source.tobytes() and sample.instruction in records[i].instructions


def test_a_kind_occurs_as_often_as_its_turns_say():
    first, second, third = (kind.name for _, kind in kinds()[:3])
    records = ReasonMini(turns={first: 3, second: 0})
    assert Counter(records.order)[first] == 3 and second not in records.order and Counter(records.order)[third] == 1
    told = {i: set(records[i].instructions) for i in range(4)}
    phrasings = {name: find_kind(name)[1].phrasings for name in (first, third)}
    assert all(len(told[i]) == len(phrasings[name]) for i, name in enumerate([first] * 3 + [third]))
    pictures = [records[i].source.tobytes() for i in range(3)]
    assert len(set(pictures)) == 3  # three records, not one thrice


def test_cropping_leaves_its_pictures_unchanged():
    """Training goes through CutRecords with every data set."""
    records = open_records(load_config("tiny", ["data.count=300"]).data, 8)
    assert records.sizes == [(64, 64)] * 300
    record, drawn = records[260], records.source[260]
    assert record.source.tobytes() == drawn.source.tobytes() and record.target.tobytes() == drawn.target.tobytes()
    assert (record.id, record.objects) == (drawn.id, drawn.objects)


def test_other_splits():
    cfg = load_config("tiny", ["data.count=3", "data.seed=5"]).data
    records = open_validation(cfg)
    assert [records[i].id for i in range(len(records))] == [f"val-5-{i:06d}" for i in range(3)]
    paraphrased = open_data(load_config("tiny", ["data.split=paraphrase"]).data)[0]
    assert paraphrased.id == "paraphrase-0-000000" and len(paraphrased.instructions) == len(kinds()[0][1].paraphrases)
    assert not set(paraphrased.instructions) & set(open_data(cfg)[0].instructions)


def test_the_vocabulary_is_that_of_the_training_instructions():
    """Of the first records only, whatever a run trains on, so that the replacement words stay the same."""
    words = ReasonMini(seed=3, turns={"tap_left_open": 0}).vocabulary()
    assert len(words) == 954 and list(words) == sorted(set(words))
    assert set(make("train", 17).instruction.split()) <= set(words)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"turns": {"seesaw_flies": 2}}, "data.turns: ReasonMini has no kind 'seesaw_flies'; choose.*seesaw_released"),
        ({"turns": {"seesaw_released": -1}}, "data.turns.seesaw_released: must be 0 or more, not -1"),
        ({"turns": {kind.name: 0 for _, kind in kinds()}}, "data.turns: at least one kind must be above 0"),
        ({"count": 0}, "data.count: must be 1 or more, not 0"),
        ({"seed": -1}, "data.seed: must be from 0 to 4294967295, not -1"),
        ({"split": "tests"}, "data.split: 'tests' is not one of train, val"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(UserError, match=message):
        ReasonMini(**given)


def test_its_identity_includes_all_that_its_records_depend_on():
    def of(*overrides):
        return identity(make_config({"data": {"name": "mini"}}, overrides).data)

    same = ["data.seed=0", "data.count=20000", "data.skip_bad=true", "data.validation=x", "data.given_objects=0.5"]
    assert of(*same) == of()
    for other in ("data.seed=1", "data.count=7", "data.size=32", "data.split=val", "data.turns.tap_left_open=2"):
        assert of(other) != of()
