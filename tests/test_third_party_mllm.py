"""An MLLM from a third-party package, with parameter names of its own: it plans, benches, trains and edits."""

import json

import pytest
import torch
from packages import install, run_with
from safetensors.torch import save_file

THEIRS = '''
"""Letters and image patches in one small transformer."""

from pathlib import Path

import torch
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from reasonbrain.interfaces import Guidance
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register

LETTERS = " abcdefghijklmnopqrstuvwxyz"
LENGTH = 24


@register("mllm", "letters")
class Letters(Plugin):
    weight_sources = ("folder",)
    preparing = ("sight",)

    @register_to_config
    def __init__(self, width: int, folder: str | None = None, breadth: int = 16, thoughts: int = 3, tuned: str = "all"):
        super().__init__()
        self.letters = ""
        self.sight = nn.Conv2d(3, breadth, 16, 16)
        self.table = nn.Embedding(len(LETTERS), breadth)
        if folder:
            self.load_assets(folder)
            self.load_state_dict(load_file(Path(folder) / "published.safetensors"))
        self.freeze(self.sight)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(breadth, 2, 2 * breadth, dropout=0, batch_first=True) for _ in range(2)
        )
        self.cue_in, self.out = nn.Linear(width, breadth), nn.Linear(breadth, width)
        self.thoughts_in = nn.Parameter(torch.randn(thoughts, breadth))
        self.thoughts_out = nn.Linear(breadth, thoughts)
        if tuned == "ends":
            self.blocks.requires_grad_(False)

    @classmethod
    def without_weights(cls, params):
        return params | {"folder": None}

    @classmethod
    def memory_options(cls, params):
        return {"adapters": {"tuned": "ends"}} if params.get("tuned") != "ends" else {}

    def repeated(self):
        return list(self.blocks)

    def load_assets(self, folder):
        self.letters = (Path(folder) / "letters.txt").read_text()

    def save_assets(self, folder):
        (folder / "letters.txt").write_text(self.letters)

    def stand_in_assets(self):
        self.letters = LETTERS

    def prepare_dry_run(self, size):
        self.__dict__["reason"] = lambda inputs, max_new_tokens=0: inputs.instructions

    @torch.no_grad()
    def image_features(self, images):
        return self.sight(images).flatten(2).mT

    def words(self, texts):
        rows = [[max(0, self.letters.index(c) if c in self.letters else 0) for c in t.lower()] for t in texts]
        return self.table(torch.tensor([(r + [0] * LENGTH)[:LENGTH] for r in rows], device=self.device))

    def states(self, x):
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=causal)
        return x

    def forward(self, inputs, cues):
        pictures, words = self.known_features(inputs), self.words(inputs.instructions)
        visual, textual = cues.visual * cues.visual_mask[..., None], cues.textual * cues.textual_mask[..., None]
        thoughts = self.thoughts_in.expand(len(words), -1, -1)
        x = self.states(torch.cat([pictures, self.cue_in(torch.cat([visual, textual], 1)), words, thoughts], 1))
        r = thoughts.shape[1]
        labels = torch.arange(r, device=x.device).repeat(len(x))
        loss = F.cross_entropy(self.thoughts_out(x[:, -r - 1 : -1]).flatten(0, 1).float(), labels)
        return Guidance(self.out(x[:, -r:]), loss)

    def text_length(self, instruction):
        return LENGTH

    @torch.no_grad()
    def reason(self, inputs, max_new_tokens=96):
        states = self.states(torch.cat([self.image_features(inputs.images), self.words(inputs.instructions)], 1))
        best = (states[:, -1] @ self.table.weight.mT).topk(3).indices
        return ["".join(self.letters[i] for i in row) for row in best.tolist()]
'''

