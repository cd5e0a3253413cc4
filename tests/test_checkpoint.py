"""Checkpoints: the same edit after loading, nothing pickled, and clear errors for invalid checkpoints."""

import io
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Qwen2_5_VLForConditionalGeneration

from reasonbrain.checkpoint import find_checkpoint, load_model, save_model
from reasonbrain.cli import main
from reasonbrain.config.loading import load_config
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.modules.data.reasonmini import make
from reasonbrain.registry import SLOTS


@pytest.fixture(scope="module")
def saved(model, settings, tmp_path_factory):
    """A checkpoint of ``model``. Tests must not change it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, settings(), folder)
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def message(*args, **kwargs):
    with pytest.raises(UserError) as e:
        load_model(*args, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)


def edit(pipe, records):
    sample = records[1]
    generator = torch.Generator().manual_seed(7)
    return pipe(
        sample.source, sample.instruction, generator=generator, reasoning=True, preserve=False, output_type="pt"
    )


def test_load_gives_every_tensor_and_the_identical_edit(saved, model, settings, records):
    again, cfg = load_model(saved)
    assert not again.training
    folders = [f"model.{key}=null" for key in ("encoders.pretrained", "mllm.pretrained", "diffusion.autoencoder")]
    assert cfg == settings(*folders)  # folders of this machine are not remembered
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) and value.dtype == after[name].dtype, name
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trained
    first = edit(ReasonBrainPipeline.from_model(model, cfg), records)
    second = edit(ReasonBrainPipeline.from_pretrained(saved), records)
    assert torch.equal(first.images[0], second.images[0])  # before rounding to pixels, too
    assert first.reasoning == second.reasoning and first.reasoning[0]


def test_the_folder_is_self_contained(saved, parts, monkeypatch):
    """The folders of ``pretrained`` in the configuration need not exist: nothing outside the folder is read."""
    for cls in (AutoencoderKL, CLIPModel, Qwen2_5_VLForConditionalGeneration):
        monkeypatch.setattr(cls, "from_pretrained", lambda *_, **__: pytest.fail("reads the pretrained folder"))
    load_model(saved)
    for file in [*saved.rglob("*.json"), *saved.rglob("*.yaml")]:
        assert str(parts) not in file.read_text(), file


def test_nothing_is_pickled_and_every_slot_has_its_folder(saved):
    files = [f for f in saved.rglob("*") if f.is_file() and f != saved / "pipeline.py"]  # which only diffusers runs
    assert {f.suffix for f in files} <= {".yaml", ".json", ".safetensors", ".jinja", ".txt"}
    assert {f.parent.name for f in files if f.name == "model.safetensors"} == {s.replace(".", "_") for s in SLOTS}


def test_tied_weights_are_stored_once_and_stay_tied(saved):
    with safe_open(saved / "mllm" / "model.safetensors", "pt") as f:
        keys = set(f.keys())
    assert ("model.lm_head.weight" in keys) + ("model.model.language_model.embed_tokens.weight" in keys) == 1
    qwen = load_model(saved)[0].slot("mllm").model
    assert qwen.lm_head.weight is qwen.get_input_embeddings().weight


def test_files_written_by_another_program(saved, damaged, model):
    """They lack the metadata that names tied tensors."""
    for file in damaged.rglob("*.safetensors"):
        save_file(load_file(file), file)
    again = load_model(damaged)[0].state_dict()
    assert all(torch.equal(v, again[n]) for n, v in model.state_dict().items())
    file = damaged / "mllm" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.model.language_model.norm.weight"]
    save_file(tensors, file)
    assert "missing tensors: ['model.model.language_model.norm.weight']" in message(damaged)
    save_file(tensors | {"model.model.language_model.norm.weight": torch.ones(32), "more": torch.ones(1)}, file)
    assert "unexpected tensors: ['more']" in message(damaged)


def test_weights_have_the_permissions_of_other_files(saved):
    assert {f.stat().st_mode for f in saved.rglob("*") if f.is_file()} == {(saved / "config.yaml").stat().st_mode}


def test_no_code_in_a_checkpoint_runs(damaged, tmp_path, monkeypatch):
    """A tokenizer with code of its own is refused, even if stdin answers yes."""
    file = damaged / "encoders" / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "evil.T"]}}
    file.write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'mark')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\n"
    (damaged / "encoders" / "evil.py").write_text(code + "class T(PreTrainedTokenizerFast): pass\n")
    (damaged / "pipeline.py").write_text(code)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    assert "custom code" in message(damaged) and not (tmp_path / "mark").exists()


def test_an_index_cannot_name_a_file_outside(damaged):
    (damaged / "cme" / "model.safetensors").rename(damaged / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../other.safetensors"}}
    (damaged / "cme" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../other.safetensors' is not a file of this folder" in message(damaged)


def test_half_precision(saved, model, settings, tmp_path, records):
    save_model(model, settings(), tmp_path / "half", dtype=torch.bfloat16)
    size = [sum(f.stat().st_size for f in d.rglob("*.safetensors")) for d in (saved, tmp_path / "half")]
    assert size[1] < 0.6 * size[0]
    again, _ = load_model(tmp_path / "half")
    after = again.state_dict()
    for name, value in model.state_dict().items():
        expected = value.bfloat16().float() if value.is_floating_point() else value
        assert torch.equal(after[name], expected), name
    assert load_model(tmp_path / "half", dtype=torch.bfloat16)[0].slot("cme").visual_queries.dtype == torch.bfloat16
    assert edit(ReasonBrainPipeline.from_pretrained(tmp_path / "half"), records).images[0].shape == (3, 64, 64)


@pytest.fixture(scope="module")
def sharded(model, settings, tmp_path_factory):
    """A checkpoint of ``model`` in small files. Tests must not change it."""
    folder = tmp_path_factory.mktemp("sharded")
    save_model(model, settings(), folder, max_shard_size="40KB")
    return folder


def test_large_weights_are_sharded(sharded, saved, model):
    for slot in ("mllm", "diffusion"):
        index = json.loads((sharded / slot / "model.safetensors.index.json").read_text())
        files = {f.name: load_file(f) for f in (sharded / slot).glob("*.safetensors")}
        assert len(files) > 3 and f"model-00001-of-{len(files):05d}.safetensors" in files
        assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
        assert sorted(index["weight_map"]) == sorted(load_file(saved / slot / "model.safetensors"))
        for tensors in files.values():
            assert sum(v.nbytes for v in tensors.values()) <= 40_000 or len(tensors) == 1
    after = load_model(sharded)[0].state_dict()
    assert all(torch.equal(v, after[n]) for n, v in model.state_dict().items())


def test_one_of_several_files_is_missing_or_the_index_is_broken(sharded, model, settings, tmp_path):
    shutil.copytree(sharded, tmp_path / "copy")
    first = next((tmp_path / "copy" / "mllm").glob("model-00001-*"))
    first.rename(tmp_path / "away")
    assert str(first) in message(tmp_path / "copy")
    (tmp_path / "away").rename(first)
    index = first.with_name("model.safetensors.index.json")
    known = json.loads(index.read_text())
    known["weight_map"] = {k: v for k, v in known["weight_map"].items() if v != first.name}
    index.write_text(json.dumps(known))
    assert "does not fit" in message(tmp_path / "copy")
    index.write_text("{")
    assert str(index) in message(tmp_path / "copy")
    save_model(model, settings(), tmp_path / "copy")  # again, in one file: nothing is left of the others
    assert [f.name for f in first.parent.glob("*.safetensors*")] == ["model.safetensors"]
    load_model(tmp_path / "copy")


def test_saving_twice_replaces(saved, model, settings, damaged):
    save_model(model, settings(), damaged)
    for file in saved.rglob("*.safetensors"):
        before, after = load_file(file), load_file(damaged / file.relative_to(saved))
        assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())


def test_a_run_a_model_and_a_folder_that_is_neither(saved, tmp_path):
    assert find_checkpoint(saved) == saved and find_checkpoint(saved.parent) == saved
    assert "nowhere" in message(tmp_path / "nowhere") and "'tiny'" in message(tmp_path / "nowhere")
    assert "neither" in message(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "reasonbrain export" in message(tmp_path)


def test_a_run_that_has_no_model_yet(saved, tmp_path):
    """Killed before its first checkpoint, it has a config.yaml and a log."""
    shutil.copy(saved / "config.yaml", tmp_path / "config.yaml")
    (tmp_path / "log.jsonl").touch()
    said = f"checkpoint '{tmp_path}' is an unfinished training run; export its last checkpoint first"
    assert message(tmp_path).startswith(said)


def test_missing_slot_folder(damaged):
    shutil.rmtree(damaged / "cme")
    assert str(damaged / "cme") in message(damaged)


@pytest.mark.parametrize("slot", ["connector", "mllm"])
@pytest.mark.parametrize("size", [0, 5, 100, -10])
def test_truncated_weights(damaged, slot, size):
    file = damaged / slot / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert str(file) in message(damaged) and "broken" in message(damaged)


def test_missing_weights(damaged):
    (damaged / "cme" / "model.safetensors").unlink()
    assert "cme/model.safetensors" in message(damaged)


def test_broken_slot_config(damaged):
    file = damaged / "cme" / "config.json"
    good = json.loads(file.read_text())
    file.write_text("{")
    assert "config.json" in message(damaged)
    file.write_text(json.dumps(good | {"blocks": 2}))
    assert message(damaged).startswith("model.cme.blocks: config.yaml has 1, but ")
    file.write_text("[]")
    assert "not a JSON object" in message(damaged)


def test_weights_of_another_slot(damaged):
    shutil.copy(damaged / "connector" / "model.safetensors", damaged / "cme" / "model.safetensors")
    assert "does not fit" in message(damaged)


@pytest.mark.parametrize("name", ["hybrit", "os.system", "reasonbrain.modules.cme.hybrid.HybridEnhancer"])
def test_a_checkpoint_can_only_name_registered_plugins(damaged, name):
    file = damaged / "config.yaml"
    file.write_text(file.read_text().replace("name: hybrid", f"name: {name}"))
    assert f"no plug-in '{name}'" in message(damaged)


def test_broken_config(damaged):
    (damaged / "config.yaml").write_text("model: [")
    assert "config.yaml" in message(damaged)


def test_made_with_another_configuration(saved, settings, tmp_path):
    said = message(saved, config="tiny")  # the shipped one is larger
    assert str(saved) in said and "128" in said
    for override, words in (
        ("model.connector.queries=9", ["model.connector.queries", "6", "9"]),
        ("model.frce.region.name=sam", ["model.frce.region", "'superpixel'", "'sam'", "train"]),
        ("model.width=64", ["model.width", "32", "64"]),
    ):
        said = message(saved, [override])
        assert all(w in said for w in words), said


def test_a_folder_of_this_machine_is_forgotten_and_a_hub_id_is_not(model, settings, tmp_path):
    cfg, alone = settings(), ReasonBrain({"encoders": model.slot("encoders")}, model.width)
    for source, kept in (("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14"), (str(tmp_path), None)):
        cfg.model.encoders["pretrained"] = source
        save_model(alone, cfg, tmp_path / "out")
        assert load_config(str(tmp_path / "out" / "config.yaml")).model.encoders["pretrained"] == kept


def test_trained_tensors_alone_are_stored_in_half_precision_too(model, settings, tmp_path):
    part = model.slot("encoders")
    save_model(ReasonBrain({"encoders": part}, model.width), settings(), tmp_path, torch.bfloat16, trained_only=True)
    stored = load_file(tmp_path / "encoders" / "trained.safetensors")
    assert set(stored) == {n for n, p in part.named_parameters() if p.requires_grad}
    assert all(torch.equal(value, part.get_parameter(name).bfloat16()) for name, value in stored.items())


def test_a_slot_that_was_null_has_no_weights(model, build, settings, tmp_path):
    save_model(build("model.cme=null"), settings("model.cme=null"), tmp_path)
    said = message(tmp_path, ["model.cme.name=hybrid"])
    assert "model.cme" in said and "null" in said


def test_settings_that_do_not_affect_weights_may_change(saved):
    model, cfg = load_model(saved, ["edit.steps=9", "model.cme=null"])
    assert cfg.edit.steps == 9 and model.slot("cme") is None


def test_edit_settings_of_a_configuration_go_before_those_of_the_checkpoint(saved, tmp_path):
    file = tmp_path / "mine.yaml"
    OmegaConf.save({"model": OmegaConf.load(saved / "config.yaml").model, "edit": {"steps": 9}}, file)
    before, after = load_model(saved)[1].edit, load_model(saved, config=str(file))[1].edit
    assert before.steps != 9 and after == replace(before, steps=9)
    assert load_model(saved, ["edit.steps=7"], str(file))[1].edit.steps == 7


def test_a_view_of_another_shape_is_not_shared(model, settings, tmp_path):
    """Two tensors at one address are one stored tensor only if they also have one shape."""
    from reasonbrain.plugin_folder import read_tensors, write_tensors

    whole = torch.arange(8.0)
    write_tensors(
        {"whole": whole, "tied": whole, "half": whole[:4], "square": whole.view(2, 4)}, tmp_path, "model", None, "5GB"
    )
    write_tensors({"all": whole, "some": whole[2:]}, tmp_path, "two", None, "5GB")
    two = {name: value for names, value in read_tensors(tmp_path, "two") for name in names}
    assert torch.equal(two["all"], whole) and torch.equal(two["some"], whole[2:])
    found = {name: value for names, value in read_tensors(tmp_path, "model") for name in names}
    assert torch.equal(found["whole"], whole) and torch.equal(found["tied"], whole)
    assert torch.equal(found["half"], whole[:4]) and torch.equal(found["square"], whole.view(2, 4))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {"whole", "half", "square"}


@pytest.mark.parametrize(
    ("slot", "change", "said"),
    [
        ("cme", {"blocks": 10**9}, "blocks: must be at most 100000000, not 1e.09"),
        ("cme", {"blocks": 10**8}, "more than 20000 tensors"),
        ("cme", {"heads": 10**8}, "heads=100000000 must divide the width"),
        ("cme", {"heads": "many"}, "could not be converted to Integer"),
        ("connector", {"layers": 10**8}, "more than 20000 tensors"),
        ("mllm", {"architecture": {"text_config": {"num_hidden_layers": 10**9}}}, "must be at most"),
        ("encoders", {"architecture": {"vision_config": []}}, "describes no model"),
        ("diffusion", {"architecture": {"transformer": {"num_layers": 10**8}}}, "20000 tensors|describes no model"),
    ],
)
def test_a_config_that_asks_for_too_much_or_for_nothing_possible(damaged, slot, change, said):
    """A hostile one must not fill the memory before its tensors are found to be missing."""
    slot_json = damaged / slot / "config.json"
    slot_json.write_text(json.dumps(json.loads(slot_json.read_text()) | change))
    cfg = damaged / "config.yaml"
    for key, value in change.items():
        cfg.write_text(re.sub(rf"(  {slot}:\n(?:    .*\n)*?    {key}: )\d+", rf"\g<1>{value}", cfg.read_text()))
    assert re.search(said, message(damaged))


def test_a_tokenizer_that_fails_when_it_is_used(damaged, tmp_path):
    file = damaged / "encoders" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": "long"}))
    make("test", 0).source.save(tmp_path / "in.png")
    words = ["edit", tmp_path / "in.png", "melt it", "--checkpoint", damaged, "-o", tmp_path / "out.png"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 2 and f"error: checkpoint '{damaged}' cannot edit" in done.stderr, done.exception
    assert not (tmp_path / "out.png").exists()


def test_a_tokenizer_of_nothing_but_brackets(damaged):
    (damaged / "encoders" / "tokenizer_config.json").write_text("[" * 100_000)
    assert "encoders': a file is missing or broken: RecursionError" in message(damaged)
