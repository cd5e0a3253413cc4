"""Training records of ReasonMini: which kinds take their turn."""

from collections import Counter

import pytest

from reasonbrain.config import DataConfig
from reasonbrain.data.mini.world import find_kind, kinds, make
from reasonbrain.data.records import MiniRecords
from reasonbrain.errors import UserError


def test_without_turns_the_records_are_the_training_split():
    records = MiniRecords(DataConfig(count=40))
    for i in (0, 7, 39):
        sample = make("train", i)
        assert records[i].source.tobytes() == sample.source.tobytes() and sample.instruction in records[i].instructions


def test_a_kind_takes_as_many_turns_as_it_is_given():
    first, second, third = (kind.name for _, kind in kinds()[:3])
    records = MiniRecords(DataConfig(turns={first: 3, second: 0}))
    assert Counter(records.turns)[first] == 3 and second not in records.turns and Counter(records.turns)[third] == 1
    told = {i: set(records[i].instructions) for i in range(4)}
    phrasings = {name: find_kind(name)[1].phrasings for name in (first, third)}
    assert all(len(told[i]) == len(phrasings[name]) for i, name in enumerate([first] * 3 + [third]))
    pictures = [records[i].source.tobytes() for i in range(3)]
    assert len(set(pictures)) == 3  # three records, not one thrice


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ({"seesaw_flies": 2}, "data.turns: ReasonMini has no kind 'seesaw_flies', but .*seesaw_released"),
        ({"seesaw_released": -1}, "data.turns.seesaw_released is -1, but must be 0 or more"),
    ],
)
def test_wrong_turns_are_named(turns, message):
    with pytest.raises(UserError, match=message):
        MiniRecords(DataConfig(turns=turns))
