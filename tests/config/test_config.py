"""The configuration: presets, overrides, checked slots, and errors that name the key, the value and the choices."""

import pytest

from reasonbrain.config.loading import dump_config, load_config, make_config, portable_config, presets
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.errors import UserError


def message(*overrides, name="tiny"):
    with pytest.raises(UserError) as e:
        load_config(name, overrides)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_overrides_reach_every_section():
    cfg = load_config(
        "tiny", ["edit.steps=3", "train.lr=2e-4", "data.path=a/b.jsonl", "edit.size=null", "model.cme.blocks=4"]
    )
    assert (cfg.edit.steps, cfg.train.lr, cfg.data.path, cfg.edit.size) == (3, 2e-4, "a/b.jsonl", None)
    assert cfg.model.cme["blocks"] == 4 and cfg.model.cme["name"] == "hybrid"


def test_null_empties_a_slot():
    cfg = load_config("tiny", ["model.cme=null", "model.frce.region=null"])
    assert cfg.model.cme is None and cfg.model.frce.region is None and cfg.model.frce.patch is not None


def test_a_null_frce_is_three_null_branches():
    """As an override, in a file, and before an override that fills a branch again."""
    branches = [f"model.frce.{branch}=null" for branch in ("patch", "region", "text")]
    expected = load_config("tiny", branches)
    assert load_config("tiny", ["model.frce=null"]) == expected
    assert make_config({"model": {"frce": None}}) == make_config({}, branches)
    filled = load_config("tiny", ["model.frce=null", "model.frce.text.name=id_controller"]).model.frce
    assert (filled.patch, filled.region, filled.text) == (None, None, {"name": "id_controller"})


def test_another_plugin_drops_the_parameters_of_the_old_one():
    cfg = load_config("tiny", ["model.mllm.name=llava", "model.mllm.pretrained=x"])
    assert cfg.model.mllm == {"name": "llava", "pretrained": "x"}
    kept = load_config("tiny", ["model.mllm.name=qwen2_5_vl"])
    assert kept.model.mllm == load_config("tiny").model.mllm


def test_the_last_of_two_data_names_decides_what_is_kept():
    kept = load_config("tiny", ["data.name=manifest", "data.name=mini"])
    assert kept.data == load_config("tiny").data and kept.data.options
    dropped = load_config("tiny", ["data.name=mini", "data.name=manifest", "data.path=x"])
    assert not dropped.data.options and dropped.data.augment is None


def test_a_null_slot_can_be_filled():
    assert make_config({}, ["model.cme.name=hybrid", "model.cme.blocks=2"]).model.cme == {"name": "hybrid", "blocks": 2}


def test_an_override_in_an_architecture_keeps_the_rest():
    before = load_config("tiny").model.diffusion["architecture"]["transformer"]
    after = load_config("tiny", ["model.diffusion.architecture.transformer.num_layers=7"])
    assert after.model.diffusion["architecture"]["transformer"] == before | {"num_layers": 7}


def test_a_written_configuration_is_read_back_unchanged(tmp_path):
    cfg = load_config("tiny", ["model.cme=null", "train.lr=1e-5", "edit.preserve=false"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(cfg))
    assert load_config(str(file)) == cfg
    file.write_text(portable_config(cfg))
    assert load_config(str(file)) == cfg
    assert "pretrained: ${package:tiny/parts/clip}\n" in file.read_text()  # not where it is on this machine


def test_slot_config():
    cfg = load_config("tiny")
    assert slot_config(cfg.model, "frce.text")["name"] == "id_controller"


def test_defaults_stand_alone():
    assert make_config({}) == Config()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("edit.stepz=3", ["edit.stepz", "did you mean 'steps'", "guidance"]),
        ("edti.steps=3", ["edti", "did you mean 'edit'", "train"]),
        ("edit.steps=many", ["edit.steps", "many"]),
        ("edit.steps=0100", ["edit.steps=0100", "YAML reads 0100 as 64"]),
        ("train.seed=12:30", ["train.seed=12:30", "YAML reads 12:30 as 750"]),
        ("model.cme.blocks=[1, 010]", ["YAML reads 010 as 8"]),
        ("edit.steps=0", ["edit.steps", "from 1 to 1000", "0"]),
        ("train.batch_size=-4", ["train.batch_size", "-4"]),
        ("train.bf16=perhaps", ["train.bf16", "perhaps"]),
        ("train.lr=fast", ["train.lr", "fast"]),
        ("data.name=maxi", ["data.name", "maxi", "manifest, mini", "or mixture"]),
        ("data.name=manifest", ["data.path"]),
        ("model.cme.name=hybrit", ["model.cme.name", "hybrit", "hybrid", "null"]),
        ("model.cme.name=os.system", ["model.cme.name", "os.system", "hybrid"]),
        ("model.cme.bloks=2", ["model.cme.bloks", "did you mean 'blocks'", "queries"]),
        ("model.cme.blocks=two", ["model.cme.blocks", "two"]),
        ("model.cme.width=64", ["model.cme.width"]),  # the model's, not the slot's
        ("model.cme=hybrid", ["model.cme", "null", "hybrid"]),
        ("model.frce.regions.name=sam", ["model.frce.regions", "did you mean 'region'"]),
        ("model.frce=3", ["model.frce", "patch"]),
        ("edit.steps", ["edit.steps", "key=value"]),
        ("=3", ["=3", "key=value"]),
    ],
)
def test_mistakes_are_named(override, said):
    text = message(override)
    assert all(s in text for s in said), text


def test_unknown_presets_and_unreadable_files_are_errors(tmp_path):
    assert "teeny" in message(name="teeny") and all(p in message(name="teeny") for p in presets())
    assert "gone.yaml" in message(name=str(tmp_path / "gone.yaml"))
    broken = tmp_path / "broken.yaml"
    for text in ("model: [", "- a\n- b", "!!python/object/apply:os.system ['true']"):
        broken.write_text(text)
        assert str(broken) in message(name=str(broken))
    broken.write_text("# nothing yet")
    assert f"config file '{broken}' must hold the sections model, " in message(name=str(broken))
    broken.write_text("just words")
    assert "just words: unknown key; choose from model" in message(name=str(broken))
    broken.write_text("edit: 3")
    assert "edit" in message(name=str(broken))
    broken.write_text("train:\n  tracker: x\nedit:\n  steps: ${train.tracker}")
    assert "edit.steps" in message(name=str(broken))


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "a ${oc.env:SECRET,b}", "${package:${oc.env:SECRET}}"])
def test_nothing_is_read_from_the_environment(value, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cr3t")
    for raw, overrides in (({"data": {"validation": value}}, []), ({}, [f"data.validation={value}"])):
        with pytest.raises(UserError, match="is not allowed; only") as e:
            make_config(raw, overrides)
        assert "s3cr3t" not in str(e.value)


def test_preserve_needs_a_range():
    with pytest.raises(UserError, match=r"edit.preserve_low: 0.08 is not below edit.preserve_high=0.08"):
        load_config("tiny", ["edit.preserve_low=0.08"])
