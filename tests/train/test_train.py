"""`reasonbrain train`: a real run whose loss falls, exact resume of the whole model, and its files."""

import json
import os
import shutil

import layouts
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from reasonbrain.checkpoint import load_model
from reasonbrain.config.loading import dump_config, load_config
from reasonbrain.config.schema import DataConfig, PartConfig, TrainConfig
from reasonbrain.data.opening import open_data
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.objects import find_objects
from reasonbrain.registry import SLOTS
from reasonbrain.train import checkpoints
from reasonbrain.train.batches import Batches, micro_batch
from reasonbrain.train.building import build as start
from reasonbrain.train.export import export
from reasonbrain.train.feature_cache import FeatureCache
from reasonbrain.train.planning.plan import plan
from reasonbrain.train.run import check_run, note_data, table, train

QUICK = ["data.count=8", "train.batch_size=4", "train.warmup=2", "train.log_every=1"]


def losses(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def tensors(folder):
    return {f"{f.relative_to(folder)}/{k}": v for f in folder.rglob("*.safetensors") for k, v in load_file(f).items()}


def numbers(run):
    """The log without times and memory."""
    return [{k: v for k, v in line.items() if not k.startswith("seconds") and k != "gib"} for line in losses(run)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_changed_key_of_the_data_set_is_named(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text(dump_config(load_config("tiny")))
    check_run(load_config("tiny", ["data.seed=9"]), tmp_path)
    assert caplog.messages == [f"{tmp_path}: data.seed is 9 now; the run was trained with the default"]


def test_data_that_have_changed_are_named(tmp_path, caplog):
    """A data set that grew, one of the same length, and one part of a mixture."""
    line = '{{"source": "a.png", "instruction": "go {}"}}\n'
    for name, count in (("one", 2), ("two", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(map(line.format, range(count))))
    one, two = (DataConfig(name="manifest", path=str(tmp_path / f"{name}.jsonl")) for name in ("one", "two"))
    both = DataConfig(name="mixture", mixture=[PartConfig("manifest", part.path) for part in (one, two)])
    (tmp_path / "run").mkdir()
    (tmp_path / "mixed").mkdir()

    def said():
        caplog.clear()
        note_data(open_data(one), tmp_path / "run")
        note_data(open_data(both), tmp_path / "mixed")
        return caplog.messages

    assert said() == said() == []
    with (tmp_path / "one.jsonl").open("a") as file:
        file.write(line.format(9))
    changed = "has 3 records now; the run was trained with 2"
    assert said() == [f"{tmp_path}/run: data {changed}", f"{tmp_path}/mixed: data.mixture[0] {changed}"]
    (tmp_path / "one.jsonl").write_text(line.format(7) * 3)
    assert said()[0] == f"{tmp_path}/run: the files of data are not those that the run was trained with"
    assert said() == []
    for damaged in ("", "5", "{"):
        (tmp_path / "run" / "data.json").write_text(damaged)
        assert said() == []


def test_changed_pictures_and_words_of_the_same_number_are_named(tmp_path, caplog):
    """In a folder of three files a record, and of pictures that a manifest names. Dates do not matter, nor do pictures
    that were deleted once their features are on the disk; notes of earlier versions hold less."""
    folder = tmp_path / "triples" / "heat"
    parts = [
        PartConfig("folder", layouts.triples(folder.parent)),
        PartConfig("manifest", layouts.manifest(tmp_path / "m")),
    ]
    data = open_data(DataConfig(name="mixture", mixture=parts))

    def said():
        caplog.clear()
        note_data(data, tmp_path)
        return caplog.messages

    def changed(part):
        return [f"{tmp_path}: the files of data.mixture[{part}] are not those that the run was trained with"]

    assert said() == []
    (folder / ".sync.json").write_text("{}")
    os.utime(folder / "1.txt", (0, 0))
    assert said() == []
    (folder / "1.txt").write_text("Heal 1.\n")
    assert said() == changed(0) and said() == []
    layouts.save(layouts.picture(9), folder / "2_source.png")
    assert said() == changed(0)
    pictures = [file for file in data.parts[1].inputs() if file.suffix == ".png"]
    layouts.save(layouts.picture(9), pictures[0])
    assert said() == changed(1)
    for picture in pictures:
        picture.unlink()
    assert said() == []
    note = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps({name: values[:-1] for name, values in note.items()}))
    assert said() == []


def test_thirty_steps_lower_both_losses(settings, tmp_path, records):
    overrides = ["train.steps=30", "train.batch_size=8", "train.lr=5e-3", "train.save_every=30", "data.count=64"]
    train(settings(*QUICK, *overrides), tmp_path)
    lines = losses(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 31))
    for name, share in (("loss", 0.8), ("lm", 0.8), ("dm", 0.8)):
        first, last = (np.mean([line[name] for line in part]) for part in (lines[:5], lines[-5:]))
        assert last < share * first, (name, first, last)
    pipe = ReasonBrainPipeline.from_pretrained(tmp_path)
    assert pipe(records[0].source, records[0].instruction).images[0].size == (64, 64)


def test_interrupted_and_resumed_is_bit_identical(settings, tmp_path):
    """Six steps, or six steps whose first process dies in the fifth, with few records, so that they recur."""
    cfg = settings(*QUICK, "train.steps=6", "train.save_every=3")
    train(cfg, tmp_path / "whole")

    class Dies(Exception): ...

    def die(*_):
        calls.append(1)
        if len(calls) == 5:
            raise Dies

    calls = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda m, _: die() if isinstance(m, ReasonBrain) else None
    )
    with pytest.raises(Dies):
        train(cfg, tmp_path / "parts")
    hook.remove()
    train(cfg, tmp_path / "parts")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts")) and tensors(tmp_path / "whole")
    assert numbers(tmp_path / "parts")[-3:] == numbers(tmp_path / "whole")[-3:]


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "muon"])
def test_every_optimizer_resumes_bit_identically(settings, tmp_path, optimizer):
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    cfg = settings(*QUICK, "train.steps=4", "train.save_every=2", "train.keep=9", f"train.optimizer={optimizer}")
    train(cfg, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000004")
    shutil.rmtree(tmp_path / "parts" / "model")
    train(cfg, tmp_path / "parts")
    assert [line["step"] for line in losses(tmp_path / "parts")] == [1, 2, 3, 4]  # no step is logged twice
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts")) and tensors(tmp_path / "whole")


def test_frozen_parts_are_unchanged(settings, build, tmp_path):
    before = build().state_dict()
    own = "train.slots.connector.train=false"
    train(settings(*QUICK, own, "train.steps=2"), tmp_path)
    trained, _ = load_model(tmp_path)
    frozen = {n for n, p in build().named_parameters() if not p.requires_grad or "connector" in n}
    after = trained.state_dict()
    assert len(frozen) > 50 and all(torch.equal(after[n], before[n]) for n in frozen)
    assert not any(torch.equal(after[n], before[n]) for n in before if "cme" in n and n.endswith("weight"))


def test_a_run_of_another_model_is_refused(settings, tmp_path):
    train(settings(*QUICK, "train.steps=1"), tmp_path)
    for override in ("model.cme.blocks=2", "model.connector.queries=4", "model.cme=null"):
        with pytest.raises(UserError, match=r"model\."):
            train(settings(*QUICK, "train.steps=2", override), tmp_path)


def test_training_and_planning_without_frce(settings, overrides, tmp_path):
    """A run without FRCE is resumed, but not with FRCE."""
    cfg = settings(*QUICK, "train.steps=1", "model.frce=null")
    train(cfg, tmp_path)
    cfg.train.steps = 2
    train(cfg, tmp_path)
    assert [line["step"] for line in losses(tmp_path)] == [1, 2]
    assert not any("frce" in name for _, name, _ in checkpoints.read(checkpoints.last(tmp_path)))
    with pytest.raises(UserError, match="model.frce.patch: checkpoint .* has null"):
        train(settings(*QUICK, "train.steps=3"), tmp_path)
    planned = plan("tiny", [*overrides, "model.frce=null", "train.optimizer=adamw_8bit"], 1, 24)
    assert planned["parameters"]["frce.patch"] == {"all": 0, "trained": 0} and planned["rows"]


def test_nothing_to_train(settings, tmp_path):
    null = [f"model.{s}=null" for s in SLOTS]
    with pytest.raises(UserError, match="nothing is left to train"):
        train(settings(*null), tmp_path)


@pytest.mark.parametrize("key", ["train.slots.cme.lr=1e-4", "train.checkpointing=[cme]", "train.compile=[cme]"])
def test_a_null_slot_cannot_be_set(settings, tmp_path, key):
    with pytest.raises(UserError, match="train: slot 'cme' is null, so there is nothing to set for it"):
        train(settings("model.cme=null", key), tmp_path)


def test_another_optimizer_needs_another_run(settings, tmp_path):
    train(settings(*QUICK, "train.steps=1", "train.optimizer=muon"), tmp_path / "muon")
    adamw = [*QUICK, "train.steps=2", "train.optimizer=adamw"]
    with pytest.raises(UserError, match="train.optimizer: run '.*muon' trains with muon, not adamw.*train.start="):
        train(settings(*adamw), tmp_path / "muon")
    train(settings(*adamw, f"train.start={tmp_path / 'muon'}"), tmp_path / "adamw")
    assert losses(tmp_path / "adamw")[-1]["step"] == 2


def test_batches_are_a_function_of_the_step(settings, model):
    cfg = settings("data.count=6", "train.batch_size=4")
    first, other = Batches(cfg, model), Batches(cfg, model)
    for step in (0, 1, 2):
        first(step)
    for step in (2, 5):  # not through the same steps
        (a, *latents, seeds), (b, *again, other_seeds) = first(step), other(step)
        assert seeds == other_seeds and len(set(seeds)) == 4
        assert a.instructions == b.instructions and a.objects == b.objects
        assert torch.equal(a.images, b.images) and torch.equal(a.regions, b.regions)
        assert all(torch.equal(x, y) for x, y in zip(latents, again, strict=True))
    assert first(0)[0].instructions != first(1)[0].instructions


def test_latents_are_computed_once_per_record(settings, model):
    batches, calls = Batches(settings("data.count=3", "train.batch_size=4"), model), []
    hook = model.slot("diffusion").vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    for step in range(6):
        batches(step)
    hook.remove()
    assert len(calls) == 3


def test_a_batch_is_records_with_their_latents(settings, model):
    cfg = settings("data.count=5", "train.batch_size=3")
    batches = Batches(cfg, model)
    inputs, source, target, _ = batches(0)
    assert inputs.images.shape == (3, 3, 64, 64) and source.shape == target.shape == (3, 4, 16, 16)
    samples = [batches.features.records[i] for i in range(5)]
    for row in range(3):
        picture = (inputs.images[row] * 255).round().byte().permute(1, 2, 0).numpy()
        sample = next(s for s in samples if np.array_equal(np.asarray(s.source), picture))
        assert inputs.objects[row] in (sample.objects, find_objects(inputs.instructions[row]))
        for latents, image in ((source, sample.source), (target, sample.target)):
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
            torch.testing.assert_close(latents[row], model.slot("diffusion").encode(pixels)[0], rtol=1e-3, atol=1e-3)
        assert torch.equal(inputs.regions[row], model.slot("frce.region").segment(inputs.images[row : row + 1])[0])


def test_most_rows_use_the_objects_of_their_instruction(settings, model):
    cfg = settings("data.count=8", "train.batch_size=64")
    batches = Batches(cfg, model)
    numbers, seeds = batches.rows(0, 0)
    inputs, source, target, rows = batches(0)
    assert rows == seeds and len(source) == len(target) == 64
    given = 0
    for number, words, objects in zip(numbers, inputs.instructions, inputs.objects, strict=True):
        known = batches.features[number].objects
        assert objects in (known, find_objects(words))
        given += objects == known != find_objects(words)
    assert abs(given / 64 - cfg.data.given_objects) < 0.2 and given > 0


def test_a_manifest_trains(settings, tmp_path):
    """Reason50K's format, with pictures of several sizes and one record without objects."""
    rows = []
    for i, size in enumerate([(80, 60), (64, 64)]):
        for end in ("src", "tgt"):
            Image.new("RGB", size, (40 * i, 90, 30 if end == "src" else 200)).save(tmp_path / f"{i}_{end}.png")
        paths = {"src_image": f"{i}_src.png", "tgt_image": f"{i}_tgt.png"}
        rows.append({"id": i, "category": "causal", **paths, "instruction": "What if the red ball fell?"})
    rows[0]["objects"] = ["ball"]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cfg = settings(*QUICK, "train.steps=1", "data.name=manifest", f"data.path={tmp_path / 'train.jsonl'}")
    train(cfg, tmp_path / "run")
    assert np.isfinite(losses(tmp_path / "run")[0]["loss"])

    def taken(*more):
        """The objects and instructions of 8 steps; each step has records of one size."""
        here = settings("train.batch_size=4", "data.name=manifest", f"data.path={cfg.data.path}", *more)
        batches = Batches(here, model)
        inputs = [batches(step)[0] for step in range(8)]
        return [o for i in inputs for o in i.objects], {words for i in inputs for words in i.instructions}

    model = ReasonBrain.from_config(cfg.model)
    objects, words = taken()
    assert ["ball"] in objects and ["red ball"] in objects  # the first record's own; the second's from its words
    assert words == {"What if the red ball fell?"}  # nothing of ReasonMini's augmentation reaches other data
    objects, _ = taken("data.given_objects=0")
    assert ["ball"] not in objects and ["red ball"] in objects
    _, words = taken("data.augment={share: 1, drop: 0, replace: 1}")
    assert len(words) > 1 and {w for text in words for w in text.split()} <= set("What if the red ball fell?".split())


def broken_manifest(folder, count=4):
    """The sources of records 1 and 2 of four are not pictures."""
    rows = []
    for i in range(count):
        for end in ("src", "tgt"):
            Image.new("RGB", (64, 64), (40 * i, 90, 200)).save(folder / f"{i}_{end}.png")
        if i in (1, 2):
            (folder / f"{i}_src.png").write_text("no picture")
        rows.append({"id": f"r{i}", "src_image": f"{i}_src.png", "tgt_image": f"{i}_tgt.png", "instruction": "go"})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["data.name=manifest", f"data.path={folder / 'train.jsonl'}"]


def test_a_bad_record_is_named_or_skipped(settings, model, tmp_path, caplog):
    manifest = broken_manifest(tmp_path)
    with pytest.raises(UserError, match=r"record 'r1'.*1_src.png"):
        FeatureCache(settings(*manifest), model)[1]
    features = FeatureCache(settings(*manifest, "data.skip_bad=true"), model)
    assert [features[i].id for i in range(4)] == ["r0", "r3", "r3", "r3"] and features.bad == {1, 2}
    assert "record 'r2'" in caplog.text and "2 bad so far" in caplog.text
    for i in (0, 3):
        (tmp_path / f"{i}_tgt.png").write_text("no picture")
    with pytest.raises(UserError, match="none of the 4 records can be read"):
        FeatureCache(settings(*manifest, "data.skip_bad=true"), model)[0]


def test_passes_and_processes_share_a_batch(settings, model, monkeypatch):
    """Every row is used once, by any pass and process."""
    whole = Batches(settings("train.batch_size=8"), model).rows(3, 0)
    rows = []
    for rank in (0, 1):
        monkeypatch.setattr("reasonbrain.train.distributed.processes.rank", lambda rank=rank: rank)
        monkeypatch.setattr("reasonbrain.train.distributed.processes.world", lambda: 2)
        batches = Batches(settings("train.batch_size=8", "train.micro_batch=2"), model)
        assert batches.parts == 2
        rows += [row for part in (0, 1) for row in zip(*batches.rows(3, part), strict=True)]
    assert sorted(rows) == sorted(zip(*whole, strict=True)) and len(rows) == 8


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="train.batch_size: 3 is not divisible by the number of processes, 2"):
        micro_batch(TrainConfig(batch_size=3), 2)
    with pytest.raises(UserError, match="train.micro_batch: 3 does not divide a process's share of the batch, 4"):
        micro_batch(TrainConfig(batch_size=8, micro_batch=3), 2)


