"""What only a GPU can show; `make gpu` runs it. RB_GPU_TESTS=cpu runs the same code on a CPU, to keep it alive."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from reasonbrain.editing.placement import open_pipeline

DEVICE = os.environ.get("RB_GPU_TESTS", "cuda")
ICE = "docs/samples/ice.png"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU of CUDA"),
]


def edit(*overrides, device=DEVICE):
    pipe = open_pipeline("tiny", [f"edit.device={device}", "edit.steps=4", "edit.preserve=false", *overrides])
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    return pipe(ICE, "Leave it in the sun.", generator=noise, output_type="np").images[0]


@pytest.fixture(scope="module")
def exact():
    return edit("edit.dtype=float32", device="cpu")


@pytest.mark.parametrize(
    ("overrides", "largest"),
    [
        (["edit.dtype=float32"], 1e-3),
        (["edit.dtype=float32", "model.attention=math"], 1e-3),
        (["edit.dtype=float16"], 0.03),
        ([], 0.05),
        (["edit.dtype=fp8"], 0.05),
        (["edit.dtype=nf4"], 0.08),
        (["edit.dtype=float32", "edit.cache=taylor"], 0.05),
        (["edit.dtype=float32", "edit.compile=true"], 1e-3),
    ],
)
def test_an_edit_is_nearly_that_of_a_cpu(overrides, largest, exact):
    assert np.abs(edit(*overrides) - exact).mean() < largest


@pytest.mark.skipif(DEVICE == "cpu", reason="there is nothing to offload from")
@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_changes_no_pixel_and_takes_less_memory(offload):
    peaks, pictures = [], []
    for overrides in ([], [f"edit.offload={offload}"]):
        torch.cuda.reset_peak_memory_stats()
        pictures.append(edit(*overrides))
        peaks.append(torch.cuda.max_memory_allocated())
        torch.cuda.empty_cache()
    assert (pictures[0] == pictures[1]).all() and peaks[1] < peaks[0]


@pytest.mark.parametrize("engine", [[], ["--deepspeed", "zero2"], ["--deepspeed", "zero3"]])
def test_training_steps(engine, tmp_path):
    small = ["train.steps=2", "train.batch_size=2", "data.count=4", "train.bf16=true"]
    command = [sys.executable, "-m", "reasonbrain.cli", "train", "--config", "tiny", "-o", tmp_path / "run", *engine]
    done = subprocess.run([*command, *small], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "run" / "model" / "config.yaml").is_file(), done.stderr[-2000:]
