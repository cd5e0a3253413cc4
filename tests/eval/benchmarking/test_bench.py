"""The benchmarks run the real model and count its operations. Speed is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, SamConfig

from reasonbrain import cli
from reasonbrain.checkpoint import embedded
from reasonbrain.config.loading import load_config
from reasonbrain.eval.benchmarking import batches as bench_batch
from reasonbrain.eval.benchmarking.source import random_model
from reasonbrain.eval.benchmarking.timing import Flops, Timing, peak_flops
from reasonbrain.plugin import Plugin
from reasonbrain.train.batches import Batches
from reasonbrain.train.step import fastest_attention

QUICK = ["--warmup", "0", "--repeats", "2"]
TRAIN = ["train.batch_size=4", "train.micro_batch=2", "train.draws=3", "data.count=70"]
PICTURE, TEXT = 64, 12  # 64 pixels, a quarter in latents, two by two a token; queries of the connector and the CME


@pytest.fixture
def bench(tmp_path):
    """``bench("train", ...)``: the command's JSON and its output."""

    def call(*args):
        result = CliRunner().invoke(cli.main, ["bench", *args, "-o", str(tmp_path / "found.json")])
        assert result.exit_code == 0, result.stderr or result.exception
        found = json.loads((tmp_path / "found.json").read_text())
        return found | {"rows": {row["what"]: row for row in found["rows"]}}, result.stdout

    return call


class Two(Plugin):
    """Two equal blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh()) for _ in range(2))

    def repeated(self):
        return list(self.blocks)


@pytest.mark.parametrize("again", [False, True])
def test_flops_are_those_of_the_operations(again):
    """[3, 5] times [5, 5], twice: forward; backward to the weights; and in the second block backward to its input."""
    model, count = Two(), Flops()
    if again:
        model.enable_gradient_checkpointing()
    with count:
        loss = model.blocks[1](model.blocks[0](torch.randn(3, 5))).sum()
        with count.backward():
            loss.backward()
    product = 2 * 3 * 5 * 5
    assert count.flops == (2 + 3) * product
    assert count.again == (2 * product if again else 0)


def test_rates_are_those_of_the_median_run():
    numbers = Timing("x", [4.0, 1.0, 2.0], images=6, tokens=100, flops=8).numbers(peak=16.0)
    assert (numbers["median"], numbers["min"], numbers["max"]) == (2.0, 1.0, 4.0)
    assert (numbers["images_per_second"], numbers["tokens_per_second"], numbers["flops_per_second"]) == (3, 50, 4)
    assert numbers["mfu"] == 0.25


def test_peak_is_from_a_data_sheet_or_measured(monkeypatch):
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA GB200": 2500e12}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        found, origin = peak_flops(torch.device("cuda"), torch.bfloat16)
        assert found == peak and origin.startswith("data sheet of ")
    found, origin = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < found < 1e14 and origin.startswith("measured, a product of 1024 x 1024")


def test_training_steps(bench, overrides, settings, build, tmp_path):
    """FLOPs agree with torch's own count, checkpointed or not; with features on disk no record is prepared."""
    found, printed = bench("train", *QUICK, *overrides, *TRAIN)
    step, reading = found["rows"]["training step"], found["rows"]["reading its records"]
    assert step["images"] == 4 and step["tokens"] == 4 * 3 * (PICTURE + TEXT) and step["again"] == 0
    assert all(r < s for r, s in zip(reading["seconds"], step["seconds"], strict=True)) and len(step["seconds"]) == 2
    assert 1 <= found["prepared"] <= 8 and found["gib"] > 0 and found["overrides"] == [*overrides, *TRAIN]
    assert f"| training step | {step['median']:.4g} (" in printed and "(measured, a product of 1024 x 1024" in printed

    model = build().train()
    batches = Batches(settings(*TRAIN), model)
    passes = [batches(0, part) for part in range(batches.parts)]
    with fastest_attention("cpu"), FlopCounterMode(display=False) as counter:
        for one in passes:
            model(*one, draws=3)["loss"].backward()
    assert step["flops"] == counter.get_total_flops()

    cache = CliRunner().invoke(cli.main, ["data", "cache", "-o", str(tmp_path / "f"), *overrides, "data.count=70"])
    assert cache.exit_code == 0
    more = [f"data.features={tmp_path / 'f'}", "train.checkpointing=[diffusion]"]
    found, _ = bench("train", *QUICK, *overrides, *TRAIN, *more)
    saved = found["rows"]["training step"]
    assert found["prepared"] == 0 and saved["flops"] == step["flops"] and 0 < saved["again"] < step["flops"] / 3


def test_edits(bench, overrides):
    found, _ = bench("edit", *QUICK, *overrides)
    rows = found["rows"]
    assert (found["pixels"], found["denoising_steps"]) == (64, 3)
    assert rows["denoising step"]["tokens"] == PICTURE + TEXT and rows["edit"]["tokens"] == 3 * (PICTURE + TEXT)
    assert len(rows["denoising step"]["seconds"]) == 2 * 2  # the first step of an edit is not told apart from the rest
    parts = 3 * rows["denoising step"]["flops"] + rows["conditioning"]["flops"]
    assert 0 < parts < rows["edit"]["flops"] and rows["conditioning"]["flops"] > rows["denoising step"]["flops"] > 0
    once, _ = bench("edit", *QUICK, *overrides, "edit.steps=1")
    assert set(once["rows"]) == {"edit", "conditioning"}
    assert rows["edit"]["flops"] - once["rows"]["edit"]["flops"] == 2 * rows["denoising step"]["flops"]


