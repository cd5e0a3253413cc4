"""The training loop: the learning rate, exact resume, averages, logs, and NaN or infinite losses."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from reasonbrain.config.schema import TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.train import checkpoints
from reasonbrain.train.loop import Loop, Preempted

CFG = TrainConfig(steps=8, lr=0.1, warmup=2, ema=0.5, save_every=3, log_every=2)


class Toy(nn.Module):
    """A module with a weight, a bias and a frozen parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.frozen = nn.Linear(4, 2), nn.Linear(2, 2).requires_grad_(False)

    def batches(self, step, part=0):
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))

    def losses(self, x):
        """Draws from torch's random state, as flow matching does."""
        loss = (self.frozen(self.linear(x)) + torch.randn(16, 2)).square().mean()
        return {"loss": loss, "half": loss / 2}


class Deep(Toy):
    """The same after a block of hidden layers."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])

    def losses(self, x):
        """Weights outside the blocks get gradients, too."""
        both = self.blocks[1](self.blocks[0](torch.randn(16, 4))).square().mean()
        return {k: v + both for k, v in super().losses(x).items()}


def fit(run, steps=8, module=None, **kwargs):
    module = module or Toy()
    cfg = TrainConfig(**{**vars(CFG), "steps": steps, **kwargs})
    loop = Loop(module, cfg, run)
    loop.resume()
    loop.fit(module.batches, module.losses)
    return module, loop


def state(run):
    """Everything in the run's last checkpoint."""
    return {f"{what}/{name}": value for what, name, value in checkpoints.read(checkpoints.last(run))}


@pytest.mark.parametrize(("make", "optimizer", "tensors"), [(Toy, "adamw", 2 * 5), (Deep, "muon", 3 * 5 + 2 * 3)])
def test_resumed_is_bit_identical_to_uninterrupted(tmp_path, make, optimizer, tensors):
    cfg = TrainConfig(**{**vars(CFG), "optimizer": optimizer})
    whole, _ = fit(tmp_path / "whole", module=make(), optimizer=optimizer)
    module = make()
    with pytest.raises(KeyboardInterrupt):

        def stopped(step, part):
            if step == 5:  # the last state is that of step 3
                raise KeyboardInterrupt
            return module.batches(step)

        Loop(module, cfg, tmp_path / "parts").fit(stopped, module.losses)
    again, loop = fit(tmp_path / "parts", module=make(), optimizer=optimizer)
    assert loop.step == 8
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    states = [state(tmp_path / d) for d in ("whole", "parts")]
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert len(states[0]) == tensors  # tensor, average, AdamW's step and two moments, or Muon's one


def test_a_finished_run_takes_no_step(tmp_path):
    module, _ = fit(tmp_path)
    weight = module.linear.weight.clone()
    again, loop = fit(tmp_path)
    assert torch.equal(again.linear.weight, weight) and loop.step == 8


def test_only_trained_parameters_change(tmp_path):
    module, _ = fit(tmp_path)
    assert torch.equal(module.frozen.weight, Toy().frozen.weight)
    assert not torch.equal(module.linear.weight, Toy().linear.weight)


def test_the_average_is_exponential(tmp_path):
    module = Toy()
    loop = Loop(module, CFG, tmp_path)
    expected, seen = module.linear.weight.detach().clone(), []

    def losses(x):
        seen.append(module.linear.weight.detach().clone())
        return module.losses(x)

    loop.fit(module.batches, losses)
    seen.append(module.linear.weight.detach().clone())
    for step, weight in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))  # faster at the beginning
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(loop.engine.average["linear.weight"], expected)
    loop.engine.use_average()
    torch.testing.assert_close(module.linear.weight, expected)


