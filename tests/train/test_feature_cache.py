"""Features: computed once, bit-identical on disk, and refused for other data or models."""

import json
import threading
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pipelines import save_kontext
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reasonbrain import cli
from reasonbrain.errors import UserError
from reasonbrain.train import feature_cache as module
from reasonbrain.train.batches import Batches
from reasonbrain.train.building import build
from reasonbrain.train.feature_cache import Ahead, FeatureCache
from reasonbrain.train.run import train
from reasonbrain.utils.images import to_tensor
from reasonbrain.utils.locks import alone

QUICK = ["train.batch_size=4", "train.steps=4", "train.log_every=1", "train.save_every=4"]


WEIGHTS = {
    "diffusion": "vae.decoder.conv_in.bias",
    "encoders": "clip.vision_model.post_layernorm.bias",
    "mllm": "model.model.visual.merger.ln_q.weight",
}


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_that_reads_features_is_bit_identical(settings, overrides, model, tmp_path, monkeypatch):
    """The command writes 70 records in two files. Without features, a run computes them between steps."""
    quick = [*QUICK, "data.count=70", "train.bf16=true"]
    written = CliRunner().invoke(cli.main, ["data", "cache", "-o", str(tmp_path / "f"), *overrides, "data.count=70"])
    assert written.exit_code == 0 and written.stdout == f"{tmp_path / 'f'}\n"
    train(settings(*quick), tmp_path / "without")
    monkeypatch.setattr(module, "compute", lambda *_: pytest.fail("computed again"))
    train(settings(*quick, f"data.features={tmp_path / 'f'}"), tmp_path / "with")
    assert losses(tmp_path / "with") == losses(tmp_path / "without") and len(losses(tmp_path / "with")) == 4
    one, other = (next((tmp_path / run / "checkpoints").rglob("*.safetensors")) for run in ("with", "without"))
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_writing_resumes(settings, model, tmp_path):
    features = FeatureCache(settings("data.count=130"), model)
    features.write(tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    files = ["000000.safetensors", "000001.safetensors", "000002.safetensors", "key.json", "lock", "sizes.json"]
    assert sorted(before) == files
    (tmp_path / "000001.safetensors").unlink()
    with pytest.raises(UserError, match="holds 2 of 3 files; finish it: reasonbrain data cache -o"):
        FeatureCache(settings("data.count=130", f"data.features={tmp_path}"), model)
    kept = (tmp_path / "000000.safetensors").stat().st_mtime_ns
    features.write(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    assert (tmp_path / "000000.safetensors").stat().st_mtime_ns == kept


def test_two_commands_do_not_write_the_same_features(settings, model, tmp_path):
    """Each would replace the file that the other is writing."""
    features = FeatureCache(settings("data.count=2"), model)
    with alone(tmp_path / "lock"), pytest.raises(UserError, match="is being written by another command"):
        features.write(tmp_path)
    features.write(tmp_path)
    assert (tmp_path / "000000.safetensors").is_file()


def test_features_of_another_model_or_data_are_refused(settings, model, build, tmp_path):
    FeatureCache(settings("data.count=2"), model).write(tmp_path)
    folder = f"data.features={tmp_path}"
    assert FeatureCache(settings("data.count=2", folder), model)[0].id == "train-0-000000"
    for change, named in (("data.seed=1", "data"), ("model.frce.region.max_regions=5", "region")):
        with pytest.raises(UserError, match=f"was made with another {named}"):
            FeatureCache(settings("data.count=2", folder, change), model)
    with pytest.raises(UserError, match="was made with another settings"):
        FeatureCache(settings("data.count=2", folder), build("model.encoders.layers=[-2,-1]"))
    for slot, path in WEIGHTS.items():
        other = build()
        other.slot(slot).get_parameter(path).data += 1
        with pytest.raises(UserError, match="was made with another weights"):
            FeatureCache(settings("data.count=2", folder), other)
    other = build()  # what trains, and what reads words, had no part in them
    for slot, path in {"encoders": "image_adapter.bias", "mllm": "img_in"}.items():
        other.slot(slot).get_parameter(path).data += 1
    other.slot("encoders").clip.text_model.final_layer_norm.bias.data += 1
    FeatureCache(settings("data.count=2", folder), other)
    with pytest.raises(UserError, match="was not made by `reasonbrain data cache`"):
        FeatureCache(settings("data.features=nowhere"), model)


def test_a_damaged_file_is_named_and_an_empty_one_is_written_again(settings, model, tmp_path):
    cfg, features = settings("data.count=2"), settings("data.count=2", f"data.features={tmp_path}")
    FeatureCache(cfg, model).write(tmp_path)
    file = tmp_path / "000000.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole[:9]):
        file.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"data.features: '.*/000000.safetensors' is damaged \(.*delete it and repeat"
        ):
            FeatureCache(features, model)[0]
    file.write_bytes(b"")
    FeatureCache(cfg, model).write(tmp_path)
    assert file.read_bytes() == whole


def test_a_bad_record_stays_skipped(settings, model, tmp_path):
    rows = []
    for i in range(3):
        for end in ("src", "tgt"):
            Image.new("RGB", (64, 64), (60 * i, 90, 200)).save(tmp_path / f"{i}_{end}.png")
        rows.append({"id": f"r{i}", "src_image": f"{i}_src.png", "tgt_image": f"{i}_tgt.png", "instruction": "go"})
    (tmp_path / "1_src.png").write_text("no picture")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = ["data.name=manifest", f"data.path={tmp_path / 'train.jsonl'}"]
    with pytest.raises(UserError, match="record 'r1'"):
        FeatureCache(settings(*manifest), model).write(tmp_path / "f")
    FeatureCache(settings(*manifest, "data.skip_bad=true"), model).write(tmp_path / "f")
    found = FeatureCache(settings(*manifest, f"data.features={tmp_path / 'f'}"), model)
    assert [found[i].id for i in range(3)] == ["r0", "r2", "r2"]


def test_a_records_features_are_those_of_its_own_pictures(settings, model):
    features = FeatureCache(settings("data.count=4"), model)
    record, made, encode = features.records[2], features[2], model.slot("diffusion").encode
    for picture, latents in ((record.source, made.source), (record.target, made.target)):
        torch.testing.assert_close(latents[None], encode(to_tensor([picture])), rtol=1e-4, atol=1e-4)
    assert torch.equal(made.image, (to_tensor([record.source])[0] * 255).round().byte())
    assert torch.equal(made.regions.long(), model.segment(to_tensor([record.source]))[0])


def test_memory_is_bounded(settings, model, monkeypatch):
    features = FeatureCache(settings("data.count=10"), model)
    monkeypatch.setattr(module, "MEMORY", 3 * features[0].bytes)
    assert [features[i].id for i in range(10)] == [f"train-0-{i:06d}" for i in range(10)]
    assert list(features.kept) == [7, 8, 9] and features.held == 3 * features[9].bytes


def towers(model):
    return model.slot("encoders").clip.vision_model, model.slot("mllm").model.model.visual


def test_vision_towers_run_once_per_record_and_not_in_a_step(settings, build, tmp_path):
    """With a folder of features they do not run at all. A step reads the features that they would compute."""
    model, calls = build(), []
    for tower in towers(model):
        tower.register_forward_hook(lambda *_: calls.append(1))
    cfg = settings("data.count=3", "train.batch_size=4")
    batches = Batches(cfg, model)
    before = [model(*batches(step))["loss"] for step in range(3)]
    assert len(calls) == 2 * 3
    inputs, *rest = batches(0)
    inputs.ready = {}  # as in use
    torch.testing.assert_close(model(inputs, *rest)["loss"], before[0], rtol=1e-5, atol=1e-5)
    assert len(calls) == 2 * 4
    batches.features.write(tmp_path)
    calls.clear()
    folder = settings("data.count=3", "train.batch_size=4", f"data.features={tmp_path}")
    batches = Batches(folder, model)
    assert [model(*batches(step))["loss"] for step in range(3)] == before and not calls
    file = tmp_path / "000000.safetensors"
    words = safe_open(file, "pt").metadata()
    for slot in ("encoders", "mllm"):
        held = load_file(file)
        save_file({k: v.flip(0) if k.endswith(slot) else v for k, v in held.items()}, file, words)
        module._open.cache_clear()
        assert model(*Batches(folder, model)(0))["loss"] != before[0]
        save_file(held, file, words)


def test_trained_modules_are_computed_in_every_step(settings, build, records):
    model, images = build(), to_tensor([records[0].source])
    assert model.image_features(images).keys() == {"encoders", "mllm"}
    assert "clip.vision_model" in model.slot("encoders").prepares()
    towers(model)[0].post_layernorm.requires_grad_(True)
    assert model.image_features(images).keys() == {"mllm"} and not model.slot("encoders").prepares()
    inputs, *_ = Batches(settings("data.count=2", "train.batch_size=2"), model)(0)
    assert inputs.ready.keys() == {"mllm"}


def test_prefetching_reads_once_and_raises_errors_on_use():
    read = []

    def one(number):
        read.append((number, threading.current_thread() is threading.main_thread()))
        if number == 2:
            raise UserError("record 2")
        return number * 10

    ahead = Ahead(one)
    ahead.expect([1, 2, 1])
    assert ahead(1) == ahead(1) == 10 and ahead(3) == 30
    with pytest.raises(UserError, match="record 2"):
        ahead(2)
    assert sorted(read) == [(1, False), (2, False), (3, True)]
    ahead.expect([])
    assert ahead(1) == 10 and read[-1] == (1, True)


def test_the_next_pass_is_read_during_the_current_one(settings, model, tmp_path):
    """With or without a folder of features, also within a step. The last batch equals that of a separate reader."""
    cfg = settings("data.count=40", "train.batch_size=4", "train.micro_batch=2")
    FeatureCache(cfg, model).write(tmp_path)
    for folder in (None, str(tmp_path)):
        cfg.data.features = folder
        batches = Batches(cfg, model)
        for step, part in ((0, 0), (0, 1), (1, 0)):
            batch = batches(step, part)
            after = (0, 1) if (step, part) == (0, 0) else (step + 1, 0) if part else (step, 1)
            assert set(batches.features.read.coming) == set(batches.rows(*after)[0]) - set(batches.features.kept)
        alone = Batches(cfg, model)(1, 0)
        assert torch.equal(batch[1], alone[1]) and torch.equal(batch[2], alone[2]) and batch[3] == alone[3]
        assert all(torch.equal(batch[0].ready[slot], alone[0].ready[slot]) for slot in ("encoders", "mllm"))


def test_sentences_and_their_features(settings, parts, tmp_path, monkeypatch):
    """Of each instruction, in the folder alone. Another thinker's are refused, and changed words have none."""
    torch.manual_seed(0)
    save_kontext(tmp_path / "kontext")
    flux = ["name=flux", f"pretrained={tmp_path / 'kontext'}", "source=sequence", "trained=lora", "heads=2"]
    words = [*QUICK, "train.steps=1", "data.count=4", "data.augment=null", *(f"model.diffusion.{m}" for m in flux)]
    words += ["model.diffusion.architecture=null", "model.diffusion.autoencoder=null"]
    words += ["model.diffusion.prompt=t5", "model.diffusion.prompt_tokens=24", "train.ema=0"]
    cfg = settings(*words)
    model = build(cfg).eval()
    FeatureCache(cfg, model).write(tmp_path / "f")
    known = settings(*words, f"data.features={tmp_path / 'f'}")
    found = Batches(known, model)
    inputs = found(0)[0]
    assert inputs.sentences == model.reason(replace(inputs, sentences=None)).sentences != inputs.instructions
    expected = model.slot("diffusion").prompt_features(inputs.sentences, torch.device("cpu"))
    assert inputs.words.keys() == expected.keys() == {"text", "pooled"}
    for name, features in expected.items():
        torch.testing.assert_close(inputs.words[name], features)
    assert Batches(cfg, model)(0)[0].sentences is None
    changed = settings(*words, f"data.features={tmp_path / 'f'}", "data.augment={share: 1, drop: 0.1, replace: 0}")
    assert Batches(changed, model)(0)[0].words is None
    for other in ("model.mllm.question='{instruction}?'", "model.diffusion.prompt_tokens=12"):
        with pytest.raises(UserError, match="made with another words"):
            FeatureCache(settings(*words, f"data.features={tmp_path / 'f'}", other), model)
    FeatureCache(settings(*words, f"data.features={tmp_path / 'f'}", "model.mllm.lora_alpha=8"), model)

    train(cfg, tmp_path / "without")
    monkeypatch.setattr(
        type(model), "reason", lambda self, inputs: inputs if inputs.sentences else pytest.fail("asked")
    )
    train(known, tmp_path / "with")
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-3)


def test_objects_that_the_mllm_named(settings, parts, tmp_path, monkeypatch):
    """They stand in for those that an instruction does not name."""
    monkeypatch.setattr("reasonbrain.model.find_objects", lambda text: [])
    cfg = settings(*QUICK, "data.count=2", "data.augment=null", "data.given_objects=0", "model.encoders.reads=sentence")
    model = build(cfg).eval()
    said = {"sentences": ["The lamp glows."], "objects": [["the lamp"]]}
    monkeypatch.setattr(type(model), "reason", lambda self, inputs: replace(inputs, **said))
    FeatureCache(cfg, model).write(tmp_path)
    inputs = Batches(
        settings(
            *QUICK,
            "data.count=2",
            "data.augment=null",
            "data.given_objects=0",
            *["model.encoders.reads=sentence", f"data.features={tmp_path}"],
        ),
        model,
    )(0)[0]
    assert inputs.sentences == ["The lamp glows."] * 4 and inputs.objects == [["the lamp"]] * 4
