"""A hub that refuses, lacks a file or breaks off: one line that names the repository, the reason and what to do."""

import re

import layouts
import pytest

FLUX = "black-forest-labs/FLUX.1-dev"
CLIP, SAM = "openai/clip-vit-large-patch14", "facebook/sam-vit-huge"
NOTHING = ["model.encoders=null", "model.frce.region=null", "model.mllm=null"]


@pytest.fixture
def first_shard(folders):
    return lambda repository: next(p.name for p in sorted(folders[repository].glob("*.safetensors")))


@pytest.mark.long
def test_every_reason(hub, run, first_shard):
    hub.gated.add(FLUX)
    hub.lacks.add((SAM, first_shard(SAM)))
    hub.breaks.add((CLIP, first_shard(CLIP)))
    init = ["init", "--config", "reasonbrain_flux_qwen", "-o", "start"]
    broken, lacks, missing, gated = run(
        [
            init,
            [*init, *NOTHING[:1]],
            [*init, *NOTHING[:2], "model.mllm.pretrained=Qwen/Qwen9"],
            [*init, *NOTHING],
        ]
    )
    for (code, said, error), start, words in (
        (broken, f"model.encoders.pretrained '{CLIP}': ", "connection broke off"),
        (lacks, f"model.frce.region.pretrained '{SAM}' ", first_shard(SAM)),
        (missing, "model.mllm.pretrained 'Qwen/Qwen9': ", "no such repository, or it is private; check the name"),
        (
            gated,
            f"model.diffusion.pretrained '{FLUX}': ",
            f"licence is not accepted; accept it at http.*/{FLUX}, then log in",
        ),
    ):
        line = said.strip().splitlines()[-1]
        assert code == 2 and line.startswith(f"error: {start}") and re.search(words, line), (said, error)
    hub.breaks.clear()
    ((code, said, _),) = run([init], offline=True)
    assert code == 2 and f"'{CLIP}': it is not complete in the cache, and HF_HUB_OFFLINE is set" in said


@pytest.mark.long
def test_networks_that_score_edits(hub, run, folders, first_shard, tmp_path):
    """They are loaded by another way than the model; a connection that breaks off was a traceback there."""
    breaks, gated = "openai/clip-vit-base-patch32", "lab/clip"
    hub.repositories = {**folders, breaks: folders[CLIP], gated: folders[CLIP]}
    hub.breaks.add((breaks, first_shard(CLIP)))
    hub.gated.add(gated)
    layouts.magicbrush(tmp_path / "mb")
    evaluate = ["eval", "--benchmark", "magicbrush", "--data", "mb", "--limit", "1", "--metric", "CLIP-I"]
    for (code, said, error), repository, words in zip(
        run([[*evaluate, "-o", "first"], [*evaluate, "-o", "second", "--clip", gated]]),
        (breaks, gated),
        ("the connection broke off", "licence is not accepted; accept it at"),
        strict=True,
    ):
        line = said.strip().splitlines()[-1]
        assert code == 2 and line.startswith("error: ") and f"'{repository}'" in line and words in line, (said, error)
