"""Shares of a mixture, and that an index always means the same record."""

from collections import Counter

import layouts
import numpy as np
import pytest

from reasonbrain.config.loading import load_config
from reasonbrain.data.mixture import Mixture
from reasonbrain.data.opening import identity, open_data, open_records, open_validation
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.train.batches import Batches


@pytest.mark.parametrize(
    ("lengths", "weights"),
    [
        ([7, 3], [1, 1]),
        ([1000, 10], [0.5, 0.5]),
        ([51039, 8807, 219], [0.7, 0.2, 0.1]),
        ([5, 5, 5], [1, 2, 4]),
        ([4], [3]),
    ],
)
def test_shares_are_exact_and_every_record_is_reached(lengths, weights):
    mixture = Mixture([range(n) for n in lengths], weights)
    places = [mixture.locate(number) for number in range(len(mixture))]
    taken = Counter(part for part, _ in places)
    for part, weight in enumerate(weights):
        assert abs(taken[part] - weight / sum(weights) * len(mixture)) <= 1
        indices = [index for other, index in places if other == part]
        assert indices[: lengths[part]] == list(range(lengths[part]))  # in order, from the first record
        times = Counter(indices)
        assert sorted(times) == list(range(lengths[part])) and max(times.values()) - min(times.values()) <= 1
    assert len(mixture) <= max(n * sum(weights) / w for n, w in zip(lengths, weights, strict=True)) + 1


def mixed(folder):
    """A mixture of a manifest and a folder, three to one."""
    layouts.manifest(folder / "a", 4)
    layouts.triples(folder / "b")
    parts = f"{{name: manifest, path: {folder / 'a'}, weight: 3}}, {{name: folder, path: {folder / 'b'}, weight: 1}}"
    return load_config("tiny", ["data.name=mixture", f"data.mixture=[{parts}]"])


def test_drawn_records_have_the_shares_and_are_the_same_after_resuming(tmp_path):
    """The indices of a step do not depend on the model."""

    def run():
        cfg = mixed(tmp_path)
        return Batches(cfg, ReasonBrain({}, 8)), open_data(cfg.data)

    batches, source = run()
    told = [[source[n].id for n in batches.rows(step, 0)[0]] for step in range(60)]
    share = np.mean([name.startswith("r") for names in told for name in names])
    assert abs(share - 0.75) < 0.05 and len(set(map(tuple, told))) == 60
    batches, source = run()
    assert [[source[n].id for n in batches.rows(step, 0)[0]] for step in (41, 7)] == [told[41], told[7]]


def test_weights_and_order_of_the_parts_identify_a_mixture(tmp_path):
    """Features are cached by a record's number, which these decide."""
    cfg = mixed(tmp_path).data
    made = identity(cfg)
    assert made == identity(mixed(tmp_path).data)
    cfg.mixture[0].weight = 2
    assert identity(cfg) != made
    other = mixed(tmp_path).data
    other.mixture.reverse()
    assert identity(other) != made


def test_parts_keep_their_records_and_are_scaled(tmp_path):
    cfg = mixed(tmp_path).data
    records = open_records(cfg, 1)
    assert {records[i].id for i in range(len(records))} == {"r0", "r1", "r2", "r3", "heat-0", "heat-1", "heat-2"}
    assert records[0].source.size == records.sizes[0] != (48, 32)
    cfg.validation = str(tmp_path / "b")
    assert open_validation(cfg)[0].id == "heat-0"


def test_reasonmini_can_be_a_part(tmp_path):
    layouts.manifest(tmp_path)
    parts = f"[{{name: mini, count: 5, seed: 4, weight: 1}}, {{name: manifest, path: {tmp_path}, weight: 1}}]"
    records = open_records(load_config("tiny", ["data.name=mixture", f"data.mixture={parts}"]).data, 1)
    ids = [records[i].id for i in range(len(records))]
    assert len(ids) == 10 and sum(name.startswith("train-4-") for name in ids) == 5


def test_the_vocabulary_is_that_of_all_parts(tmp_path):
    assert open_data(mixed(tmp_path).data).vocabulary() == sorted("What if number 0 1 2 3 fell? Heat 0. 1. 2.".split())


def test_a_weight_that_repeats_the_other_records_without_end_is_an_error():
    with pytest.raises(UserError, match="with weight 1e-09 it has 3000000003 records; 100000000 are the most"):
        Mixture([range(3), range(3)], [1, 1e-9])


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_an_invalid_weight_is_an_error(weight):
    with pytest.raises(UserError, match=f"data.mixture: weight {weight} must be"):
        Mixture([range(3), range(3)], [1, weight])
