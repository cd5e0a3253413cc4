"""``train.stages``: each stage has its own losses, slots and rates, starts from the one before, and resumes exactly."""

import json

import layouts
import pytest
import torch
from launching import ROOT, launch
from safetensors.torch import load_file

from reasonbrain.checkpoint import find_checkpoint
from reasonbrain.errors import UserError
from reasonbrain.train import loop, run
from reasonbrain.train.batches import Batches
from reasonbrain.train.export import export
from reasonbrain.train.run import train
from reasonbrain.train.stages import stages_of

ALIGN = {"name": "align", "train": {"steps": 2, "lr": 1e-3, "dm_weight": 0, "align_weight": 1}}
ALIGN["train"]["slots"] = {name: {"train": False} for name in ("diffusion", "cme")}
EDIT = {"name": "edit", "train": {"steps": 3}, "data": {"seed": 5}}
QUICK = ["model.frce=null", "model.connector.queries=32", "data.count=8", "data.augment=null", "train.batch_size=2"]
QUICK += ["train.log_every=1", "train.save_every=1", "train.warmup=1"]


def staged(*stages):
    return [*QUICK, f"train.stages={json.dumps(stages)}"]


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def tensors(folder):
    return {f"{p.parent.name} {k}": v for p in sorted(folder.rglob("*.safetensors")) for k, v in load_file(p).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged") / "run"
    train(settings(*staged(ALIGN, EDIT)), folder)
    return folder


def test_each_stage_has_its_own_losses_slots_and_data(done):
    first, last = lines(done / "stages" / "align"), lines(done)
    assert {line["stage"] for line in first} == {"align"} and {line["stage"] for line in last} == {"edit"}
    assert [line["step"] for line in first] == [1, 2] and [line["step"] for line in last] == [1, 2, 3]
    assert all(line["dm"] == 0 and line["align"] > 0 and "dm/0.25-0.50" not in line for line in first)
    assert all(line["loss"] == pytest.approx(line["lm"] + line["align"], rel=1e-4) for line in first)
    assert all(line["dm"] > 0 and "align" not in line for line in last)
    trained = [tensors(folder / "checkpoints") for folder in (done / "stages" / "align", done)]
    slots = [{key.split(".")[1] for key in found if " param/" in key} for found in trained]
    assert slots == [{"encoders", "mllm", "connector"}, {"encoders", "mllm", "connector", "cme", "diffusion"}]
    steps = {float(v) for k, v in tensors(done / "checkpoints" / "step-00000003").items() if " step/" in k}
    assert steps == {3.0}  # the optimizer starts afresh
    assert find_checkpoint(done) == done / "model"


def test_a_stage_starts_from_the_model_of_the_one_before(settings, tmp_path):
    still = {"name": "still", "train": {"steps": 1, "lr": 0, "slots": {"diffusion": {"train": True}}}}
    train(settings(*staged(ALIGN, still)), tmp_path)
    assert same(tensors(tmp_path / "stages" / "align" / "model"), tensors(tmp_path / "model"))


@pytest.mark.parametrize("stop", [1, 2, 3, "export"])
def test_resumes_bit_identically_in_every_stage(done, settings, tmp_path, monkeypatch, stop):
    """Stopped in the first stage, at the start of the second, in it, and between the two."""
    calls, take = [], loop.take_step

    def stopping(*args, **kwargs):
        calls.append(args)
        if len(calls) - 1 == stop:
            raise RuntimeError("stopped")
        return take(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(loop, "take_step", stopping)
        if stop == "export":
            patch.setattr(run, "export", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
        train(settings(*staged(ALIGN, EDIT)), tmp_path / "run")
    train(settings(*staged(ALIGN, EDIT)), tmp_path / "run")
    assert same(tensors(tmp_path / "run"), tensors(done))
    for folder in ("stages/align", "."):
        one, other = (lines(top / folder) for top in (tmp_path / "run", done))
        assert [line["loss"] for line in one] == [line["loss"] for line in other]


def test_a_finished_stage_is_not_trained_again(done, settings, monkeypatch):
    monkeypatch.setattr(run, "_train_stage", lambda stage, *_: trained.append(stage.run))
    trained = []
    train(settings(*staged(ALIGN, EDIT)), done)
    assert trained == [done]  # the last run is exported anew, as without stages


def test_an_unfinished_run_says_what_can_be_exported(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "open_stages", lambda stages: stages[:1])
    train(settings(*staged(ALIGN, EDIT)), tmp_path / "run")
    with pytest.raises(UserError, match="has not reached its last stage; export one of those in .*stages"):
        export(tmp_path / "run", tmp_path / "out")
    export(tmp_path / "run" / "stages" / "align", tmp_path / "out")


@pytest.mark.parametrize(
    "stages, words",
    [
        ([{"name": "a", "train": {"stpes": 1}}], r"train.stages\[0\]: .*stpes: unknown key; did you mean 'steps'"),
        ([{"name": "a", "data": {"name": "mini3"}}], r"train.stages\[0\]: data.name: there is no data set 'mini3'"),
        ([{"name": "a", "train": {"lr": -1}}], r"train.stages\[0\]: train.lr: must be 0 or more"),
        ([{"name": "a"}, {"name": "a"}], r"train.stages\[1\].name: 'a' must be a word of its own"),
        ([{"name": "../a"}], r"train.stages\[0\].name: '../a' must be a word"),
    ],
)
def test_a_wrong_stage_is_named(settings, tmp_path, stages, words):
    with pytest.raises(UserError, match=words):
        stages_of(settings(*staged(*stages)), tmp_path)


def test_another_data_set_drops_the_keys_of_the_old_one(settings, tmp_path):
    path = layouts.manifest(tmp_path / "data")
    one = {"name": "manifest", "path": path, "skip_bad": True}
    mixed = {
        "name": "mixture",
        "mixture": [{"name": "mini", "count": 3, "weight": 2}, {"name": "manifest", "path": path}],
    }
    stages = [{"name": "a", "data": one}, {"name": "b", "data": mixed}, {"name": "c", "data": {"name": "mini"}}]
    a, b, c = (stage.cfg.data for stage in stages_of(settings(*staged(*stages)), tmp_path))
    assert (a.name, a.path, a.options, a.skip_bad) == ("manifest", path, {}, True)
    assert [part.weight for part in b.mixture] == [2, 1] and b.mixture[0].options == {"count": 3}
    assert c.options["count"] == 8  # the data set that it was


def test_states_of_another_shape_are_named(build, inputs):
    with pytest.raises(UserError, match="has 32 states of width 32, but V.* has 6 of width 32; set model.connector.q"):
        build()(inputs, *[torch.zeros(3, 4, 16, 16)] * 2, range(3), dm_weight=0, align_weight=1)


def test_alignment_reaches_the_text_states(build, inputs):
    model = build("model.connector.queries=32", "model.diffusion=null").train()
    latents = [inputs.images] * 2
    optimizer = torch.optim.Adam(model.slot("connector").parameters(), 1e-2)
    found = []
    for _ in range(15):
        optimizer.zero_grad()
        named = model(inputs, *latents, range(3), lm_weight=0, align_weight=1)
        named["loss"].backward()
        optimizer.step()
        found.append(named["align"].item())
    assert found[-1] < 0.7 * found[0]


def test_rows_without_an_edit_have_no_l_dm(model, inputs):
    latents = [torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    with torch.no_grad():
        condition, _ = model.condition(inputs)
        errors, _ = model.slot("diffusion").errors(condition, *latents, range(3), 2)
        inputs.edits = torch.tensor([True, False, True])
        try:
            found = model(inputs, *latents, range(3), draws=2)
        finally:
            inputs.edits = None
    torch.testing.assert_close(found["dm"], (errors * torch.tensor([1, 1, 0, 0, 1, 1])).mean())


def test_a_record_without_an_edit_needs_no_target(settings, model, tmp_path):
    path = layouts.manifest(tmp_path / "data")
    rows = [json.loads(line) for line in open(path)]
    del rows[1]["tgt_image"]
    write = lambda: open(path, "w").writelines(json.dumps(row) + "\n" for row in rows)  # noqa: E731, SIM115
    write()
    cfg = settings("data.name=manifest", f"data.path={path}", "train.batch_size=12")
    with pytest.raises(UserError, match="has no target"):
        Batches(cfg, model)(0)
    rows[1]["edits"] = False
    write()
    batches = Batches(cfg, model)
    inputs, source, target, _ = batches(0)
    assert set(inputs.edits.tolist()) == {True, False}
    for row, edits in enumerate(inputs.edits.tolist()):
        assert torch.equal(source[row], target[row]) == (not edits)
    batches.features.write(tmp_path / "f")
    known = settings(
        "data.name=manifest", f"data.path={path}", "train.batch_size=12", f"data.features={tmp_path / 'f'}"
    )
    assert torch.equal(Batches(known, model)(0)[0].edits, inputs.edits)
    rows[1]["edits"] = "no"
    write()
    with pytest.raises(UserError, match="edits must be true or false, not 'no'"):
        Batches(cfg, model)(0)


@pytest.mark.long
@pytest.mark.parametrize("zero", [None, "zero2", "zero3"])
def test_stages_in_two_processes(done, overrides, tmp_path, zero):
    words = ["--config", "tiny", "-o", tmp_path / "run", *overrides, *staged(ALIGN, EDIT)]
    found = launch(ROOT / "train" / "train.py", *words, *(["--deepspeed", zero] if zero else []))
    assert found.returncode == 0, found.stderr[-3000:]
    for folder in ("stages/align", "."):
        one, other = (lines(top / folder) for top in (tmp_path / "run", done))
        assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], rel=1e-3)
    assert (tmp_path / "run" / "model").is_dir()
