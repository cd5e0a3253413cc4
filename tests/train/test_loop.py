"""The training loop: the learning rate, exact resume, averages, logs, and a loss that is not a number."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reasonbrain.config import TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.train.loop import Loop, is_hidden, learning_rate, optimizers

CFG = TrainConfig(steps=8, lr=0.1, warmup=2, ema=0.5, save_every=3, log_every=2)


class Toy(nn.Module):
    """A weight, a bias and something frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.frozen = nn.Linear(4, 2), nn.Linear(2, 2).requires_grad_(False)

    def losses(self, step):
        """Draws from torch's random state, as flow matching does."""
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (self.frozen(self.linear(x)) + torch.randn(16, 2)).square().mean()
        return {"loss": loss, "half": loss / 2}


class Deep(Toy):
    """The same behind a block of hidden layers."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])

    def losses(self, step):
        """Weights beyond the blocks get gradients too."""
        both = self.blocks[1](self.blocks[0](torch.randn(16, 4))).square().mean()
        return {k: v + both for k, v in super().losses(step).items()}


def fit(run, steps=8, on_save=None, module=None, **kwargs):
    module = module or Toy()
    cfg = TrainConfig(**{**vars(CFG), "steps": steps, **kwargs})
    loop = Loop(module, cfg, run)
    loop.resume()
    loop.fit(module.losses, on_save)
    return module, loop


def test_learning_rate_warms_up_then_falls_by_a_cosine():
    cfg = TrainConfig(steps=110, lr=2.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(cfg, s) for s in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[10] == 2.0 and rates[110] == pytest.approx(0.2)
    assert rates[60] == pytest.approx(2 * (0.1 + 0.9 / 2)) and sorted(rates[10:], reverse=True) == rates[10:]
    assert learning_rate(cfg, 200) == pytest.approx(0.2)  # a run that is made longer
    assert learning_rate(TrainConfig(lr=2.0, warmup=0), 0) == 2.0


def test_the_rate_reaches_the_optimizer_and_biases_do_not_decay(tmp_path):
    _, loop = fit(tmp_path, steps=1, weight_decay=0.3)
    (optimizer,) = loop.optimizers
    groups = optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0] and groups[0]["lr"] == 0.1 / 2
    assert [p.ndim for g in groups for p in g["params"]] == [2, 1]


def test_muon_steps_the_hidden_matrices_as_its_paper_says(tmp_path):
    """Orthogonal steps: every singular value near 0.2 sqrt(4) x rate, which a gradient's are not."""
    module, (before, after) = Deep(), (Deep().blocks[0].weight, None)
    _, loop = fit(tmp_path, steps=1, module=module, optimizer="muon", weight_decay=0.0)
    adamw, muon = loop.optimizers
    assert [p is q for p, q in zip(muon.param_groups[0]["params"], (b.weight for b in module.blocks), strict=True)]
    assert {id(p) for g in adamw.param_groups for p in g["params"]} == {
        id(p) for p in (module.linear.weight, module.linear.bias, module.blocks[0].bias)
    }
    after = module.blocks[0].weight
    step = torch.linalg.svdvals((after - before).detach()) / (0.05 * 0.2 * 2)
    assert step.min() > 0.5 and step.max() < 1.3
    assert "momentum_buffer" in muon.state[after] and "exp_avg" not in muon.state[after]


def test_adapters_vectors_and_what_is_in_no_block_stay_with_adamw():
    matrix, vector = torch.zeros(2, 2), torch.zeros(2)
    assert is_hidden("cme.blocks.0.visual.to_q.weight", matrix)
    assert not is_hidden("cme.blocks.0.visual.norm.weight", vector)
    assert not is_hidden("connector.queries", matrix) and not is_hidden("mllm.layers.1.to_q.lora_A.weight", matrix)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match="train.optimizer: 'sgd' is not one of adamw, muon"):
        optimizers({}, TrainConfig(optimizer="sgd"))


@pytest.mark.parametrize(("make", "optimizer", "tensors"), [(Toy, "adamw", 2 * 5), (Deep, "muon", 3 * 5 + 2 * 3)])
def test_resumed_is_bit_identical_to_uninterrupted(tmp_path, make, optimizer, tensors):
    cfg = TrainConfig(**{**vars(CFG), "optimizer": optimizer})
    whole, _ = fit(tmp_path / "whole", module=make(), optimizer=optimizer)
    module = make()
    with pytest.raises(KeyboardInterrupt):

        def stopped(step):
            if step == 5:  # the last state is that of step 3
                raise KeyboardInterrupt
            return module.losses(step)

        Loop(module, cfg, tmp_path / "parts").fit(stopped)
    again, loop = fit(tmp_path / "parts", module=make(), optimizer=optimizer)
    assert loop.step == 8
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    states = [load_file(tmp_path / d / "state.safetensors") for d in ("whole", "parts")]
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert len(states[0]) == tensors  # tensor, average, AdamW's step and two moments, or Muon's one


def test_a_finished_run_does_nothing_more(tmp_path):
    module, _ = fit(tmp_path)
    weight = module.linear.weight.clone()
    again, loop = fit(tmp_path)
    assert torch.equal(again.linear.weight, weight) and loop.step == 8


def test_only_what_trains_moves(tmp_path):
    module, _ = fit(tmp_path)
    assert torch.equal(module.frozen.weight, Toy().frozen.weight)
    assert not torch.equal(module.linear.weight, Toy().linear.weight)


def test_average_is_the_exponential_one(tmp_path):
    module = Toy()
    loop = Loop(module, CFG, tmp_path)
    expected, seen = module.linear.weight.detach().clone(), []

    def losses(step):
        seen.append(module.linear.weight.detach().clone())
        return module.losses(step)

    loop.fit(losses)
    seen.append(module.linear.weight.detach().clone())
    for step, weight in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))  # faster at the beginning
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(loop.average["linear.weight"], expected)
    last = seen[-1]
    with loop.averaged():
        torch.testing.assert_close(module.linear.weight, expected)
    assert torch.equal(module.linear.weight, last)
    loop.use_average()
    torch.testing.assert_close(module.linear.weight, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_the_step_and_saves_nothing(tmp_path, bad):
    module = Toy()

    def losses(step):
        return {"loss": module.losses(step)["loss"] * (bad if step == 4 else 1)}

    with pytest.raises(FloatingPointError, match=f"step 4.*{bad}"):
        Loop(module, CFG, tmp_path).fit(losses)
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / "state.safetensors").values())
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_gradients_are_clipped(tmp_path):
    """AdamW hides the size of a gradient, but not in its moments."""
    _, loop = fit(tmp_path, steps=1, grad_clip=1e-3)
    norm = math.sqrt(sum(float((s["exp_avg"] / 0.1).square().sum()) for s in loop.optimizers[0].state.values()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_log_lines_are_means_and_saves_are_on_time(tmp_path):
    saves = []
    module = Toy()
    fit(tmp_path, on_save=lambda: saves.append(os.path.getmtime(tmp_path / "state.safetensors")), module=module)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8] and len(saves) == 3  # after 3, 6 and the last, 8
    for line in lines:
        assert line["half"] == pytest.approx(line["loss"] / 2, abs=2e-5) and line["seconds_per_step"] >= 0
    assert not list(tmp_path.glob("*.new"))