@pytest.mark.long
def test_batches(bench, overrides, monkeypatch):
    for name, value in (("COUNT", 6), ("MORE", 12), ("MANY", (2, 5))):
        monkeypatch.setattr(bench_batch, name, value)
    found, said = bench("batch", *overrides, *QUICK)
    assert {name: row["images"] for name, row in found["rows"].items()} == {
        "plain loop": 6,
        "batches of 8": 6,
        "2 workers": 12,
    }
    assert list(found["gib_after"]) == ["2", "5"] and 0 < found["gib_after"]["2"] <= found["gib_after"]["5"]
    assert "gib after 5 rows" in said


def test_loading_takes_memory_for_the_weights(tmp_path):
    """In a process of its own, because the peak of a process includes everything before."""
    argv = [sys.executable, "-m", "reasonbrain.cli", "bench", "load", "--checkpoint", "tiny", *QUICK]
    subprocess.run([*argv, "-o", str(tmp_path / "found.json")], check=True, capture_output=True, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    stored = sum(f.stat().st_size for f in embedded().glob("*/model.safetensors"))  # in bfloat16
    assert stored / 2**30 < found["gib_of_weights"] < found["gib"] < 1


@pytest.fixture
def unpublished(tmp_path, overrides):
    """A tiny LLaVA and a tiny SAM in folders without weights, tokenizers and processors."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "intermediate_size": 64}
    text = small | {"model_type": "llama", "vocab_size": 4000, "num_key_value_heads": 2, "intermediate_size": 64}
    LlavaConfig(vision_config=vision, text_config=text, image_token_index=3999).save_pretrained(tmp_path / "llava")
    sight = small | {"image_size": 1024, "output_channels": 16, "mlp_dim": 32, "window_size": 4}
    sight |= {"global_attn_indexes": [1], "patch_size": 64, "num_pos_feats": 8}
    masks = {"hidden_size": 16, "iou_head_hidden_dim": 16, "mlp_dim": 16, "num_attention_heads": 2}
    prompts = {"hidden_size": 16, "image_size": 1024, "patch_size": 64, "image_embedding_size": 16}
    SamConfig(vision_config=sight, mask_decoder_config=masks, prompt_encoder_config=prompts).save_pretrained(
        tmp_path / "sam"
    )
    return [
        *overrides,
        "model.mllm.name=llava",
        f"model.mllm.pretrained={tmp_path / 'llava'}",
        "model.frce.region.name=sam",
        f"model.frce.region.pretrained={tmp_path / 'sam'}",
        "model.frce.region.points_per_side=2",
        "model.frce.region.heads=2",
        "data.name=manifest",
        "data.path=nowhere.jsonl",
    ]


def test_random_weights_need_no_hub_and_no_data(bench, overrides, unpublished):
    """The operations are the same as with published weights."""
    random, _ = bench("train", "--random", *QUICK, *unpublished, *TRAIN)
    assert random["prepared"] >= 1 and random["rows"]["training step"]["tokens"] == 4 * 3 * (PICTURE + TEXT)
    bench("edit", "--random", *QUICK, *unpublished)
    random, _ = bench("edit", "--random", *QUICK, *overrides)
    published, _ = bench("edit", *QUICK, *overrides)
    for name, row in published["rows"].items():
        assert random["rows"][name]["flops"] == row["flops"]


def test_number_of_tokens_at_true_size():
    """On the meta device. Qwen2.5-VL has one token per 28 x 28 pixels and rounds: 1024 / 28 is 37."""
    cfg = load_config("reasonbrain_flux_qwen", ["model.diffusion.trained=lora", "model.diffusion.precision=bfloat16"])
    model = random_model(cfg, torch.device("meta"))
    assert sum(p.numel() for p in model.parameters()) > 21e9
    mllm = model.slot("mllm")
    grid = mllm.image_processor(images=[Image.new("RGB", (1024, 1024))], return_tensors="pt")
    assert grid["image_grid_thw"].tolist() == [[1, 74, 74]] and mllm.model.model.visual.spatial_merge_size == 2
    assert mllm.tokenizer.convert_tokens_to_ids(mllm.image_token) == mllm.tokenizer("<|image_pad|>").input_ids[0]


def test_mistakes_are_one_line(tmp_path):
    wrong = {
        ("load", "--checkpoint", "tiny", "--random"): "--random: checkpoint 'tiny' has weights",
        ("edit", "--config", "nothing"): "config 'nothing' is neither a preset",
        ("train", "--random", "model.mllm.pretrained=nobody/nothing"): "'nobody/nothing' is not known",
        ("train", "model.cme=null", "train.compile=[cme]"): "train: slot 'cme' is null",
    }
    for args, said in wrong.items():
        result = CliRunner().invoke(cli.main, ["bench", *args])
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.exit_code == 2 and len(errors) == 1 and said in errors[0]


def test_the_output_is_written_atomically_at_the_end(tmp_path):
    """A failed command leaves the old file; a full disk is an error; a device is not replaced."""
    old = tmp_path / "old.json"
    old.write_text("old")

    def bench(path, *more):
        return CliRunner().invoke(cli.main, ["bench", "load", *QUICK, "-o", str(path), *more])

    assert bench(old, "--checkpoint", "/nonexistent").exit_code == 2 and old.read_text() == "old"
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "no" / "x.json", "cannot be written")):
        done = bench(path)
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
    full = tmp_path / "full.json"
    full.symlink_to("/dev/full")
    done = bench(full, "--checkpoint", "tiny")
    assert done.exit_code == 2 and "full.json' cannot be written: No space left on device" in done.stderr
    assert full.is_symlink() and Path("/dev/full").is_char_device()
