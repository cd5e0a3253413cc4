"""Think, then edit: the question, the answer, retries, the user's own sentence, and who says what."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from pipelines import save_editor, save_qwen3_vl
from thinker import SAID, SENTENCE, Thinker

from reasonbrain.cli import main
from reasonbrain.config.loading import make_config
from reasonbrain.config.schema import ThinkingConfig
from reasonbrain.data.record import Record
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.model import ReasonBrain
from reasonbrain.thinking import question, read
from reasonbrain.utils import endpoint as asking

KLEIN = "black-forest-labs/FLUX.2-klein-4B"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    save_editor(KLEIN, root / "klein")
    torch.manual_seed(0)
    save_qwen3_vl(root / "qwen")
    return root


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def config(folders, mllm, *more):
    raw = {
        "model": {
            "width": 8,
            "thinking": {},
            "mllm": mllm,
            "diffusion": {
                "name": "editor",
                "pretrained": str(folders / "klein"),
                "pixels": 96 * 96,
                "precision": "float32",
            },
        },
        "edit": {"steps": 1, "preserve": False},
    }
    return make_config(raw, more)


def pipeline(folders, mllm, *more):
    cfg = config(folders, mllm, *more)
    pipe = ReasonBrainPipeline.from_model(ReasonBrain.from_config(cfg.model).eval(), cfg)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def endpoint(server, tmp_path, **more):
    return {"name": "endpoint", "url": server.url, "model": "thinker", "answers": str(tmp_path / "answers"), **more}


def edit(pipe, *pictures, words="What if it got hot?", **call):
    return pipe(list(pictures), words, generator=torch.Generator().manual_seed(1), **call)


def test_an_answer_is_read():
    thinking = ThinkingConfig()
    said = json.dumps(SAID | {"objects": ["ice cube", " plate "]})
    for text in (said, f"<think>{{}} hm {{a}}</think>\n```json\n{said}\n``` So be it.", f"Here: {{ {said} and more"):
        assert read(thinking, text) == (SENTENCE, ["ice cube", "plate"])
    assert read(thinking, json.dumps(SAID)) == (SENTENCE, [])
    spaced = {key: text.replace(" ", space) for (key, text), space in zip(SAID.items(), "\n\xa0\u3000", strict=True)}
    assert read(thinking, json.dumps(spaced)) == (SENTENCE, [])  # a new line, and spaces of French and Chinese
    asked = ThinkingConfig(answer={"edit": "the edit"}, words=4)
    assert read(asked, '{"edit": "put out the flame"}').sentence == "put out the flame."
    for text, wrong in (
        ("", "it is empty"),
        ("melt it", "it holds no JSON object"),
        ("<think>" + said, "it holds no JSON object"),
        ('{"change": "melt it"}', "'look' is missing or not a text"),
        (json.dumps(SAID | {"keep": ["all"]}), "'keep' is missing or not a text"),
        (json.dumps(SAID | {"keep": "a\0b"}), "'keep' is missing or not a text"),
        (json.dumps(SAID | {"keep": " "}), "'keep' is missing or not a text"),
        (json.dumps(SAID | {"look": "very " * 160 + "flat"}), "words, and 80 were asked for"),
    ):
        with pytest.raises(ValueError, match=wrong):
            read(thinking, text)


def test_the_question_holds_the_instruction_as_it_is():
    odd = 'put "{answer}" and {words} on {it}'
    asked = question(ThinkingConfig(words=33), odd)
    assert odd in asked and "at most 33 words" in asked
    assert asked.index('"change"') < asked.index('"look"') < asked.index('"keep"') < asked.index('"objects"')
    own = ThinkingConfig(question="Edit {instruction}! {answer}", answer={"edit": "what to do"})
    assert question(own, "ice").startswith("Edit ice! {") and '"edit": "<what to do>"' in question(own, "ice")
    with pytest.raises(UserError, match="model.thinking.question: it must hold {instruction}"):
        make_config({"model": {"thinking": {"question": "What now?"}}})


def test_the_sentence_is_the_prompt(folders, picture, tmp_path):
    """The edit is that of the sentence as an instruction without an MLLM. The server sees the picture, and is asked
    once for the same question about the same picture."""
    sizes = []

    def answer(asked, pictures):
        sizes.append([p.size for p in pictures])
        return json.dumps(SAID | {"objects": ["ice cube"]})

    with Thinker(answer) as server:
        pipe = pipeline(folders, endpoint(server, tmp_path))
        first, again = edit(pipe, picture), edit(pipe, picture, picture)
        assert len(server.asked) == 1 and sizes == [[(70, 50)]]
        assert "What if it got hot?" in server.asked[0]
        rows = [{"id": "a", "image": picture, "instruction": "What if it got hot?", "seed": 1}]
        (row,) = pipe.batch(rows)
        assert len(server.asked) == 1
    assert first.reasoning == [SENTENCE] and first.notes == [""] and first.objects == [["ice cube"]]
    assert (row.reasoning, row.note) == (SENTENCE, "")
    words = edit(pipeline(folders, None), picture, words=SENTENCE)
    plain = edit(pipeline(folders, None), picture)
    for image in (*again.images, words.images[0], row.image):
        assert (np.asarray(image) == np.asarray(first.images[0])).all()
    assert (np.asarray(plain.images[0]) != np.asarray(first.images[0])).any() and plain.reasoning is None


def test_objects_in_the_instruction_are_kept(folders, picture, tmp_path):
    with Thinker(lambda *_: json.dumps(SAID | {"objects": ["ice cube"]})) as server:
        out = edit(pipeline(folders, endpoint(server, tmp_path)), picture, words="Melt the red candle.")
    assert out.objects == [["red candle"]]


def test_an_unreadable_answer_is_asked_for_again(folders, picture, tmp_path):
    with Thinker(lambda asked, _: json.dumps(SAID) if "no JSON object" in asked else "Well...") as server:
        out = edit(pipeline(folders, endpoint(server, tmp_path)), picture)
        assert len(server.asked) == 2
    assert out.reasoning == [SENTENCE] and out.notes == [""]


@pytest.mark.parametrize("said", ["Well...", (400, "refused")], ids=["unreadable", "refused"])
def test_after_the_retries_the_instruction_is_used_and_the_result_says_so(folders, picture, tmp_path, said):
    with Thinker(lambda *_: said) as server:
        out = edit(pipeline(folders, endpoint(server, tmp_path), "model.thinking.retries=1"), picture)
        assert len(server.asked) == 2
    assert out.reasoning == ["What if it got hot?"]
    assert "no readable answer" in out.notes[0] and "the instruction itself was used" in out.notes[0]
    plain = edit(pipeline(folders, None), picture)
    assert (np.asarray(plain.images[0]) == np.asarray(out.images[0])).all()


def test_servers_do_not_share_answers(folders, picture, tmp_path, monkeypatch):
    """Two servers that call their models by one name, with the folder of answers that is used unless one is named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = []
    for change in ("Melt it", "Burn it"):
        with Thinker(lambda *_, change=change: json.dumps(SAID | {"change": change})) as server:
            mllm = endpoint(server, tmp_path, answers=None)
            said += [edit(pipeline(folders, mllm), picture).reasoning[0][:7] for _ in range(2)]
            assert len(server.asked) == 1
    assert said == ["Melt it", "Melt it", "Burn it", "Burn it"]