def test_export_writes_every_trained_tensor(settings, tmp_path):
    """The averaged weights or the last ones, together with frozen weights."""
    cfg = settings(*QUICK, "train.steps=3", "train.ema=0.5")
    train(cfg, tmp_path)
    kept = {(what, name): value for what, name, value in checkpoints.read(checkpoints.last(tmp_path))}
    fresh = start(cfg).state_dict()
    for what, average in (("average", True), ("param", False)):
        export(tmp_path, tmp_path / what, average)
        state = load_model(tmp_path / what)[0].state_dict()
        assert state.keys() == fresh.keys()
        for name, value in state.items():
            assert torch.equal(value, kept.get((what, name), fresh[name])), name
    assert any(not torch.equal(v, kept["param", n]) for (w, n), v in kept.items() if w == "average")


def test_a_run_refuses_foreign_folders_but_accepts_prepared_ones(settings, tmp_path):
    """Nothing in a project with a folder ``checkpoints`` is touched. Model and checkpoints may be links."""
    cfg = settings(*QUICK, "train.steps=1")
    for name in ("checkpoints/step-00000001.new/thesis.txt", "log.jsonl", "model/thesis.txt"):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("years")
        with pytest.raises(UserError, match=f"holds '{name.split('/')[0]}', but no config.yaml|holds 'thesis.txt'"):
            train(cfg, folder)
        assert [p.read_text() for p in folder.rglob("*") if p.is_file()] == ["years"]
    run = tmp_path / "run"
    run.mkdir()
    for name in ("checkpoints", "model"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (run / name).symlink_to(tmp_path / "disk" / name)
    train(cfg, run)
    assert (tmp_path / "disk" / "model" / "config.yaml").is_file() and (run / "model").is_symlink()
    assert len(checkpoints.complete(run)) == 1


def test_export_refuses_other_folders(settings, tmp_path):
    with pytest.raises(UserError, match="has no config.yaml"):
        export(tmp_path, tmp_path / "out")
    train(settings(*QUICK, "train.steps=1"), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds .thesis.txt., which this command did not write"):
        export(tmp_path / "run", tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years"


def test_table_counts_what_trains(model):
    lines = {line.split()[0]: line.split()[1:] for line in table(model).splitlines()[1:]}
    assert list(lines) == list(SLOTS)
    clip = model.slot("encoders")
    total, trained = (sum(p.numel() for p in clip.parameters() if p.requires_grad or a) / 1e6 for a in (True, False))
    assert lines["encoders"] == [f"{total:.3f}M", f"{trained:.3f}M"]


def test_the_shipped_tiny_configuration_trains_at_the_papers_settings():
    cfg = load_config("tiny")
    assert (cfg.model.mllm["img_tokens"], cfg.model.mllm["lora_rank"], cfg.model.mllm["lora_alpha"]) == (32, 8, 16)
