"""ZeRO for real: two gloo processes, partitioned parameters, the same losses as plain torch, and checkpoints that any
other number of processes and any other engine continues."""

import shutil

import numpy as np
import pytest
import torch
from launching import QUICK, ZERO, launch, logged, losses, zero
from PIL import Image

from reasonbrain.checkpoint import load_model
from reasonbrain.config.loading import load_config
from reasonbrain.errors import UserError
from reasonbrain.train.distributed.zero import ZeroEngine
from reasonbrain.train.run import train

pytest.importorskip("deepspeed")

ALONE = ("-m", "reasonbrain.cli", "train")
FIFTY = [*QUICK, "train.steps=50", "train.save_every=50", "train.validate_every=25"]

PARTITIONED = """
import sys, torch
from pathlib import Path
from reasonbrain.config.loading import load_config
from reasonbrain.train.distributed import processes
from reasonbrain.train.building import build
from reasonbrain.train.distributed.zero import ZeroEngine
from reasonbrain.train.distributed.zero_json import fill
stage, overrides = sys.argv[1], sys.argv[2:]
cfg = load_config("tiny", overrides)
processes.join()
model = build(cfg).train()
whole = {n: p.numel() for n, p in model.named_parameters()}
flat = fill(Path(stage), cfg.train, 2)
flat["zero_optimization"]["stage3_param_persistence_threshold"] = 0
engine = ZeroEngine(model, cfg.train, flat)
held = sum(f.numel() for f in engine.average)
trained = sum(whole[n] for n in engine.trained)
assert trained / 2 <= held <= trained / 2 + 4 * len(whole), (held, trained)
assert "parts.diffusion.vae.decoder.conv_in.weight" in whole
for name, p in model.named_parameters():
    assert "vae" not in name
    if engine.stage == 3:
        assert p.numel() == 0 and p.ds_numel == whole[name] and p.ds_tensor.numel() <= whole[name] // 2 + 2, name
if engine.stage == 3:
    assert any(not p.requires_grad for p in model.parameters())  # frozen ones are partitioned too
assert model.slot("diffusion").vae.decoder.conv_in.weight.numel() > 0
for name in list(engine.trained)[:5]:
    value = torch.randn(engine.gather("param", name).shape)
    torch.distributed.broadcast(value, 0)
    for what in ("param", "average", "exp_avg"):
        engine.restore(what, name, value)
        assert torch.equal(engine.gather(what, name), value), (what, name)
processes.leave()
"""


@pytest.fixture(scope="module")
def fifty(settings, tmp_path_factory):
    """A run of fifty steps with plain torch in one process."""
    run = tmp_path_factory.mktemp("plain")
    train(settings(*FIFTY), run)
    return run


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_fifty_steps_have_the_same_losses(overrides, fifty, tmp_path, stage):
    zero(stage, tmp_path, *overrides, *FIFTY)
    compare(tmp_path, fifty)


@pytest.mark.long
@pytest.mark.parametrize("words", [[], ["model.mllm.img_tokens=0"]], ids=["lora", "connector without gradients"])
def test_sentences_of_several_lengths_give_the_same_losses(tmp_path, words):
    """Partitioned by ZeRO-3, the shipped MLLM generates in all processes until the last one has its sentence."""
    words = [*words, "model.encoders.reads=sentence", "data.count=8", "train.steps=2", "train.batch_size=2"]
    words += ["train.optimizer=adamw", "train.warmup=1", "train.log_every=1", "train.bf16=false", "train.tracker=null"]
    train(load_config("tiny", words), tmp_path / "plain")
    zero(3, tmp_path / "zero", *words)
    assert losses(tmp_path / "zero") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert len(losses(tmp_path / "zero")) == 2


@pytest.mark.long
def test_fifty_steps_of_muon_have_the_same_losses(overrides, settings, tmp_path):
    """Muon makes whole matrices orthogonal, of which each process holds a partition."""
    train(settings(*FIFTY, "train.optimizer=muon"), tmp_path / "plain")
    zero(3, tmp_path / "zero", *overrides, *FIFTY, "train.optimizer=muon")
    compare(tmp_path / "zero", tmp_path / "plain")


def compare(tmp_path, fifty):
    """Compares losses, norms, validation and pictures of two runs of fifty steps."""
    assert losses(tmp_path) == pytest.approx(losses(fifty), abs=1e-4) and len(losses(fifty)) == 50
    for name in ("norm", "norm/cme", "norm/diffusion", "norm/encoders"):
        assert logged(tmp_path, name) == pytest.approx(logged(fifty, name), rel=1e-2) and logged(fifty, name)
    found, expected = (logged(run, "validation/loss") for run in (tmp_path, fifty))
    assert found == pytest.approx(expected, abs=1e-4) and len(expected) == 2
    sheets = [np.asarray(Image.open(run / "validation" / "step-00000050.png")).astype(int) for run in (tmp_path, fifty)]
    assert np.abs(sheets[0] - sheets[1]).max() <= 2


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 3])
def test_parameters_are_partitioned_and_saved_completely(overrides, tmp_path, stage):
    (tmp_path / "script.py").write_text(PARTITIONED)
    done = launch(tmp_path / "script.py", ZERO / f"zero{stage}.json", *overrides, *QUICK)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
