"""Predictions against what real CPU runs of a tiny model hold: live tensors of the engines, bytes saved for the
backward pass, the allocator's peak. ``pytest -s`` prints both figures. No GPU's memory was measured."""

import json

import pytest
import torch
from click.testing import CliRunner
from launching import QUICK, ZERO, launch
from torch.profiler import ProfilerActivity, profile

from reasonbrain.attention import set_attention
from reasonbrain.cli import main
from reasonbrain.config.loading import load_config, presets
from reasonbrain.train.batches import Batches
from reasonbrain.train.building import build, without_weights
from reasonbrain.train.engine import Engine
from reasonbrain.train.planning import plan
from reasonbrain.train.planning.dry import INSTRUCTION, fake_passes, norm_as_on_cuda

RECORDS = 4
SMALL_BUCKETS = {  # DeepSpeed's own would be all there is of a small model's memory
    "reduce_bucket_size": 500_000,
    "stage3_param_persistence_threshold": 500,
}

HELD = """
import gc, json, sys, torch
from pathlib import Path
from torch.profiler import ProfilerActivity, profile
from reasonbrain.attention import set_attention
from reasonbrain.config.loading import load_config
from reasonbrain.train.distributed import processes
from reasonbrain.train.planning import plan
from reasonbrain.train.planning.dry import INSTRUCTION, fake_passes, norm_as_on_cuda
from reasonbrain.train.planning.dry import preparing_parameters
from reasonbrain.train.building import build, without_weights
from reasonbrain.train.distributed.zero import ZeroEngine
from reasonbrain.train.distributed.zero_json import fill
file, *overrides = sys.argv[1:]
cfg = load_config("tiny", overrides)
processes.join()
zero_json = fill(file, cfg.train, 2)
expected = plan.held_bytes(without_weights(cfg), cfg, zero_json["zero_optimization"], 2)
one = fake_passes(cfg, cfg.train.micro_batch, cfg.train.bf16)[0]
model = build(cfg).train()
set_attention(model, "sdpa")
norm_as_on_cuda(model)
apart = preparing_parameters(model)
prepares = [p for p in model.parameters() if id(p) in apart]
engine = ZeroEngine(model, cfg.train, zero_json)
zero, records, parts = engine.zero, cfg.train.micro_batch, 2
images = torch.rand(records, 3, cfg.data.size, cfg.data.size)
regions = torch.zeros(records, cfg.data.size, cfg.data.size, dtype=torch.long)
ready = model.image_features(images)
inputs = model.make_inputs(images, [INSTRUCTION] * records, [["the candle"]] * records, regions, ready)
latents = model.slot("diffusion").encode(images)
def bytes_of(tensors):
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
def step(number):
    most = 0
    for part in range(parts):
        losses = engine.forward(lambda: engine.model(inputs, latents, latents, range(records)))
        engine.backward(losses["loss"], parts)
        gradients = [zero.grad_partitions_flat_buffer] if engine.stage == 3 else []
        if engine.stage < 3:
            gradients += [g for group in zero.averaged_gradients.values() for g in group or []]
            gradients += [p.grad for p in engine.trained.values() if p.grad is not None]
        most = max(most, sum(g.numel() * g.element_size() for g in gradients))
    del losses, gradients
    engine.step(number)
    return most
most = step(0)
params = list(model.parameters())
params += [p.ds_tensor for p in params] if engine.stage == 3 else []
states = [t for s in engine.inner.state.values() for t in s.values() if torch.is_tensor(t)]
masters = [f for f in engine.average if engine.stage < 3 or cfg.train.bf16]
found = {
    "weights": (expected.weights, bytes_of([*params, *prepares])),
    "gradients": (expected.gradients, most),
    "optimizer": (expected.optimizer, bytes_of([*masters, *engine.average.values(), *states])),
}
gc.collect()
now = peak = bytes_of([t for t in gc.get_objects() if isinstance(t, torch.Tensor)])
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
    step(1)
events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
for event in sorted(events, key=lambda e: e.start_ns()):
    now += event.nbytes()
    peak = max(peak, now)
total = expected.weights + expected.gradients + expected.optimizer + expected.buffers + max(one.peak, expected.step)
found["peak"] = (total, peak)
if processes.rank() == 0:
    print("HELD " + json.dumps(found))
processes.leave()
"""


