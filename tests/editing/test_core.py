"""The core: how often each part runs in one edit, by the pipeline and in a batch, and that sentences are reused."""

import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from PIL import ImageFile

from reasonbrain import checkpoint, objects
from reasonbrain.config import loading
from reasonbrain.config.schema import EditConfig
from reasonbrain.editing.core import Core
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.utils import images

READS = "model.encoders.reads=sentence"


@pytest.fixture(scope="module")
def pipes(build, wake, settings):
    """Pipelines by what E_T reads."""
    made = {}
    for reads, words in (("instruction", []), ("sentence", [READS])):
        made[reads] = ReasonBrainPipeline.from_model(wake(build(*words)), settings(*words))
        made[reads].set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def calls(monkeypatch):
    """``calls(pipe)``: starts counting the calls of each part, by name; a slot's name stands for its forward pass."""
    passed, hooks = Counter(), []

    def counted(name, function):
        def call(*args, **kwargs):
            passed[name] += 1
            return function(*args, **kwargs)

        return call

    def everywhere(function):
        """Wraps a function in every module that has imported it."""
        name = function.__name__
        for module in [m for n, m in sys.modules.items() if n.startswith("reasonbrain.")]:
            if vars(module).get(name) is function:
                monkeypatch.setattr(module, name, counted(name, function))

    def start(pipe):
        modules = {slot: getattr(pipe, slot.replace(".", "_")) for slot in SLOTS if slot != "diffusion"}
        modules |= {"clip's vision": pipe.encoders.clip.vision_model, "mllm's vision": pipe.mllm.model.model.visual}
        modules |= {"vae encoder": pipe.diffusion.vae.encoder, "vae decoder": pipe.diffusion.vae.decoder}
        modules["transformer"] = pipe.diffusion.transformer
        for name, module in modules.items():
            hooks.append(module.register_forward_hook(lambda *_, name=name: passed.update([name])))
        for owner, name in ((pipe.frce_region, "segment"), (pipe.mllm, "pixels"), (pipe.mllm.model, "generate")):
            monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
        monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", counted("decoded", ImageFile.ImageFile.load_prepare))
        everywhere(images.to_tensor)
        everywhere(objects.find_objects)
        return passed

    yield start
    for hook in hooks:
        hook.remove()


def by_the_pipeline(pipe, picture, reasoning):
    out = pipe(picture, "melt the ice", num_inference_steps=4, reasoning=reasoning)
    return out.reasoning[0] if out.reasoning else None


def by_a_batch(pipe, picture, reasoning):
    row = {"id": "a", "image": picture, "instruction": "melt the ice", "steps": 4, "reasoning": reasoning}
    (result,) = pipe.batch([row], batch_size=1)
    assert not result.error
    return result.reasoning


@pytest.mark.parametrize("way", [by_the_pipeline, by_a_batch])
@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("reads", ["instruction", "sentence"])
def test_each_part_runs_once_per_edit(pipes, calls, records, tmp_path, way, reasoning, reads):
    """Except the transformer, once per step, and the decoder, once for the edit and once for the source, which
    ``preserve`` compares."""
    records[0].source.save(tmp_path / "in.png")
    passed = calls(pipes[reads])
    said = way(pipes[reads], tmp_path / "in.png", reasoning)
    assert bool(said) == (reasoning or reads == "sentence")
    once = [slot for slot in SLOTS if slot != "diffusion"]
    once += ["decoded", "to_tensor", "find_objects", "segment", "pixels"]
    once += ["clip's vision", "mllm's vision", "vae encoder"]
    if reasoning or reads == "sentence":
        once.append("generate")
    assert passed == {"transformer": 4, "vae decoder": 2, **dict.fromkeys(once, 1)}