def test_an_endpoint_that_fails_every_call_ends_a_batch_and_an_evaluation(folders, picture, tmp_path, monkeypatch):
    """No row is recorded as failed, which a rerun would not edit again; the rerun edits the rows left."""
    monkeypatch.setattr(asking, "RETRIES", 0)
    left = [2]

    def answer(asked, pictures):
        left[0] -= 1
        return json.dumps(SAID) if left[0] >= 0 else (429, "insufficient_quota")

    rows = [{"id": str(i), "image": str(picture), "instruction": f"edit {i}"} for i in range(4)]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [Record(row["id"], Image.open(picture), None, [row["instruction"]]) for row in rows]
    with Thinker(answer) as server:
        raw = asdict(config(folders, endpoint(server, tmp_path)))
        (tmp_path / "think.yaml").write_text(yaml.safe_dump({key: raw[key] for key in ("model", "edit")}))
        command = ["batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out", "--config", tmp_path / "think.yaml"]

        def run():
            return CliRunner().invoke(main, [*map(str, command), "--batch-size", "1"])

        refused = run()
        assert refused.exit_code == 2 and "429" in refused.stderr.splitlines()[-1]
        results = (tmp_path / "out" / "results.jsonl").read_text()
        assert '"status": "error"' not in results
        edits = Edits(tmp_path / "edits", pipeline(folders, endpoint(server, tmp_path)))
        with pytest.raises(UserError, match="429"):
            edits.make(records)
        assert not edits.failed
        left[0] = 9
        assert run().exit_code == 0 and (tmp_path / "out" / "results.jsonl").read_text().count('"ok"') == 4