def bytes_of(tensors):
    """The bytes of the tensors, each storage counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "muon"])
def test_plain_torch_holds_the_predicted_bytes(settings, optimizer):
    cfg = settings(*QUICK, f"train.optimizer={optimizer}")
    expected = plan.held_bytes(without_weights(cfg), cfg, None, 1)
    model = build(cfg).train()
    engine, batches = Engine(model, cfg.train), Batches(cfg, model)
    engine.backward(engine.forward(lambda: model(*batches(0)))["loss"], 1)
    assert bytes_of(model.parameters()) == expected.weights
    assert bytes_of(p.grad for p in engine.trained.values()) == expected.gradients
    engine.step(0)
    states = [t for o in engine.optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
    held = bytes_of([*engine.average.values(), *states])
    # beside them a number for each parameter, and bitsandbytes' two tables of 256 numbers
    assert 0 <= held - expected.optimizer <= 4 * len(engine.trained) + 2048 + 16 * len(engine.trained)


def real_pass(cfg, checkpointing):
    """Measured without plan's counter: bytes that autograd saves, and the allocator's peak (torch's profiler)."""
    model = build(cfg).train()
    set_attention(model, "sdpa")
    norm_as_on_cuda(model)
    for part in model.parts.values() if checkpointing else ():
        part.enable_gradient_checkpointing()
    images = torch.rand(RECORDS, 3, cfg.data.size, cfg.data.size)
    regions = torch.zeros(RECORDS, cfg.data.size, cfg.data.size, dtype=torch.long)
    ready = model.image_features(images)
    inputs = model.make_inputs(images, [INSTRUCTION] * RECORDS, [["the candle"]] * RECORDS, regions, ready)
    latents = model.slot("diffusion").encode(images)
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    packed = {}

    def pack(t):
        if t.untyped_storage()._cdata not in known:
            packed[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    def losses():
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.train.bf16):
            return model(inputs, latents, latents, range(RECORDS), cfg.train.draws)["loss"]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = losses()
    saved = sum(storage.nbytes() for storage in packed.values())
    loss.backward()
    del loss
    packed.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        losses().backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return saved, peak


@pytest.mark.parametrize("bf16", ["false", "true"])
def test_activations_are_those_of_a_real_pass(settings, bf16):
    cfg = settings(*QUICK, f"train.bf16={bf16}", "train.draws=2")
    for checkpointing, expected in zip((False, True), fake_passes(cfg, RECORDS, False), strict=True):
        saved, peak = real_pass(cfg, checkpointing)
        print("bf16", bf16, "checkpointing", checkpointing, "saved", expected.saved, saved, "peak", expected.peak, peak)
        if not checkpointing:  # a checkpointed block's keyword arguments are alive too, and autograd does not see them
            assert expected.saved == pytest.approx(saved, rel=0.05)
        assert expected.peak == pytest.approx(peak, rel=0.15)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "bf16", "optimizer"),
    [
        ("zero1", "true", "adamw"),
        ("zero2", "true", "adamw"),
        ("zero3", "true", "adamw"),
        ("zero3", "false", "adamw"),
        ("zero2", "false", "muon"),
    ],
)
def test_two_processes_hold_the_predicted_bytes(overrides, tmp_path, name, bf16, optimizer):
    pytest.importorskip("deepspeed")
    config = json.loads((ZERO / f"{name}.json").read_text())
    config["zero_optimization"] |= SMALL_BUCKETS
    (tmp_path / "zero.json").write_text(json.dumps(config))
    (tmp_path / "script.py").write_text(HELD)
    more = [*QUICK, f"train.bf16={bf16}", f"train.optimizer={optimizer}"]
    done = launch(tmp_path / "script.py", tmp_path / "zero.json", *overrides, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("HELD ")]
    print(name, bf16, line)
    for kind, (expected, found) in json.loads(line[5:]).items():
        assert expected == pytest.approx(found, rel=0.15 if kind == "peak" else 0.02), kind


