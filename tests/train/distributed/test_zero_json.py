"""DeepSpeed's JSON configuration: values that are filled in, and one-line errors."""

import json

import pytest

from reasonbrain.config.schema import TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.train.distributed.zero_json import fill


def written(tmp_path, **changes):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}} | changes))
    return file


def test_auto_and_missing_values_come_from_the_configuration(tmp_path):
    cfg = TrainConfig(batch_size=16, micro_batch=2, grad_clip=0.5, bf16=True)
    filled = fill(written(tmp_path, train_batch_size="auto", bf16={"enabled": "auto"}), cfg, 4)
    assert filled["train_batch_size"] == 16 and filled["train_micro_batch_size_per_gpu"] == 2
    assert filled["gradient_accumulation_steps"] == 2 and filled["gradient_clipping"] == 0.5
    assert filled["bf16"]["enabled"] is True and filled["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_the_shipped_files_are_filled_in(name):
    filled = fill(name, TrainConfig(batch_size=16), 16)
    assert "auto" not in json.dumps(filled) and filled["zero_optimization"]["stage"] == int(name[4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 32}, "train_batch_size is 32, but train.batch_size is 16"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, but train.micro_batch is 8"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps is 3, but .* is 1"),
        ({"gradient_clipping": 2.0}, "gradient_clipping is 2.0, but train.grad_clip is 1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, but train.bf16 is False"),
        ({"fp16": {"enabled": True}}, "fp16 is enabled, but train.bf16 is False"),
        ({"optimizer": {"type": "AdamW"}}, "'optimizer' contradicts train.optimizer"),
        ({"zero_optimization": True}, "zero_optimization must be a JSON object, not true"),
        ({"bf16": True}, "bf16 must be a JSON object, not true"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "maybe"}}, "overlap_comm: Input should be a valid boolean"),
        ({"zero_optimization": {"stage": 2, "overlap": 1}}, "overlap: Extra inputs are not permitted"),
        ({"flops_profiler": [1]}, "DeepSpeed refuses it: 'list' object has no attribute 'get'"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage is 0, not one of 1, 2, 3"),
    ],
)
def test_a_contradiction_names_both_values(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        fill(written(tmp_path, **changes), TrainConfig(batch_size=16), 2)


def test_a_file_that_is_not_json(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; name a JSON file or one of zero1, zero2, zero3, "):
        fill(tmp_path / "missing.json", TrainConfig(), 1)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        fill(tmp_path / "bad.json", TrainConfig(), 1)
    (tmp_path / "bad.json").write_text('{"bf16": {}, "bf16": {"enabled": true}}')
    with pytest.raises(UserError, match="is not JSON.*the key 'bf16' occurs twice"):
        fill(tmp_path / "bad.json", TrainConfig(), 1)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="must be a JSON object, not list"):
        fill(tmp_path / "list.json", TrainConfig(), 1)


@pytest.mark.parametrize("off", [0, None])
def test_no_clipping(off):
    assert fill("zero2", TrainConfig(grad_clip=off), 1)["gradient_clipping"] == 0.0