def test_a_local_model_thinks(folders, picture):
    """Random weights say nothing readable. Each row is what it would be alone, retries included."""
    mllm = {"name": "qwen3_vl", "pretrained": str(folders / "qwen"), "img_tokens": 0}
    pipe = pipeline(folders, mllm, "model.thinking.words=2", "model.thinking.retries=1")
    out = edit(pipe, picture, picture, words=["melt it", "melt it"])
    assert out.reasoning == ["melt it"] * 2 and all("no readable answer" in note for note in out.notes)
    assert not any(p.requires_grad for p in pipe.model.parameters())


def test_the_users_own_sentence(folders, picture, tmp_path):
    with Thinker(lambda *_: "never") as server:
        pipe = pipeline(folders, endpoint(server, tmp_path))
        out = edit(pipe, picture, reasoning=SENTENCE)
        with pytest.raises(UserError, match="reasoning is empty"):
            edit(pipe, picture, reasoning=" ")
        with pytest.raises(UserError, match="1 images, but 2 sentences"):
            edit(pipe, picture, reasoning=[SENTENCE] * 2)
        assert not server.asked
    assert out.reasoning == [SENTENCE]
    words = edit(pipeline(folders, None), picture, words=SENTENCE)
    assert (np.asarray(words.images[0]) == np.asarray(out.images[0])).all()
    with pytest.raises(UserError, match="this model reads no sentence, so yours would change nothing"):
        ReasonBrainPipeline.from_pretrained("tiny")(str(picture), "melt it", reasoning="The ice melts.")


def test_the_commands_say_it(folders, picture, tmp_path):
    """A configuration file of published weights needs no checkpoint. The sentence is in the metadata, the panel, the
    results of a batch, and after a failure to think the note is, too."""
    from reasonbrain.config.loading import dump_config

    def run(*words):
        done = CliRunner().invoke(main, [str(w) for w in words])
        assert done.exit_code == 0, (done.output, done.stderr, done.exception)
        return done

    heard = []
    with Thinker(lambda asked, _: json.dumps(SAID) if "hot" in asked else "Well...") as server:
        path = tmp_path / "mine.yaml"
        path.write_text(dump_config(config(folders, endpoint(server, tmp_path))))
        run(
            "edit",
            picture,
            "What if it got hot?",
            "--config",
            path,
            "-o",
            tmp_path / "a.png",
            "--panel",
            tmp_path / "p.png",
        )
        failed = run("edit", picture, "What if it froze?", "--config", path, "-o", tmp_path / "b.png")
        own = ("--reasoning", "It is frozen.")
        run("edit", picture, "What if it froze?", "--config", path, "-o", tmp_path / "c.png", *own)
        jobs = tmp_path / "jobs.jsonl"
        rows = [{"id": i, "image": str(picture), "instruction": f"What if it {i}?"} for i in ("got hot", "froze")]
        jobs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run("batch", jobs, "--config", path, "-o", tmp_path / "out")
        heard = list(server.asked)
        run("batch", jobs, "--config", path, "-o", tmp_path / "out")
        assert server.asked == heard
    texts = [Image.open(tmp_path / f"{name}.png").text for name in "abc"]
    assert [text["reasoning"] for text in texts] == [SENTENCE, "What if it froze?", "It is frozen."]
    assert "no readable answer" in texts[1]["note"] and "no readable answer" in failed.stderr
    lines = {r["id"]: r for r in map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())}
    assert lines["got hot"]["reasoning"] == SENTENCE and "note" not in lines["got hot"]
    assert lines["froze"]["reasoning"] == "What if it froze?" and "no readable answer" in lines["froze"]["note"]
    assert (np.asarray(Image.open(tmp_path / "a.png")) != np.asarray(Image.open(tmp_path / "b.png"))).any()


def test_what_an_endpoint_needs():
    def fails(words, **parameters):
        with pytest.raises(UserError, match=words):
            ReasonBrain.from_config(make_config({"model": {"mllm": {"name": "endpoint", **parameters}}}).model)

    fails("model.mllm.url: 'endpoint' needs it", model="thinker")
    fails("model.mllm.model: 'endpoint' needs it", url="http://localhost:8000/v1")
    fails("it must be http://HOST/v1", url="localhost", model="thinker")
    fails("it must not hold a user name or password", url="http://me:secret@localhost/v1", model="thinker")