def test_a_sentence_is_not_generated_and_without_img_tokens_there_is_no_pass_of_the_mllm(settings):
    words = ["model.encoders.reads=sentence", "model.mllm.img_tokens=0"], ["model.mllm=null"]
    reads, null = (fake_passes(settings(*QUICK, *w), RECORDS, narrow=False)[0] for w in words)
    assert reads.flops == null.flops > 0


@pytest.mark.long
def test_the_large_configuration_costs_what_flux_does():
    """FLUX.1's published cost is 74.4 TFLOP for a forward pass over 4096 + 512 tokens; here it reads 4096 + 154, and
    the backward pass takes twice the forward's. The MLLM adds a quarter."""
    cfg = load_config("reasonbrain_flux_llava", ["train.checkpointing=[]"])
    first, checkpointed = fake_passes(cfg, 1, True)
    assert checkpointed.peak < first.peak / 5 and checkpointed.flops > first.flops
    flux = 3 * 74.4e12 * (4096 + 154) / (4096 + 512)
    assert flux < first.flops < 1.5 * flux


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("reasonbrain_")])
def test_every_preset_fits_on_eight_gpus_of_80_gb_as_it_is(name):
    found = plan.plan(name, [], 8, 80)
    (row,) = [row for row in found["rows"] if row["layout"] == "zero3"]
    assert row["fits"] and row["checkpointing"] == "as configured"
    assert "train." not in found["advice"] and "model." not in found["advice"]


@pytest.mark.long
def test_kontext_think_fits_one_gpu_of_80_gb():
    assert plan.plan("reasonbrain_kontext_think", [], 1, 80)["advice"] == "fits as configured"


def test_advice(overrides):
    """The first row that fits; then changes that make rows smaller; then that no option fits."""
    cfg = ["train.optimizer=adamw", "train.batch_size=8", *overrides]
    wanted = load_config("tiny", cfg)
    model = without_weights(wanted)
    made, _ = plan.rows(wanted, model, 2)
    peaks = {(row["layout"], row["checkpointing"]): row["peak"] for row in made}
    ask = lambda usable: plan.advice("tiny", cfg, model, 2, usable, made)  # noqa: E731
    assert ask(peaks["plain", "as configured"]) == "fits as configured"
    assert "frce_patch" in ask(peaks["plain", "all blocks"]) and "deepspeed" not in ask(peaks["plain", "all blocks"])
    assert "train.micro_batch=1" in ask(peaks["plain", "all blocks"] * 0.95)
    assert ask(0).startswith("no option fits")

    few, _ = plan.rows(wanted, model, 2, max(peaks.values()))
    found = {(row["layout"], row["checkpointing"]): row["peak"] for row in few}
    assert found == {(layout, how): peak for (layout, how), peak in peaks.items() if how == "as configured"}
    few, _ = plan.rows(wanted, model, 2, 1)  # nothing fits, whatever the activations
    assert all(row["activations"] is None and row["checkpointing"] == "" for row in few)
    assert all(row["peak"] <= min(p for (layout, _), p in peaks.items() if layout == row["layout"]) for row in few)


def test_the_command(overrides):
    args = [
        "plan",
        "tiny",
        "--gpus",
        "2",
        "--gpu-memory",
        "24",
        "--size",
        "32",
        *overrides,
        "train.optimizer=adamw_8bit",
    ]
    done = CliRunner().invoke(main, [*args, "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["size"] == 32 and found["flops_a_step_and_gpu"] > 0
    assert {row["layout"] for row in found["rows"]} == {"plain"}  # ZeRO would cut its blocks
    assert found["parameters"]["diffusion"]["trained"] < found["parameters"]["diffusion"]["all"]  # its autoencoder
    assert found["advice"] in plan.text(found) and "0.02" in plan.text(found)
    for wrong, message in (
        (["train.batch_size=3"], "is not divisible by the number of processes, 2"),
        (["--gpu-memory=1"], "more than 2 GB"),
        (["train.optimizer=sgd"], "train.optimizer: 'sgd' is not one of adamw, adamw_8bit, muon"),
        (["--size=60"], "data.size: 60 is not a multiple of"),
        (["model.mllm=null", "model.diffusion=null"], "nothing is left to train"),
        (["model.cme=null", "train.checkpointing=[cme]"], "slot 'cme' is null"),
    ):
        done = CliRunner().invoke(main, [*args, *wrong])
        assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1