def test_a_batch_is_fetched_outside_the_contexts_of_its_forward_pass(tmp_path):
    """Autocast, and on a CPU the choice of plain attention."""
    module, seen = Toy(), []

    def contexts(where):
        seen.append((where, torch.is_autocast_enabled("cpu"), torch.backends.cuda.flash_sdp_enabled()))

    def batches(step, part):
        contexts("fetched")
        return module.batches(step)

    def losses(x):
        contexts("passed")
        return module.losses(x)

    Loop(module, TrainConfig(**{**vars(CFG), "steps": 2, "bf16": True}), tmp_path).fit(batches, losses)
    assert seen == 2 * [("fetched", False, True), ("passed", True, False)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_steps_are_skipped_and_several_in_a_row_end_the_run(tmp_path, bad, caplog):
    """Steps 1, 4, 5 and 6 are bad: a single one is skipped, three in a row end the run."""
    module = Toy()

    def batches(step, part):
        return module.batches(step), bad if step in (1, 4, 5, 6) else 1

    def losses(batch):
        return {"loss": module.losses(batch[0])["loss"] * batch[1]}

    cfg = TrainConfig(**{**vars(CFG), "bad_steps": 3})
    seen = []
    with pytest.raises(
        FloatingPointError, match=f"step 6: the loss of process 0 is {bad} .record 6.; 3 steps in a row"
    ):
        loop = Loop(module, cfg, tmp_path)
        loop.fit(batches, losses, describe=lambda step, part: seen.append(step) or f"record {step}")
    assert seen == [1, 4, 5, 6] and "step 1: the loss" in caplog.text
    assert all(torch.isfinite(v).all() for v in state(tmp_path).values())
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_nan_gradient_changes_nothing(tmp_path):
    module = Toy()
    loop = Loop(module, TrainConfig(**{**vars(CFG), "bad_steps": 2}), tmp_path)
    before = []

    def losses(batch):
        x, step = batch
        if step == 0:
            return module.losses(x)
        before.append({n: (p.detach().clone(), loop.engine.average[n].clone()) for n, p in loop.engine.trained.items()})
        return {"loss": (module.linear.weight * 0).sqrt().sum()}  # 0, and its gradient is 0 / 0

    with pytest.raises(FloatingPointError, match="step 2: the gradient norm is nan; 2 steps in a row"):
        loop.fit(lambda step, part: (module.batches(step), step), losses)
    for name, (weight, average) in before[0].items():
        assert not torch.equal(weight, average)
        assert torch.equal(loop.engine.trained[name], weight) and torch.equal(loop.engine.average[name], average)


def test_every_pass_draws_its_own_noise(tmp_path):
    """The same in a run that begins again, and another in each pass of each step."""
    module, drawn = Toy(), [[], []]
    for run in (0, 1):

        def losses(x, seen=drawn[run]):
            seen.append(float(torch.rand(())))
            return module.losses(x)

        Loop(module, TrainConfig(**{**vars(CFG), "steps": 3}), tmp_path / str(run)).fit(module.batches, losses, 2)
    assert len(set(drawn[0])) == 6 and drawn[0] == drawn[1]


def test_accumulated_parts_are_one_batch(tmp_path):
    """Four passes of four rows give the same step as one of sixteen."""
    data = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))

    def run(parts, folder):
        module = Toy()

        def losses(x):
            return {"loss": module.linear(x).square().mean()}

        Loop(module, CFG, folder).fit(lambda step, part: data.chunk(parts)[part], losses, parts)
        return module.linear.weight, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]

    (whole, lines), (parted, other) = run(1, tmp_path / "1"), run(4, tmp_path / "4")
    torch.testing.assert_close(whole, parted)
    for key in ("loss", "norm"):
        assert [x[key] for x in lines] == pytest.approx([x[key] for x in other], rel=1e-5)


class Slots(nn.Module):
    """Two slots, named as ReasonBrain's."""

    batches = Toy.batches

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({"cme": nn.Linear(4, 2), "mllm": nn.Linear(4, 2)})

    def losses(self, x):
        return {"loss": sum(part(x).square().mean() for part in self.parts.values())}


