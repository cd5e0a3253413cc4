"""The presets of true size with their own hub ids, against a hub whose models are small: online, then offline."""

import re

import layouts
import pytest
from launching import ROOT, ZERO, launch
from published import UNREAD

from reasonbrain.config.loading import presets

# What a user would not change: the sizes that belong to the published models, and enough to run on a CPU.
SMALL = [
    "model.width=48",
    "model.connector.layers=1",
    "model.cme.blocks=1",
    "model.frce.region.points_per_side=3",
]
THINK = ["model.thinking.words=4", "model.thinking.retries=0", "model.diffusion.prompt_tokens=24"]
TRAIN = ["data.path=data/manifest.jsonl", "data.size=64", "train.batch_size=2", "train.tracker=null", "train.warmup=1"]
EDIT = ["edit.size=64", "edit.steps=1"]

# ZeRO stages in two processes, each a launch of half a minute, and whether they start from `init`'s checkpoint, which
# ZeRO-3 reads one tensor at a time, or from the hub.
LAUNCHES = {
    "reasonbrain_flux_qwen": [(2, False), (3, True)],
    "reasonbrain_flux_llava": [(3, False)],
    "reasonbrain_flux_kontext": [(3, False)],
    "reasonbrain_kontext_think": [(2, False), (3, True)],
}


READ = {"reasonbrain_kontext_think": {"text_encoder/model.safetensors"}}


def commands(preset: str, source: str) -> dict[str, list[str]]:
    config = ["--config", preset, *SMALL, *(THINK if "think" in preset else ()), *TRAIN]
    return {
        "init": ["init", "-o", "start", *config],
        "cache": ["data", "cache", "-o", "features", *config],
        "train": ["train", "-o", "run", *config, "train.start=start", "data.features=features", "train.steps=1"],
        "resume": ["train", "-o", "run", *config, "train.start=start", "data.features=features", "train.steps=2"],
        "train from the hub": ["train", "-o", "direct", *config, "train.steps=1"],
        "export": ["export", "run", "-o", "whole"],
        "export adapters": ["export", "direct", "-o", "adapters", "--adapters"],
        "edit": ["edit", source, "What if it melts?", "--checkpoint", "whole", "-o", "whole.png", *EDIT],
        "edit adapters": ["edit", source, "Melt it.", "--checkpoint", "adapters", "-o", "adapters.png", *EDIT],
        "batch": ["batch", "photos", "--instruction", "Melt it.", "--checkpoint", "whole", "-o", "out", *EDIT],
        "eval": ["eval", "--benchmark", "magicbrush", "--data", "mb", "--checkpoint", "whole", "-o", "report", *EDIT]
        + ["--metric", "L1", "--limit", "1"],
    }


@pytest.mark.long
@pytest.mark.parametrize("preset", [name for name in presets() if name.startswith("reasonbrain_")])
def test_every_command(preset, hub, run, tmp_path):
    layouts.save(layouts.picture(1), tmp_path / "photos" / "1.png")
    layouts.magicbrush(tmp_path / "mb")
    names = commands(preset, "photos/1.png")
    for name, (code, said, error) in zip(names, run([*names.values()]), strict=True):
        assert code == 0, (name, said, error)
    assert (tmp_path / "whole.png").is_file() and (tmp_path / "report" / "report.json").is_file()
    asked = {re.sub(r".*/resolve/[^/]+/", "", path) for path in hub.requests if "/resolve/" in path}
    assert asked and not asked & {*UNREAD} - READ.get(preset, set())

    for stage, start in LAUNCHES[preset]:
        words = ["-o", f"zero{stage}", *names["resume" if start else "train from the hub"][3:], "train.steps=1"]
        words += ["--deepspeed", ZERO / f"zero{stage}.json"]
        done = launch(ROOT / "train" / "train.py", *words, env=hub.environment(tmp_path / "home"), cwd=tmp_path)
        assert done.returncode == 0, (stage, done.stderr[-3000:])
        assert (tmp_path / f"zero{stage}" / "model").is_dir()

    before = hub.requests.total()
    again = {name: [w.replace("whole.png", "again.png") for w in names[name]] for name in ("edit adapters",)}
    if preset == "reasonbrain_flux_kontext":  # of 12 B parameters, so one is enough here
        again |= {"plan": ["plan", preset, "--gpus", "8", "--gpu-memory", "80"]}
    again |= {"train": ["train", "-o", "offline", *names["train from the hub"][3:]]}
    for name, (code, said, error) in zip(again, run([*again.values()], offline=True), strict=True):
        assert code == 0, (name, said, error)
    assert hub.requests.total() == before