def test_pipeline_and_batch_report_the_sentence_that_e_t_reads(pipes, records, tmp_path):
    """It is the sentence that the MLLM generates."""
    records[0].source.save(tmp_path / "in.png")
    pipe = pipes["sentence"]
    said = {way(pipe, tmp_path / "in.png", True) for way in (by_the_pipeline, by_a_batch)}
    inputs = pipe.model.make_inputs(images.to_tensor([records[0].source]), ["melt the ice"])
    assert said == set(pipe.mllm.reason(inputs))


@torch.no_grad()
def test_given_sentences_are_read_and_not_generated_again(pipes, calls, records):
    model = pipes["sentence"].model
    inputs = model.make_inputs(images.to_tensor([records[0].source]), ["melt the ice"])
    passed = calls(pipes["sentence"])
    asked = model.condition(inputs)[0]  # as training does
    told = model.reason(inputs)
    assert passed["generate"] == 2 and inputs.sentences is None
    assert model.reason(told) is told
    assert torch.equal(model.condition(told)[0].textual, asked.textual)
    other = model.condition(replace(inputs, sentences=["the candle burns"]))[0]
    assert not torch.equal(other.textual, asked.textual)
    assert passed["generate"] == 2


def test_what_the_text_encoder_leaves_out_is_of_the_text_that_it_reads(pipes):
    long, short = "melt the candle and " * 40 + "freeze the lake", "the candle burns"
    for reads, texts in (("instruction", (long, short)), ("sentence", (short, long))):
        assert pipes[reads].core().unread(*texts).endswith("freeze the lake")
        assert pipes[reads].core().unread(*reversed(texts)) == ""


def test_a_picture_may_have_as_many_pixels_as_it_says():
    edit = EditConfig(max_pixels=100, size=None)
    core = Core(ReasonBrain({}, 8), torch.device("cpu"), None)
    assert core.size(20, 5, edit) == (5, 20)
    with pytest.raises(UserError, match="101 x 1 pixels, more than edit.max_pixels=100"):
        core.size(101, 1, edit)


def test_reasoning_is_none_without_an_mllm(build, settings, records):
    pipe = ReasonBrainPipeline.from_model(build("model.mllm=null"), settings("model.mllm=null"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(records[0].source, "melt it", reasoning=True).reasoning is None
    (result,) = pipe.batch([{"id": "a", "image": records[0].source, "instruction": "melt it", "reasoning": True}])
    assert result.image and result.reasoning is None


def test_the_model_of_a_pipeline_is_one_module_and_follows_its_components(model, settings, records):
    pipe = ReasonBrainPipeline.from_model(model, settings())
    pipe.set_progress_bar_config(disable=True)
    assert pipe.model is model
    cme, pipe.cme = pipe.cme, None
    assert pipe.model is pipe.model and pipe.model is not model
    assert pipe.model.slot("cme") is None and pipe.model.slot("mllm") is pipe.mllm
    assert pipe(records[0].source, "melt it").focus == [None]
    pipe.register_modules(cme=cme)
    assert pipe.model.slot("cme") is cme
    assert pipe(records[0].source, "melt it").focus[0] is not None
    assert model.slot("cme") is cme  # the caller's model stays as it was


def test_a_configuration_is_read_once(model, settings, tmp_path, monkeypatch):
    ReasonBrainPipeline.from_model(model, settings()).save_pretrained(tmp_path)
    passed = Counter()
    load, make = OmegaConf.load, loading.make_config
    monkeypatch.setattr(OmegaConf, "load", lambda path: passed.update(["read"]) or load(path))
    for module in (loading, checkpoint):
        monkeypatch.setattr(module, "make_config", lambda *args, **more: passed.update(["made"]) or make(*args, **more))
    ReasonBrainPipeline.from_pretrained(tmp_path)
    assert passed == {"read": 1, "made": 1}
    pipe = ReasonBrainPipeline.from_pretrained(tmp_path, ["edit.steps=7"])
    assert passed == {"read": 2, "made": 3}  # as saved, and with the overrides
    assert pipe.settings.edit.steps == 7
