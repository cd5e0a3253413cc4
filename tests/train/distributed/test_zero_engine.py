"""ZeRO in one process, in this one: it takes the steps of plain torch, whatever is skipped and wherever it resumes."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from reasonbrain.config.schema import TrainConfig
from reasonbrain.train.distributed.zero import ZeroEngine
from reasonbrain.train.distributed.zero_json import fill
from reasonbrain.train.engine import Engine
from reasonbrain.train.step import take_step

pytest.importorskip("deepspeed")

PARTS = 2


class Net(nn.Module):
    """Vectors, matrices between hidden layers, and something frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.end = nn.Linear(4, 6), nn.Linear(6, 2).requires_grad_(False)
        self.blocks = nn.ModuleList([nn.Linear(6, 6, bias=False), nn.Linear(6, 6)])

    def forward(self, x):
        return self.end(self.blocks[1](self.blocks[0](self.linear(x)).tanh())).square().mean()


@pytest.fixture(scope="module", autouse=True)
def process_group():
    """DeepSpeed has one for the whole process; tests of other files have none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def config(optimizer):
    words = {"steps": 8, "lr": 0.1, "warmup": 2, "ema": 0.5, "batch_size": 16, "micro_batch": 8, "grad_clip": 0.1}
    return TrainConfig(optimizer=optimizer, **words)


def zero(stage, cfg):
    filled = fill(f"zero{stage[0]}", cfg, 1)
    filled["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if stage.endswith("offload"):
        filled["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if stage.endswith("sub-groups"):  # 9 of them; of the matrices, each has one
        filled["zero_optimization"]["sub_group_size"] = 1
    return ZeroEngine(Net(), cfg, filled)


def step(engine, number, loss=1.0, gradient=1.0):
    """One step whose last pass has its loss or its gradient multiplied. Returns the norm, or why it was skipped."""

    def batch(step, part):
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(step)).chunk(PARTS)[part], part

    def losses(found):
        x, part = found
        value = engine.model(x)
        if part == PARTS - 1:
            value = value * loss
            value.register_hook(lambda grad: grad * gradient)
        return {"loss": value}

    taken = take_step(engine, batch, losses, number, PARTS)
    return taken.fault or dict(taken.values)["norm"]


def everything(engine):
    return {(n, what): engine.gather(what, n).clone() for n in engine.trained for what in engine.kinds(n)}


@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [("1", "adamw"), ("2", "adamw"), ("2 offload", "adamw"), ("3", "adamw"), ("2", "muon"), ("3 sub-groups", "muon")],
)
def test_it_takes_the_steps_of_plain_torch(stage, optimizer):
    """A step whose second loss or gradient is NaN changes nothing and leaves nothing of its first pass behind; another
    engine that gets all tensors of this one takes the same step from there."""
    cfg = config(optimizer)
    plain, engine = Engine(Net(), cfg), zero(stage, cfg)
    for number, wrong in enumerate([{}, {"loss": math.nan}, {}, {"gradient": math.nan}, {}, {}]):
        before = everything(engine) if wrong else {}
        expected, found = step(plain, number, **wrong), step(engine, number, **wrong)
        if wrong:
            assert found == expected and "nan" in found
            assert all(torch.equal(value, before[key]) for key, value in everything(engine).items())
        else:
            assert found == pytest.approx(expected, rel=1e-4), number
    other = zero(stage, cfg)
    for (name, what), value in everything(engine).items():
        other.restore(what, name, value)
    step(plain, 6)
    assert step(other, 6) == pytest.approx(step(engine, 6), rel=1e-5)
    tolerance = {"adamw": 1e-5, "muon": 1e-3}[optimizer]  # muon makes its steps orthogonal in bfloat16
    for one in (engine, other):
        for (name, what), value in everything(one).items():
            torch.testing.assert_close(value, plain.gather(what, name), rtol=tolerance, atol=tolerance)


def test_sub_groups_change_no_bit():
    """ZeRO-3 splits a group of more than ``sub_group_size`` parameters, by default 1e9: FLUX has 12e9."""
    one, many = zero("3", config("adamw")), zero("3 sub-groups", config("adamw"))
    assert len(many.average) > len(one.average)
    for number in range(3):
        assert step(one, number) == step(many, number)
    assert all(torch.equal(value, everything(many)[key]) for key, value in everything(one).items())


def test_autocast_works_where_deepspeed_switches_it_off(monkeypatch):
    """DeepSpeed asks for CUDA's autocast. It opens one that is switched off around the model if it sees ours; here it
    sees that of the CPU."""
    of_cuda = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": of_cuda(kind))
    cfg = config("adamw")
    cfg.bf16 = True
    engine = zero("3", cfg)
    seen = []
    engine.module.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    assert step(engine, 0) > 0 and seen == [torch.bfloat16] * PARTS
