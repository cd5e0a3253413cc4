"""Rounds of editing and reviewing, with an endpoint that scores what it is shown."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import save_editor
from thinker import SAID, SENTENCE, Thinker

from reasonbrain.config.loading import make_config
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.editing.rounds import sheet
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain

KLEIN = "black-forest-labs/FLUX.2-klein-4B"
WORDS = "What if it got hot?"


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    folder = tmp_path_factory.mktemp("klein")
    save_editor(KLEIN, folder)
    return folder


@pytest.fixture
def pipeline(klein, tmp_path):
    def build(server, *more, thinking=True):
        mllm = {"name": "endpoint", "url": server.url, "model": "thinker", "answers": str(tmp_path / "answers")}
        editor = {"name": "editor", "pretrained": str(klein), "pixels": 96 * 96, "precision": "float32"}
        raw = {"model": {"width": 8, "mllm": mllm, "diffusion": editor}, "edit": {"steps": 1, "preserve": False}}
        if thinking:
            raw["model"]["thinking"] = {}
        cfg = make_config(raw, more)
        pipe = ReasonBrainPipeline.from_model(ReasonBrain.from_config(cfg.model).eval(), cfg)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


class Judge:
    """Answers the first question with ``SAID``, and reviews with the scores given, in this order."""

    def __init__(self, *scores, sentences=None):
        self.scores, self.sentences, self.sheets, self.told = list(scores), sentences or {}, [], []

    def __call__(self, asked, pictures):
        if "The editor was told" not in asked:
            return json.dumps(SAID)
        self.sheets.append(np.asarray(pictures[0]))
        self.told.append(asked.split('The editor was told: "')[1].split('"')[0])
        follows, keeps = self.scores.pop(0)
        return json.dumps(SAID | {"change": f"Attempt {len(self.sheets)}", "follows": follows, "keeps": keeps})


def told(number):
    return SENTENCE.replace(SAID["change"], f"Attempt {number}")


def edit(pipe, picture, **call):
    return pipe(picture, WORDS, generator=torch.Generator().manual_seed(1), **call)


def test_a_score_is_a_number(pipeline, picture):
    """True is not 1 of 10: the review is asked for again."""
    with Thinker(Judge((True, 9), (8, 9))) as server:
        out = edit(pipeline(server, "edit.rounds=2"), picture)
    assert [(r.review.follows, r.review.keeps) for r in out.rounds[0]] == [(8, 9)]


def test_the_source_is_edited_again_and_the_best_is_kept(pipeline, picture):
    """Each round gets the sentence of the review before, the same noise, and the source."""
    judge = Judge((2, 9), (7, 7), (9, 1))
    with Thinker(judge) as server:
        out = edit(pipeline(server, "edit.rounds=3"), picture)
        alone = [edit(pipeline(server), picture, reasoning=s).images[0] for s in (SENTENCE, told(1), told(2))]
    (rounds,) = out.rounds
    assert [r.sentence for r in rounds] == judge.told == [SENTENCE, told(1), told(2)]
    assert [(r.number, r.review.follows, r.review.keeps) for r in rounds] == [(1, 2, 9), (2, 7, 7), (3, 9, 1)]
    for made, image in zip(rounds, alone, strict=True):
        shown = made.image[0].permute(1, 2, 0).mul(255).round().byte().numpy()
        assert (shown == np.asarray(image)).all()
    assert (np.asarray(out.images[0]) == np.asarray(alone[1])).all() and out.reasoning == [told(1)]
    side = round((50 * 70) ** 0.5)
    assert all(shown.shape == (side, side, 3) for shown in judge.sheets)


def test_rounds_end_when_an_edit_is_good(pipeline, picture):
    with Thinker(Judge((8, 8))) as server:
        out = edit(pipeline(server, "edit.rounds=5"), picture)
    assert len(out.rounds[0]) == 1


def test_a_callback_interrupts_rounds(pipeline, picture):
    seen = []

    def stop(pipe, step, timestep, given):
        seen.append((step, pipe.num_timesteps))
        pipe._interrupt = True
        return given

    with Thinker(Judge((2, 2), (3, 3))) as server:
        edit(pipeline(server, "edit.rounds=2", "edit.steps=4"), picture, callback_on_step_end=stop)
    assert [step for step, _ in seen] == [0, 0] and seen[1] == (0, 4)


def test_candidates_have_noise_of_their_own(pipeline, picture):
    with Thinker(Judge((3, 3), (6, 6), (1, 1))) as server:
        pipe = pipeline(server, "edit.candidates=3")
        out = edit(pipe, picture)
    images = [r.image for r in out.rounds[0]]
    assert [r.candidate for r in out.rounds[0]] == [1, 2, 3] and len({r.sentence for r in out.rounds[0]}) == 1
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
    assert (np.asarray(out.images[0]) == images[1][0].permute(1, 2, 0).mul(255).round().byte().numpy()).all()


def test_a_review_that_cannot_be_read_ends_the_rounds(pipeline, picture):
    def answer(asked, pictures):
        return "Nice!" if "The editor was told" in asked else json.dumps(SAID)

    with Thinker(answer) as server:
        out = edit(pipeline(server, "edit.rounds=3", "model.thinking.retries=1"), picture)
        assert len(server.asked) == 3
    assert [r.review for r in out.rounds[0]] == [None] and out.reasoning == [SENTENCE]


def test_a_batch_gives_the_same(pipeline, picture, tmp_path):
    judge = Judge(*[(2, 9), (7, 7)] * 2)
    with Thinker(judge) as server:
        pipe = pipeline(server, "edit.rounds=2")
        out = edit(pipe, picture)
        (result,) = pipe.batch([{"id": "a", "image": np.asarray(picture), "instruction": WORDS, "seed": 1}])
        assert not result.error and len(judge.sheets) == 2  # the answers of the first are reused
    assert (np.asarray(result.image) == np.asarray(out.images[0])).all()
    assert [r.summary() | {"seconds": 0} for r in result.rounds] == [
        r.summary() | {"seconds": 0} for r in out.rounds[0]
    ]


def test_what_rounds_need(pipeline, picture):
    with Thinker(Judge()) as server, pytest.raises(UserError, match="edit.rounds and edit.candidates need an MLLM"):
        edit(pipeline(server, "edit.rounds=2", thinking=False), picture)


@pytest.mark.parametrize(("h", "w"), [(50, 70), (70, 50), (64, 64), (8, 300), (1, 1)])
def test_a_sheet_shows_both_pictures(h, w):
    shown = sheet(torch.zeros(1, 3, h, w), torch.ones(1, 3, h, w))
    side = max(1, round((h * w) ** 0.5))
    assert shown.shape == (1, 3, side, side)
    if min(h, w) > 1:
        dark, light = ((x.float().mean().item()) for x in (shown < 0.1, shown > 0.9))
        assert dark == pytest.approx(light, abs=0.1)
        assert (shown < 0.1).any() and (shown > 0.9).any()