@pytest.mark.parametrize("stage", ["2", "3_offload"])
def test_bf16_offloading_and_checkpointing_have_similar_losses(overrides, fifty, tmp_path, stage):
    sixteen = ["train.bf16=true", "train.checkpointing=[diffusion,mllm,cme]", "train.steps=3"]
    zero(stage, tmp_path, *overrides, *QUICK, *sixteen)
    assert losses(tmp_path)[:2] == pytest.approx(losses(fifty)[:2], rel=5e-3)


NOT_FINITE = """
import sys
import torch
from pathlib import Path
from reasonbrain.config.loading import load_config
from reasonbrain.train.distributed import processes
from reasonbrain.train.batches import Batches
from reasonbrain.train.building import build
from reasonbrain.train.distributed.zero import ZeroEngine
from reasonbrain.train.distributed.zero_json import fill
file, overrides = sys.argv[1], sys.argv[2:]
cfg = load_config("tiny", overrides)
processes.join()
model = build(cfg).train()
engine, batches = ZeroEngine(model, cfg.train, fill(Path(file), cfg.train, 2)), Batches(cfg, model)
name = next(n for n in engine.trained if "cme" in n)
for step in range(3):
    before = engine.gather("param", name).clone()
    for part in range(batches.parts):
        loss = engine.forward(lambda: engine.model(*batches(step, part)))["loss"]
        bad = step == 1 and part == batches.parts - 1 and processes.rank() == 1
        engine.backward(loss * (float("inf") if bad else 1), batches.parts)
    norms, _ = engine.step(step)
    finite = all(n == n and n != float("inf") for n in norms.values())
    assert finite == (step != 1), norms
    after = engine.gather("param", name)
    assert torch.equal(before, after) == (step == 1) and torch.isfinite(after).all()
processes.leave()
"""


@pytest.mark.long
def test_nan_gradients_change_nothing(overrides, tmp_path):
    """A NaN in one process of two, in the last pass of the second step; the third step is normal. The other stages are
    in test_zero_engine.py."""
    (tmp_path / "script.py").write_text(NOT_FINITE)
    done = launch(tmp_path / "script.py", ZERO / "zero3.json", *overrides, *QUICK)
    assert done.returncode == 0, done.stderr[-3000:]


def stopped(run, step, folder):
    """A copy of the run with its state at ``step``."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "config.yaml", folder)
    shutil.copytree(run / "checkpoints" / f"step-{step:08d}", folder / "checkpoints" / f"step-{step:08d}")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_another_engine_resumes_a_run(overrides, settings, tmp_path, optimizer):
    """Two processes under ZeRO-3, then one with plain torch, then two under ZeRO-2; compared with one throughout."""
    nine = [*QUICK, "train.steps=9", f"train.optimizer={optimizer}"]
    train(settings(*nine), tmp_path / "plain")
    zero(3, tmp_path / "zero3", *overrides, *nine)
    one = stopped(tmp_path / "zero3", 3, tmp_path / "one")
    train(settings(*nine), one)
    two = stopped(one, 6, tmp_path / "two")
    zero(2, two, *overrides, *nine)
    expected = losses(tmp_path / "plain")
    assert losses(tmp_path / "zero3") == pytest.approx(expected, abs=1e-4) and len(expected) == 9
    assert losses(one) == pytest.approx(expected[3:], abs=1e-4) and losses(two) == pytest.approx(expected[6:], abs=1e-4)
    # ZeRO-2 exports the same as plain torch
    (a, _), (b, _) = load_model(two), load_model(tmp_path / "plain")
    for name, value in b.state_dict().items():
        atol = {"adamw": 2e-4, "muon": 1e-3}[optimizer]  # muon makes its steps orthogonal in bfloat16
        torch.testing.assert_close(a.state_dict()[name], value, atol=atol, rtol=1e-3)


def test_eight_bit_state_cannot_be_partitioned(settings, model):
    with pytest.raises(UserError, match="train.optimizer: adamw_8bit keeps its state in blocks that ZeRO would cut"):
        ZeroEngine(model, settings("train.optimizer=adamw_8bit").train, {})


@pytest.mark.long
def test_the_deepspeed_launcher(overrides, tmp_path):
    """The command of the README works, and a user error is one line from one process."""
    launcher = ("-m", "deepspeed.launcher.runner", "--num_gpus", "2")
    run = tmp_path / "run"
    args = ["train/train.py", "--config", "tiny", "--deepspeed", ZERO / "zero2.json", *overrides, *QUICK]
    done = launch(*args, "-o", run, "train.steps=1", launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(run)) == 1
    done = launch(*args, "-o", run, "train.batch_size=7", launcher=launcher)
    assert (
        done.returncode != 0
        and "error: train.batch_size: 7 is not divisible by the number of processes, 2" in done.stderr
    )
    assert "Traceback" not in done.stderr.replace('Traceback (most recent call last):\n  File "<frozen runpy>', "")


def test_without_a_launcher_one_process_trains(overrides, tmp_path):
    done = launch(*("-o", tmp_path, "--deepspeed", "zero2", *overrides, *QUICK, "train.steps=1"), launcher=ALONE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path)) == 1