@pytest.mark.parametrize("make", [Toy, Slots])
def test_gradients_are_clipped(tmp_path, make):
    """To one norm over all slots. The size of a gradient shows in AdamW's moments only."""
    _, loop = fit(tmp_path, steps=1, grad_clip=1e-3, module=make())
    norm = math.sqrt(sum(float((s["exp_avg"] / 0.1).square().sum()) for s in loop.engine.optimizers[0].state.values()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("off", [0, None])
def test_no_clipping(tmp_path, off):
    """0 means no clipping, as under DeepSpeed: the step equals that with a norm that no gradient reaches."""
    none, _ = fit(tmp_path / "none", steps=2, grad_clip=off)
    high, _ = fit(tmp_path / "high", steps=2, grad_clip=1e9)
    start = Toy()
    assert torch.equal(none.linear.weight, high.linear.weight)
    assert not torch.equal(none.linear.weight, start.linear.weight)


def diverging(run, at, steps=20, **kwargs):
    """A run whose loss is not finite after step ``at``."""
    module = Toy()

    def losses(batch):
        return {"loss": module.losses(batch[1])["loss"] * (math.nan if batch[0] >= at else 1)}

    cfg = TrainConfig(**{**vars(CFG), "steps": steps, "save_every": 1, **kwargs})
    loop = Loop(module, cfg, run)
    loop.resume()
    loop.fit(lambda step, part: (step, module.batches(step)), losses)


def test_a_diverged_run_keeps_earlier_checkpoints_and_resumes_from_them(tmp_path):
    with pytest.raises(FloatingPointError, match="5 steps in a row were skipped"):
        diverging(tmp_path, at=4, keep=3)
    assert [checkpoints.step_of(f) for f in checkpoints.complete(tmp_path)] == [2, 3]  # 4 gave no finite loss
    assert len(list((tmp_path / "checkpoints").glob("step-00000004.diverged-*"))) == 1
    whole, _ = fit(tmp_path / "whole", save_every=1, keep=3)
    again, _ = fit(tmp_path, save_every=1, keep=3)
    assert torch.equal(whole.linear.weight, again.linear.weight)


def test_a_run_does_not_end_on_a_skipped_step(tmp_path):
    with pytest.raises(FloatingPointError, match="the last step was skipped, so the run is saved at step 6 only"):
        diverging(tmp_path, at=6, steps=8)
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 6


@pytest.mark.parametrize("what", ["param", "average", "exp_avg"])
def test_non_finite_weights_are_never_saved(tmp_path, what):
    module, loop = fit(tmp_path, steps=3)
    loop.engine.gather(what, "linear.weight").view(-1)[0] = math.inf
    loop.step = 4
    with pytest.raises(FloatingPointError, match=f"step 4: '{what}/linear.weight' is NaN or infinite"):
        loop.save()
    assert [checkpoints.step_of(f) for f in checkpoints.complete(tmp_path)] == [3]
    assert not list(tmp_path.rglob("*.new"))


def test_the_log_has_no_step_twice(tmp_path):
    """Killed after step 4 and before its checkpoint: step 4 is logged again."""
    fit(tmp_path / "whole", log_every=1)
    fit(tmp_path / "run", steps=3, log_every=1)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 7.0}\n{"step": 5, "lo')
    loop = Loop(Toy(), TrainConfig(**{**vars(CFG), "log_every": 1}), tmp_path / "run")
    loop.resume()
    loop.shorten_log()
    loop.fit(loop.engine.model.batches, loop.engine.model.losses)
    lines = {n: (tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("whole", "run")}
    whole, run = ([(x["step"], x["loss"]) for x in map(json.loads, lines[n])] for n in ("whole", "run"))
    assert [step for step, _ in run] == list(range(1, 9)) and run[3:] == whole[3:]


def test_peak_memory_is_that_of_the_process_alone():
    """Linux counts the memory of the starting program in ``ru_maxrss``. Importing torch takes less than 0.9 GiB."""
    code = "import torch; from reasonbrain.train.loop import peak_memory; print(peak_memory(torch.device('cpu')))"
    ballast = torch.ones(2**30, dtype=torch.uint8)
    found = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert ballast.nbytes == 2**30 and 0.05 < found < 0.9


def test_log_lines_are_means_and_checkpoints_are_periodic(tmp_path):
    fit(tmp_path, keep=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [f.name[-1] for f in checkpoints.complete(tmp_path)] == ["3", "6", "8"]
    fit(tmp_path / "odd", steps=3)
    assert [json.loads(line)["step"] for line in (tmp_path / "odd" / "log.jsonl").read_text().splitlines()] == [2, 3]
    for line in lines:
        assert 0 <= line["seconds_waiting_for_data"] <= line["seconds_per_step"]
        assert line["half"] == pytest.approx(line["loss"] / 2, abs=2e-5) and line["seconds_per_step"] >= 0


def test_a_value_that_a_step_does_not_have_is_left_out_of_the_mean(tmp_path):
    """As the loss of a noise level that no draw of the step fell into."""
    module = Toy()

    def losses(batch):
        x, step = batch
        return {**module.losses(x), "rare": torch.tensor(float(step) if step in (1, 3) else math.nan)}

    loop = Loop(module, TrainConfig(**{**vars(CFG), "steps": 8, "log_every": 4}), tmp_path)
    loop.fit(lambda step, part: (module.batches(step), step), losses)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["rare"] == 2 and "rare" not in lines[1] and loop.skipped == 0


def test_a_resumed_run_must_train_the_same_parameters(tmp_path):
    fit(tmp_path, steps=1)
    with pytest.raises(UserError, match="did not train 'blocks.0.weight', which trains now"):
        fit(tmp_path, module=Deep())
    fit(tmp_path / "deep", steps=1, module=Deep())
    with pytest.raises(UserError, match="trained 'blocks.0.bias', which does not train now"):
        fit(tmp_path / "deep")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_end(number, tmp_path):
    module = Toy()

    def batches(step, part):
        if step == 4:
            os.kill(os.getpid(), number)
        return module.batches(step)

    before = signal.getsignal(number)
    with pytest.raises(Preempted, match=f"stopped by {number.name}; saved at step 5"):
        Loop(module, CFG, tmp_path).fit(batches, module.losses)
    assert checkpoints.step_of(checkpoints.last(tmp_path)) == 5 and signal.getsignal(number) == before
    whole, _ = fit(tmp_path / "whole")
    again, _ = fit(tmp_path)
    assert torch.equal(whole.linear.weight, again.linear.weight)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    module = Toy()

    def batches(step, part):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return module.batches(step)

    with pytest.raises(KeyboardInterrupt):
        Loop(module, CFG, tmp_path).fit(batches, module.losses)
    assert checkpoints.last(tmp_path) is None


def test_a_skipped_step_leaves_no_gradient_and_no_change_of_the_average(tmp_path):
    """The second of two passes is not finite. The next step must not contain the gradients of the first."""
    toy = Toy()
    loop = Loop(toy, TrainConfig(**{**vars(CFG), "steps": 1, "bad_steps": 5}), tmp_path)
    before = {name: average.clone() for name, average in loop.engine.average.items()}
    weights = {name: p.detach().clone() for name, p in toy.named_parameters()}

    def losses(batch):
        of_toy, part = batch
        return {k: v * (math.nan if part == 1 else 1) for k, v in toy.losses(of_toy).items()}

    with pytest.raises(FloatingPointError, match="the last step was skipped, so the run is saved at step 0 only"):
        loop.fit(lambda step, part: (toy.batches(step, part), part), losses, parts=2)
    assert loop.step == 1 and loop.skipped == 1
    assert all(p.grad is None or not p.grad.any() for p in toy.parameters())
    assert all(torch.equal(loop.engine.average[name], before[name]) for name in before)
    assert all(torch.equal(p, weights[name]) for name, p in toy.named_parameters())
