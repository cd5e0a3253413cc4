"""Starting under ZeRO-3 from a checkpoint in several files: no process holds much more than its partition."""

import json
from pathlib import Path

import pytest
import torch
from launching import QUICK, ZERO, launch, losses, zero

from reasonbrain.checkpoint import save_model
from reasonbrain.errors import UserError
from reasonbrain.train.building import build, init
from reasonbrain.train.run import train

FLUX = "model.diffusion.architecture.transformer"
LARGE = [f"{FLUX}.num_layers=4", f"{FLUX}.num_single_layers=4", f"{FLUX}.num_attention_heads=8"]
LARGE += [f"{FLUX}.attention_head_dim=64", f"{FLUX}.axes_dims_rope=[8,28,28]"]

MEASURE = """
import json, sys, torch
from pathlib import Path
from reasonbrain.config.loading import load_config
from reasonbrain.train.distributed import processes
from reasonbrain.train.building import build
from reasonbrain.train.distributed.zero import partitioner
from reasonbrain.train.distributed.zero_json import fill
import reasonbrain.modules.diffusion.flux, reasonbrain.modules.mllm.qwen2_5_vl, deepspeed
file, way, overrides = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
cfg = load_config("tiny", overrides)
processes.join()
partition = partitioner(fill(file, cfg.train, 2))
torch.distributed.all_reduce(torch.zeros(1 << 20))

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = memory("VmRSS")
model = build(cfg, partition if way == "lean" else None)
peak = memory("VmHWM") - before
whole = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters()) * 4 / 2**20
held = sum(p.ds_tensor.numel() for p in model.parameters() if hasattr(p, "ds_tensor")) * 4 / 2**20
if processes.rank() == 0:
    print("FOUND " + json.dumps({"peak": peak, "whole": whole, "held": held}))
processes.leave()
"""


@pytest.fixture(scope="module")
def start(settings, tmp_path_factory):
    """A checkpoint of 260 MB in files of 16 MB."""
    folder = tmp_path_factory.mktemp("start") / "model"
    cfg = settings(*QUICK, *LARGE)
    save_model(build(cfg), cfg, folder, max_shard_size="16MB")
    assert len(list((folder / "diffusion").glob("model-*.safetensors"))) > 10
    return folder


@pytest.mark.long
def test_a_process_holds_at_most_its_partition_and_one_file(overrides, start, tmp_path, monkeypatch):
    """Mebibytes above those of the imported libraries, at the most, while the model is loaded: its part, a file of 16,
    and 32 for the largest tensors (8, twice) and what the libraries load on first use."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")  # or glibc keeps the small pieces that were freed
    (tmp_path / "script.py").write_text(MEASURE)
    found = {}
    for way in ("lean", "whole"):
        args = [ZERO / "zero3.json", way, *overrides, *QUICK, *LARGE, f"train.start={start}"]
        done = launch(tmp_path / "script.py", *args)
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        found[way] = json.loads(line[6:])
    print(found)
    lean = found["lean"]
    assert lean["whole"] > 200 and lean["held"] == pytest.approx(lean["whole"] / 2, rel=0.05)
    assert lean["peak"] < lean["held"] + 16 + 32 < found["whole"]["peak"]


@pytest.mark.long
def test_training_from_there_equals_plain_torch(overrides, settings, tmp_path):
    steps = [*QUICK, "train.steps=2", "train.save_every=2"]
    cfg = settings(*steps)
    torch.manual_seed(5)
    first = build(cfg)
    for p in first.parameters():
        p.data.add_(torch.randn_like(p) * 0.01) if p.requires_grad else None
    save_model(first, cfg, tmp_path / "start", max_shard_size="100KB")
    go = [*steps, f"train.start={tmp_path / 'start'}"]
    train(settings(*go), tmp_path / "plain")
    zero(3, tmp_path / "zero", *overrides, *go)
    train(settings(*steps), tmp_path / "other")
    expected = losses(tmp_path / "plain")
    assert losses(tmp_path / "zero") == pytest.approx(expected, abs=1e-4)
    assert losses(tmp_path / "other") != pytest.approx(expected, abs=1e-3)


def test_a_start_of_another_model_is_refused(settings, tmp_path):
    cfg = settings(*QUICK)
    save_model(build(cfg), cfg, tmp_path / "start")
    with pytest.raises(UserError, match="model.cme.queries: checkpoint .* was made with 6, not 7"):
        build(settings(*QUICK, f"train.start={tmp_path / 'start'}", "model.cme.queries=7"))
    with pytest.raises(UserError, match="neither 'tiny' nor a folder"):
        build(settings(*QUICK, f"train.start={Path(tmp_path / 'nowhere')}"))


def test_init_writes_the_initial_model_of_a_run(overrides, settings, tmp_path):
    """Every tensor is equal, LoRA included. The folder is not a run, and is not overwritten."""
    cfg = settings(*QUICK)
    init(cfg, tmp_path / "start")
    again = build(settings(*QUICK, f"train.start={tmp_path / 'start'}"))
    for name, value in build(cfg).state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in build(cfg).named_parameters() if p.requires_grad
    ]
    with pytest.raises(UserError, match="is not empty"):
        init(cfg, tmp_path / "start")
    assert not (tmp_path / "start.new").exists()