USE = """
import json, sys
from pathlib import Path
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from reasonbrain.checkpoint import load_model
from reasonbrain.cli import main
from reasonbrain.config.loading import load_config
from reasonbrain.train.building import without_weights
from reasonbrain.train.planning import plan
from reasonbrain.train.planning.dry import fake_passes

out, folder, picture, *overrides = sys.argv[1:]
out = Path(out)
overrides += ["model.mllm.name=letters", "train.batch_size=4", "train.optimizer=adamw", "data.count=8"]


def command(*args):
    done = CliRunner().invoke(main, [str(a) for a in args])
    assert done.exit_code == 0, (args, done.stderr, done.exception)
    return done.stdout


absent = [*overrides, "model.mllm.folder=nowhere/at-all", "train.micro_batch=1"]
planned = json.loads(command("plan", "tiny", "--gpus", 2, "--gpu-memory", 24, "--json", *absent))
sentence = fake_passes(load_config("tiny", [*absent, "model.encoders.reads=sentence"]), 1, narrow=False)[0]
cfg = load_config("tiny", absent)
made, _ = plan.rows(cfg, without_weights(cfg), 2)
advice = plan.advice("tiny", absent, without_weights(cfg), 2, 0.99 * min(row["peak"] for row in made), made)
command("bench", "train", "--random", "--warmup", 0, "--repeats", 1, "-o", out / "bench.json", *absent)

here = [*overrides, f"model.mllm.folder={folder}"]
steps = ["train.steps=4", "train.save_every=4", "train.log_every=1", "train.lr=1e-2", "train.warmup=1"]
steps.append("train.checkpointing=[mllm]")
command("train", "--config", "tiny", "-o", out / "run", *here, *steps)
shown = ("-o", out / "edit.png", "--panel", out / "panel.png")
command("edit", picture, "What would melt?", *shown, "--checkpoint", out / "run")
command("export", out / "run", "-o", out / "small", "--adapters")
whole, small = (load_model(out / name)[0].slot("mllm") for name in ("run", "small"))
print(json.dumps({
    "parameters": planned["parameters"]["mllm"],
    "flops": [planned["flops_a_step_and_gpu"], 2 * sentence.flops],
    "advice": advice,
    "bench": json.loads((out / "bench.json").read_text())["rows"][0]["flops"],
    "lm": [json.loads(line)["lm"] for line in (out / "run" / "log.jsonl").read_text().splitlines()],
    "letters": whole.letters,
    "small": sorted(load_file(out / "small" / "mllm" / "trained.safetensors")),
    "trained": sorted(n for n, p in whole.named_parameters() if p.requires_grad),
    "same": all(torch.equal(v, small.state_dict()[n]) for n, v in whole.state_dict().items()),
    "edited": (out / "edit.png").is_file() and (out / "panel.png").is_file(),
}))
"""


@pytest.mark.long
def test_it_plans_benches_trains_and_edits(tmp_path, overrides, records):
    """Planning and random weights read nothing of its folder; its loss falls; its checkpoint stands alone, and one
    without published weights finds them again."""
    overrides = [o for o in overrides if not o.startswith("model.mllm")]
    env = install(tmp_path, "their_mllm", THEIRS, "reasonbrain.modules", "mllm:letters", "their_mllm")
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "letters.txt").write_text(" zyxwvutsrqponmlkjihgfedcba")
    sight = {"sight.weight": torch.randn(16, 3, 16, 16) * 0.1, "sight.bias": torch.zeros(16)}
    save_file({"table.weight": torch.randn(27, 16), **sight}, folder / "published.safetensors")
    records[0].source.save(tmp_path / "in.png")
    out = run_with(env, USE, tmp_path, folder, tmp_path / "in.png", *overrides, timeout=600)
    found = json.loads(out.splitlines()[-1])
    trained = 27 * 16 + 2 * 2224 + (33 * 16) + (17 * 32) + 3 * 16 + 17 * 3
    assert found["parameters"] == {"all": trained + 3 * 16 * 16 * 16 + 16, "trained": trained}
    assert found["flops"][0] == found["flops"][1] > 0 and found["bench"] > 0
    assert "model.mllm.tuned=ends" in found["advice"]
    assert found["lm"][-1] < found["lm"][0]
    assert found["letters"] == " zyxwvutsrqponmlkjihgfedcba" and found["edited"]
    assert found["small"] == found["trained"] and found["same"]
