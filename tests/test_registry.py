"""The registry: built-in plug-ins, decorators, and a third-party package found by its entry point."""

import json

import pytest
from packages import install, run_with

from reasonbrain import registry
from reasonbrain.errors import UserError
from reasonbrain.plugin import Plugin
from reasonbrain.registry import KINDS, plugin, plugins, register

THEIRS = """
from diffusers.configuration_utils import register_to_config
from torch import nn

from reasonbrain.interfaces import Condition
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


@register("cme", "scaled")
class Scaled(Plugin):
    @register_to_config
    def __init__(self, width: int, gain: float = 2.0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, features, cues, guidance):
        out = self.linear(guidance) * self.config.gain
        return Condition(out, out, features.pooled)
"""

USE = """
import json, sys
import torch
from reasonbrain import ReasonBrainPipeline
from reasonbrain.config.loading import load_config
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import plugins

folder, *overrides = sys.argv[1:]
found = {i.name: i.package for i in plugins("cme")}
cfg = load_config("tiny", [*overrides, "model.cme.name=scaled", "model.cme.gain=3"])
model = ReasonBrain.from_config(cfg.model).eval()
inputs = model.make_inputs(torch.rand(1, 3, 64, 64), ["melt the ice"])
before = model.condition(inputs)[0].visual
ReasonBrainPipeline.from_model(model, cfg).save_pretrained(folder)
again = ReasonBrainPipeline.from_pretrained(folder)
same = torch.equal(before, again.model.condition(inputs)[0].visual)
guidance = model.align(model.guide(inputs, model.cues(model.encode(inputs), inputs)))
right = torch.allclose(before, 3 * model.slot("cme").linear(guidance), atol=1e-5)
print(json.dumps({"found": found, "class": type(again.cme).__module__, "same": same, "right": right}))
"""


def test_every_slot_has_its_plugins():
    names = {slot: [i.name for i in plugins(slot)] for slot in KINDS}
    expected = {
        "encoders": ["clip", "clip_states"],
        "frce.patch": ["patch_encoder"],
        "frce.region": ["sam", "superpixel"],
        "frce.text": ["id_controller"],
        "mllm": ["endpoint", "llava", "qwen2_5_vl", "qwen3_vl", "text_llm"],
        "connector": ["edit_head", "qformer"],
        "cme": ["bim", "hybrid"],
        "diffusion": ["editor", "flux", "sd"],
        "data": [
            *("editworld", "emu_edit", "folder", "instructpix2pix", "kris", "magicbrush", "manifest", "mini"),
            *("mini2", "parquet", "reasonedit", "risebench", "webdataset"),
        ],
    }
    assert names == expected
    assert [i.slot for i in plugins()] == [s for s in KINDS for _ in expected[s]]
    assert all(i.package == "reasonbrain" for i in plugins())


def test_a_name_gives_the_class():
    cls = plugin("cme", "hybrid")
    assert issubclass(cls, Plugin) and (cls.slot, cls.plugin_name) == ("cme", "hybrid")


@pytest.mark.parametrize("name", ["hybrit", "reasonbrain.modules.cme.hybrid.HybridEnhancer", "os.system", ""])
def test_unknown_and_dotted_names_are_refused_with_the_choices(name):
    with pytest.raises(UserError) as e:
        plugin("cme", name)
    assert str(e.value) == f"model.cme.name: there is no plug-in '{name}'; choose from bim, hybrid, or null"


def test_register_adds_a_plugin_and_checks_the_slot(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    @register("cme", "mine")
    class Mine: ...

    assert plugin("cme", "mine") is Mine and "mine" in [i.name for i in plugins("cme")]
    with pytest.raises(ValueError, match="cmee"):
        register("cmee", "mine")


def test_a_third_party_package_adds_a_plugin(tmp_path, overrides):
    env = install(tmp_path, "their_enhancer", THEIRS, "reasonbrain.modules", "cme:scaled", "their_enhancer")
    out = run_with(env, USE, tmp_path / "saved", *overrides)
    assert json.loads(out.splitlines()[-1]) == {
        "found": {"bim": "reasonbrain", "hybrid": "reasonbrain", "scaled": "their-enhancer"},
        "class": "their_enhancer",
        "same": True,
        "right": True,
    }
