"""ReasonMini as a data set to train on: which kinds take their turn, its splits, and values out of range."""

from collections import Counter

import pytest

from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini import ReasonMini, find_kind, kinds, make


def test_without_turns_the_records_are_the_training_split():
    records = ReasonMini(count=40)
    for i in (0, 7, 39):
        sample = make("train", i)
        assert records[i].source.tobytes() == sample.source.tobytes() and sample.instruction in records[i].instructions


def test_a_kind_takes_as_many_turns_as_it_is_given():
    first, second, third = (kind.name for _, kind in kinds()[:3])
    records = ReasonMini(turns={first: 3, second: 0})
    assert Counter(records.order)[first] == 3 and second not in records.order and Counter(records.order)[third] == 1
    told = {i: set(records[i].instructions) for i in range(4)}
    phrasings = {name: find_kind(name)[1].phrasings for name in (first, third)}
    assert all(len(told[i]) == len(phrasings[name]) for i, name in enumerate([first] * 3 + [third]))
    pictures = [records[i].source.tobytes() for i in range(3)]
    assert len(set(pictures)) == 3  # three records, not one thrice


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"turns": {"seesaw_flies": 2}}, "data.turns: ReasonMini has no kind 'seesaw_flies'; .*seesaw_released"),
        ({"turns": {"seesaw_released": -1}}, "data.turns.seesaw_released: must be 0 or more, not -1"),
        ({"turns": {kind.name: 0 for _, kind in kinds()}}, "data.turns: at least one kind must be above 0"),
        ({"count": 0}, "data.count: must be 1 or more, not 0"),
        ({"seed": -1}, "data.seed: must be 0 or more, not -1"),
        ({"split": "best"}, "data.split: 'best' is not one of train, val"),
    ],
)
def test_wrong_values_are_named(given, message):
    with pytest.raises(UserError, match=message):
        ReasonMini(**given)


def test_validation_is_a_split_of_its_own():
    own = ReasonMini.open(**ReasonMini.validation(count=3, seed=5))
    assert [record.id for record in (own[0], own[2])] == ["val-5-000000", "val-5-000002"]
    assert own.shape(1) == own[1].source.size == (64, 64)
