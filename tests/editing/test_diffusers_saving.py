"""What users of diffusers' pipelines expect of saving, loading and changing components.

docs/reference/api.md has a table of diffusers' common pipeline tests and of those here that mean the same."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, FlowMatchHeunDiscreteScheduler

from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.registry import SLOTS

COMPONENTS = [slot.replace(".", "_") for slot in SLOTS]


def edit(pipe, picture):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(picture, "melt it", generator=generator, output_type="np", preserve=False, num_inference_steps=2).images


@pytest.fixture
def pipe(build, wake, settings):
    """A pipeline of its own."""
    return ReasonBrainPipeline.from_model(wake(build()), settings())


@pytest.fixture
def picture(records):
    return records[0].source


@pytest.fixture(scope="module")
def saved(model, settings, tmp_path_factory):
    """A saved pipeline. Tests must not change it."""
    folder = tmp_path_factory.mktemp("saved")
    ReasonBrainPipeline.from_model(model, settings()).save_pretrained(folder)
    return folder


def weights(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*.safetensors*")}


def dtypes(pipe):
    return {name: getattr(pipe, name).dtype for name in COMPONENTS}


def same_weights(one, other):
    expected, found = one.state_dict(), other.state_dict()
    return expected.keys() == found.keys() and all(torch.equal(v, found[k]) for k, v in expected.items())


def test_a_saved_pipeline_gives_the_same_edit(pipe, picture, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert (edit(ReasonBrainPipeline.from_pretrained(tmp_path), picture) == edit(pipe, picture)).all()


@pytest.mark.parametrize("empty", [*([name] for name in COMPONENTS if name != "diffusion"), COMPONENTS])
def test_an_empty_slot_stays_empty(pipe, picture, saved, tmp_path, empty):
    """Also where the folder held it before."""
    pipe.save_pretrained(tmp_path)
    for name in empty:
        setattr(pipe, name, None)
    pipe.save_pretrained(tmp_path)
    again = ReasonBrainPipeline.from_pretrained(tmp_path)
    assert {name for name in COMPONENTS if getattr(again, name) is None} == {*empty}
    assert not any((tmp_path / name).exists() for name in empty)
    assert (edit(again, picture) == edit(pipe, picture)).all()


def test_what_is_in_a_slot_is_saved_whatever_the_settings_say(pipe, picture, settings, tmp_path):
    other = ReasonBrainPipeline(**pipe.components | {"settings": settings("model.cme=null", "model.frce.text=null")})
    other.save_pretrained(tmp_path / "more")
    bare = ReasonBrainPipeline(**{name: getattr(pipe, name) for name in COMPONENTS})
    bare.save_pretrained(tmp_path / "bare")
    for folder in ("more", "bare"):
        again = ReasonBrainPipeline.from_pretrained(tmp_path / folder)
        assert same_weights(again.model, pipe.model)


def test_another_module_of_the_same_kind_is_saved_as_it_is(pipe, build, picture, tmp_path):
    pipe.cme = build("model.cme.queries=4").slot("cme")
    pipe.save_pretrained(tmp_path)
    again = ReasonBrainPipeline.from_pretrained(tmp_path)
    assert again.cme.config.queries == 4 and same_weights(again.cme, pipe.cme)


def test_a_replaced_scheduler_and_autoencoder_are_saved(pipe, picture, tmp_path):
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=2.0)
    blocks = {"encoder_block_out_channels": [8] * 3, "decoder_block_out_channels": [8] * 3}
    counts = {"num_encoder_blocks": [1] * 3, "num_decoder_blocks": [1] * 3}
    pipe.vae = AutoencoderTiny(**blocks, **counts, latent_channels=4).eval()
    expected = edit(pipe, picture)
    pipe.save_pretrained(tmp_path)
    again = ReasonBrainPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is FlowMatchHeunDiscreteScheduler and again.scheduler.config.shift == 2.0
    assert type(again.vae) is AutoencoderTiny and (edit(again, picture) == expected).all()


def test_a_folder_cannot_name_any_class(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "diffusion" / "config.json"
    for name in ("DiffusionPipeline", "utils", "FluxTransformer2DModel", "Nothing"):
        config = json.loads(file.read_text())
        config["architecture"]["vae"]["_class_name"] = name
        file.write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"model.diffusion.architecture.vae: '{name}' is not an autoencoder"):
            ReasonBrainPipeline.from_pretrained(tmp_path)


def test_variants(pipe, picture, tmp_path):
    """Files of two variants lie side by side."""
    pipe.save_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert weights(tmp_path) == {f"{name}/model.fp16.safetensors" for name in COMPONENTS}
    with pytest.raises(UserError, match=r"encoders/model.safetensors' is missing"):
        ReasonBrainPipeline.from_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path, max_shard_size="40KB", variant="large")
    assert (tmp_path / "mllm" / "model.large.safetensors.index.json").is_file()
    pipe.save_pretrained(tmp_path)
    assert same_weights(ReasonBrainPipeline.from_pretrained(tmp_path, variant="large").model, pipe.model)
    assert same_weights(ReasonBrainPipeline.from_pretrained(tmp_path).model, pipe.model)
    again = ReasonBrainPipeline.from_pretrained(tmp_path, variant="fp16")
    assert same_weights(again.model, pipe.model.half().float())
    pipe.save_pretrained(tmp_path, variant="large")  # in one file: its shards go, the others stay
    assert sum("large" in name for name in weights(tmp_path)) == len(COMPONENTS)
    with pytest.raises(UserError, match=r"model.fp8.safetensors' is missing"):
        ReasonBrainPipeline.from_pretrained(tmp_path, variant="fp8")


def test_other_arguments_of_saving_are_refused(pipe, tmp_path):
    for given in ({"safe_serialization": False}, {"private": True}, {"use_flashpack": True}):
        with pytest.raises(UserError, match=next(iter(given))):
            pipe.save_pretrained(tmp_path / "out", **given)
    with pytest.raises(UserError, match="safe_serialization"):
        pipe.cme.save_pretrained(tmp_path / "out", safe_serialization=False)
    assert not (tmp_path / "out").exists()


def test_a_dtype_by_component(saved):
    wanted = {"mllm": torch.bfloat16, "default": torch.float16}
    found = dtypes(ReasonBrainPipeline.from_pretrained(saved, dtype=wanted))
    assert found == dict.fromkeys(COMPONENTS, torch.float16) | {"mllm": torch.bfloat16}
    found = dtypes(ReasonBrainPipeline.from_pretrained(saved, torch_dtype={"cme": torch.bfloat16}))
    assert found == dict.fromkeys(COMPONENTS, torch.float32) | {"cme": torch.bfloat16}
    with pytest.raises(UserError, match="dtype: there is no slot 'unet'"):
        ReasonBrainPipeline.from_pretrained(saved, dtype={"unet": torch.float16})


def test_one_dtype_for_all(saved, tmp_path, picture):
    half = ReasonBrainPipeline.from_pretrained(saved, dtype=torch.float16)
    assert {*dtypes(half).values()} == {torch.float16}
    half.save_pretrained(tmp_path)
    again = ReasonBrainPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    assert {*dtypes(again).values()} == {torch.float16} and (edit(again, picture) == edit(half, picture)).all()
    assert {*dtypes(again.to(torch.float32)).values()} == {torch.float32}


def test_a_device_map(saved, picture):
    pipe = ReasonBrainPipeline.from_pretrained(saved, device_map="cpu")
    assert (edit(pipe, picture) == edit(ReasonBrainPipeline.from_pretrained(saved), picture)).all()
    for device in ("balanced", "cuda:9"):
        with pytest.raises(UserError, match=f"device_map: '{device}' cannot be used"):
            ReasonBrainPipeline.from_pretrained(saved, device_map=device)


def test_components_given_to_from_pretrained(saved, pipe, picture):
    pipe.cme = None
    again = ReasonBrainPipeline.from_pretrained(saved, diffusion=pipe.diffusion, cme=None)
    assert again.diffusion is pipe.diffusion and again.cme is None
    assert (edit(again, picture) == edit(pipe, picture)).all()
    with pytest.raises(UserError, match="component 'unet' is not one of encoders"):
        ReasonBrainPipeline.from_pretrained(saved, unet=None)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_alone(pipe, saved, tmp_path, name):
    """In the form of a checkpoint's folder, tokenizers included."""
    part = getattr(pipe, name)
    part.save_pretrained(tmp_path, variant="x", max_shard_size="40KB")
    part.save_pretrained(tmp_path)
    again = type(part).from_pretrained(tmp_path)
    assert same_weights(again, part) and not again.training
    assert same_weights(type(part).from_pretrained(tmp_path, variant="x"), part)
    assert {f.name for f in (saved / name).iterdir()} <= {f.name for f in tmp_path.iterdir()}
    half = type(part).from_pretrained(saved / name, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_component_of_another_kind_is_refused(saved, pipe):
    with pytest.raises(UserError, match="does not fit its config.json|describes no model"):
        type(pipe.connector).from_pretrained(saved / "mllm")


def test_diffusers_finds_our_classes(settings, pipe, picture, tmp_path):
    """Of a folder that it knows nothing of but its model_index.json."""
    pipe.settings = settings("edit.steps=2", "edit.size=48")
    pipe.cme = None
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(again) is ReasonBrainPipeline and again.cme is None
    assert again.settings.edit == pipe.settings.edit and same_weights(again.model, pipe.model)
    assert (edit(again, picture) == edit(pipe, picture)).all()
    half = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True, dtype=torch.float16)
    assert half.diffusion.dtype == torch.float16 and half.settings == again.settings


def test_the_table_in_the_documentation_names_tests_that_exist():
    files = {"H": "test_diffusers_habits.py", "S": "test_diffusers_saving.py", "O": "test_offloading.py"}
    here = Path(__file__)
    page = (here.parents[2] / "docs/reference/api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9A-Z_, ]+) \| (.+?) \| .*\|$", page, re.MULTILINE)[1:]
    named = [name for row, _ in rows for name in row.split(", ")]
    assert len(named) == len(set(named)) == 45
    assert sum(len(row.split(", ")) for row, ours in rows if ours != "does not apply") == 41
    for _, ours in rows:
        if ours != "does not apply":
            file, name = ours.split()
            text = (here.parent / files[file]).read_text(encoding="utf-8")
            assert f"def test_{name}(" in text, ours
