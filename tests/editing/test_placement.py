"""--device, --dtype and --offload: where and in which precision commands edit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from reasonbrain import cli
from reasonbrain.config.schema import EditConfig
from reasonbrain.editing import placement
from reasonbrain.editing.placement import find_device, open_pipeline, weights_dtype
from reasonbrain.errors import UserError
from reasonbrain.modules.common.nf4 import Nf4Linear

ICE = "docs/samples/ice.png"


def command(*args):
    result = CliRunner().invoke(cli.main, [*map(str, args)])
    return result.exit_code, result.stderr.strip()


def test_the_precision_of_an_edit(tmp_path):
    """Each differs from float32 a little, and no more."""
    pictures = {}
    for dtype in ("float32", "bfloat16", "float16", "fp8", "nf4"):
        out = tmp_path / f"{dtype}.png"
        assert command("edit", ICE, "Leave it in the sun.", "--steps", 2, "--dtype", dtype, "-o", out) == (0, "")
        pictures[dtype] = np.asarray(Image.open(out)).astype(float) / 255
    plain = pictures.pop("float32")
    off = {dtype: np.abs(picture - plain).mean() for dtype, picture in pictures.items()}
    assert 0 < off["float16"] < off["bfloat16"] < off["fp8"] < off["nf4"] < 0.05


def test_fp8_and_nf4_shrink_the_large_layers():
    def blocks(dtype):
        pipe = open_pipeline("tiny", [f"edit.dtype={dtype}"])
        return [m for b in pipe.diffusion.repeated() for m in b.modules() if isinstance(m, torch.nn.Linear)]

    held = {m.weight.dtype for m in blocks("fp8")}
    assert held == {torch.float8_e4m3fn, torch.bfloat16}  # those of norms are not compressed
    quantised = [m for m in blocks("nf4") if isinstance(m, Nf4Linear)]
    assert quantised and all(m.weight.nbytes * 2 == m.in_features * m.out_features for m in quantised)


@pytest.mark.parametrize("accelerator", [None, torch.device("cuda")])
def test_the_device_and_the_precision_that_null_stands_for(accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert find_device(EditConfig(), 6) == torch.device("cuda:2" if accelerator else "cpu")
    assert weights_dtype(EditConfig()) == (torch.bfloat16 if accelerator else torch.float32)
    assert find_device(EditConfig(device="cpu")) == torch.device("cpu")
    assert weights_dtype(EditConfig(device="cpu")) == torch.float32
    assert weights_dtype(EditConfig(dtype="nf4")) == torch.bfloat16


@pytest.mark.parametrize("device", ["cuda", "meta", "quark"])
def test_a_device_that_is_not_there(device, tmp_path):
    code, said = command("edit", ICE, "Melt it.", "--device", device, "-o", tmp_path / "out.png")
    assert code == 2 and said.startswith(f"error: edit.device: '{device}' cannot be used: ") and "\n" not in said


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading(offload, monkeypatch):
    """The pipeline's own methods get the device; on a CPU there is nothing to offload from."""
    overrides = [f"edit.offload={offload}"]
    with pytest.raises(UserError, match=f"edit.offload: '{offload}' moves weights to an accelerator, but .* 'cpu'"):
        open_pipeline("tiny", overrides)
    called = []
    monkeypatch.setattr(placement, "find_device", lambda edit, index=0: torch.device("cuda:1"))
    for method in ("enable_model_cpu_offload", "enable_group_offload"):
        monkeypatch.setattr(
            placement.ReasonBrainPipeline, method, lambda pipe, method=method, **k: called.append((method, k))
        )
    pipe = open_pipeline("tiny", overrides)
    assert {p.device.type for p in pipe.model.parameters()} == {"cpu"}
    on = {"model": {"device": torch.device("cuda:1")}}.get(
        offload, {"onload_device": torch.device("cuda:1"), "offload_type": "leaf_level", "use_stream": True}
    )
    assert called == [("enable_model_cpu_offload" if offload == "model" else "enable_group_offload", on)]


def test_a_batch_in_another_precision_is_another_job(tmp_path):
    job = ["batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "edit.steps=1"]
    row = {"id": "ice", "image": str(Path(ICE).absolute()), "instruction": "Melt it."}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(row) + "\n")
    assert command(*job, "--dtype", "bfloat16") == (0, "")
    assert command(*job, "--dtype", "bfloat16", "--device", "cpu") == (0, "")
    code, said = command(*job)
    assert code == 2 and "has results of another job: edit.dtype was bfloat16, not float32" in said


def test_an_evaluation_in_another_precision_makes_its_own_edits(tmp_path):
    run = ["eval", "--benchmark", "mini", "--data", "test", "--limit", 1, "-o", tmp_path, "edit.steps=1"]
    assert command(*run, "--dtype", "bfloat16")[0] == 0
    code, said = command(*run)
    assert code == 2 and "were made with another edit" in said and "'dtype': 'bfloat16'" in said
