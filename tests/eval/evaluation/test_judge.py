"""Judged metrics against a real HTTP endpoint in OpenAI's format: questions, cached answers, scores, errors.

Most tests use a small server in this file with given answers; one uses `transformers serve` with a random LLaVA."""

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reasonbrain import configs
from reasonbrain.cli import main
from reasonbrain.data.record import Record
from reasonbrain.eval.evaluation import judged
from reasonbrain.eval.evaluation.judged import JUDGED, read_score, rise_accuracy, rise_score
from reasonbrain.modules.data.reasonmini import benchmark as mini
from reasonbrain.utils import endpoint as asking
from reasonbrain.utils.endpoint import Endpoint

RED, GREEN, BLUE = (Image.new("RGB", (12, 8), c) for c in ("red", "green", "blue"))


class Server(ThreadingHTTPServer):
    """``say(question, number of the request)`` returns the text of the answer, an HTTP error status, or a body."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.say = lambda question, n: "It is done.\nscore: 1"
        self.requests, self.lock = [], threading.Lock()

    @property
    def questions(self):
        return [body["messages"][0]["content"][0]["text"] for body in self.requests]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body | {"path": self.path, "key": self.headers["Authorization"]})
            said = self.server.say(body["messages"][0]["content"][0]["text"], len(self.server.requests))
        if isinstance(said, dict):
            found = said
        elif isinstance(said, int):
            found = {"error": {"message": f"state\n{said}"}}
        else:
            found = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            found["choices"] = [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
            ]
        data = json.dumps(found).encode()
        self.send_response(said if isinstance(said, int) else 200)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(data),
            "Retry-After-Ms": 1,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    """Edits of four records of ReasonMini, equal to the targets."""
    folder, records = tmp_path_factory.mktemp("edits"), mini.MiniSplits("test", 4)
    for i in range(4):
        records[i].target.save(folder / f"{records[i].id}.png")
    return folder


def run(url, edits, output, *more):
    mini4 = ("--benchmark", "mini", "--data", "test", "--limit", 4, "--edits", edits)
    args = ("eval", *mini4, "-o", output, "--judge", url, "--judge-model", "m", *more)
    return CliRunner().invoke(main, [str(a) for a in args])


def report(result, output):
    assert result.exit_code == 0, result.stderr or result.exception
    return json.loads((output / "report.json").read_text())


def refused(result):
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


FIVE = judged.FIVE


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("The dog is gone.\nscore: 4", 4.0),
        ("**Score: 4**", 4.0),
        ("Final score: 4.", 4.0),
        ("Fine.\n\n> score = 4/5\n", 4.0),
        ('{"score": 4}', 4.0),
        ("score: 4\nand again\nscore: 4/5", 4.0),
        ("score: 2 would be too low.\nscore: 4", 4.0),
        ("score: 2\nOn reflection:\nscore: 4", None),
        ("score: 0", None),
        ("score: 6", None),
        ("score: -4", None),
        ("score: 3.5", None),
        ("score: 4/10", None),
        ("score: N", None),
        ("A 4, I would say.", None),
        ("I give it a score of 4", None),
        ("underscore: 4", None),
        ("", None),
    ],
)
def test_reading_a_score(answer, score):
    assert read_score(answer, FIVE) == score


@pytest.mark.parametrize(
    "answer",
    [
        "\n" * 300_000 + "x",
        "*\n" * 200_000,
        "score:\n" * 100_000,
        "*" * 300_000 + "x",
        "score: " + "1./" * 100_000 + "x",
    ],
)
def test_a_long_answer_is_read_in_linear_time(answer):
    start = time.monotonic()
    assert read_score(answer, FIVE) is None and read_score(f"{answer}\nscore: 4", FIVE) == 4
    assert read_score("score:\n4", FIVE) == 4
    assert time.monotonic() - start < 2


def test_another_scale():
    assert read_score("score: 10", judged.TENTHS) == 1.0 and read_score("score: 3/10", judged.TENTHS) == 0.3
    assert read_score("score: 0", judged.RIGHT_OR_WRONG) == 1.0 and read_score("score: 1", judged.RIGHT_OR_WRONG) == 5.0


def record(category, target=None, **notes):
    return Record("r", RED, target, ["do it"], category=category, notes=notes)


def rise(reasoning, consistency, plausibility):
    return dict(zip(judged.RISE, (reasoning, consistency, plausibility), strict=True))


@pytest.mark.parametrize(
    ("of", "scores", "score", "accuracy"),
    [
        (record("temporal_reasoning"), rise(4, 3, 5), 0.5 * 4 + 0.3 * 3 + 0.2 * 5, 0),
        (record("causal_reasoning"), rise(5, 5, 5), 5, 1),
        (record("spatial_reasoning"), rise(5, 5, 4), 4.8, 0),
        (record("spatial_reasoning"), rise(1, 5, 5), (0.5 + 1.5 + 1) / 2, 0),  # not reasoned: half
        (record("spatial_reasoning"), rise(2, 5, 5), 0.5 * 2 + 1.5 + 1, 0),
        (record("causal_reasoning"), rise(1, 1, 3), 1, 0),  # 0.7, but not below 1
        (record("causal_reasoning", consistency_free="True"), rise(3, None, 5), 0.8 * 3 + 0.2 * 5, 0),
        (record("causal_reasoning", consistency_free="True"), rise(5, None, 5), 5, 1),
        (record("logical_reasoning"), rise(5, 1, None), 0.7 * 5 + 0.3, 0),
        (record("logical_reasoning"), rise(5, 5, None), 5, 1),
        (record("logical_reasoning"), rise(1, 5, None), (0.7 + 1.5) / 2, 0),
        (record("causal_reasoning"), rise(5, None, 5), None, None),  # not known is not 0
        (record("logical_reasoning"), rise(None, 5, None), None, None),
    ],
)
def test_risebenchs_score_and_accuracy(of, scores, score, accuracy):
    assert rise_score(of, scores) == (None if score is None else pytest.approx(score))
    assert rise_accuracy(of, scores) == accuracy


def asked(name, of):
    """The pictures shown, the expected result and the valid answers of a question."""
    question = JUDGED[name].ask(of)
    return question and (question.shown, question.facts.get("Expected result"), list(question.values))


def test_questions_of_risebench():
    five = [1, 2, 3, 4, 5]
    plain = record("causal_reasoning", reference="a bitten apple")
    assert asked("RISE reasoning", plain) == (("edit",), "a bitten apple", five)
    assert asked("RISE consistency", plain) == (("source", "edit"), None, five)
    assert asked("RISE plausibility", plain) == (("edit",), None, five)
    both = record("temporal_reasoning", reference="an old man", reasoning_img="True", consistency_free="True")
    assert asked("RISE reasoning", both) == (("source", "edit"), "an old man", five)
    assert asked("RISE consistency", both) is None
    pictured = record("spatial_reasoning", GREEN, reference_img="x.png")
    assert asked("RISE reasoning", pictured) == (("target", "edit"), None, five)
    assert asked("RISE consistency", pictured) == (("target", "edit"), None, five)
    logical = record("logical_reasoning", reference_txt="42")
    assert asked("RISE reasoning", logical) == (("edit",), "42", [0, 1])
    assert asked("RISE consistency", logical) == (("source", "edit"), None, [0, 1])
    assert asked("RISE plausibility", logical) is None
    assert asked("RISE reasoning", record("causal_reasoning")) is None  # nothing to hold it against


def test_questions_of_kris_bench():
    known = record("chemistry", explain_en="it turns green")
    assert asked("KRIS knowledge", known)[:2] == (("source", "edit"), "it turns green")
    assert asked("KRIS instruction", known)[:2] == (("source", "edit"), None)
    assert asked("KRIS quality", known)[0] == ("edit",)
    turned = record("viewpoint_change", GREEN, explain_en="from above")
    assert asked("KRIS instruction", turned)[0] == ("source", "edit", "target")
    assert asked("KRIS knowledge", turned) is None
    assert asked("KRIS instruction", record("anomaly_correction", explain_en="five legs"))[1] == "five legs"


def test_the_request(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 1000, 3), dtype=np.uint8))
    assert Endpoint(endpoint.url, "m", tmp_path).ask("Why?", {"one": RED, "two": wide}) == "It is done.\nscore: 1"
    [body] = endpoint.requests
    assert (body["path"], body["key"], body["model"]) == ("/v1/chat/completions", "Bearer secret", "m")
    assert body["temperature"] == 0
    [message] = body["messages"]
    assert [part.get("text") for part in message["content"]] == ["Why?", "one", None, "two", None]
    uris = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    sent = [Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) for uri in uris]
    assert sent[0].tobytes() == RED.tobytes() and sent[1].size == (768, 307) and wide.size == (1000, 400)


def test_a_question_is_asked_once(endpoint, tmp_path):
    """Another model, text, picture, caption or order of pictures is another question."""
    ask = Endpoint(endpoint.url, "m", tmp_path).ask
    for _ in range(2):
        ask("Why?", {"a": RED, "b": BLUE})
    assert len(endpoint.requests) == 1
    Endpoint(endpoint.url, "m", tmp_path).ask("Why?", {"a": RED.copy(), "b": BLUE})
    assert len(endpoint.requests) == 1
    Endpoint(endpoint.url, "n", tmp_path).ask("Why?", {"a": RED, "b": BLUE})
    ask("How?", {"a": RED, "b": BLUE})
    ask("Why?", {"a": RED, "b": GREEN})
    ask("Why?", {"a": RED, "c": BLUE})
    ask("Why?", {"b": BLUE, "a": RED})
    for size in ((4, 2), (2, 4)):  # of equal bytes
        ask("Why?", {"a": Image.new("RGB", size, "red")})
    assert len(endpoint.requests) == len(list(tmp_path.glob("*.json"))) == 8


def test_a_temporary_error_is_retried(endpoint, tmp_path):
    endpoint.say = lambda question, n: {1: 500, 2: 429, 3: 503}.get(n, "score: 5")
    assert Endpoint(endpoint.url, "m", tmp_path).ask("Why?", {"a": RED}) == "score: 5"
    assert len(endpoint.requests) == 4


def test_a_report_with_a_judge(endpoint, edits, tmp_path):
    """Answers become scores. Unparsable answers and failed calls are counted, reported, and not scored."""
    records = mini.MiniSplits("test", 4)
    says = dict(
        zip((records[i].instructions[0] for i in range(4)), (["1", "10"], ["0", "7"], ["2", "x"], 400), strict=True)
    )

    def say(question, n):
        said = says[re.search("Instruction: (.*)", question)[1]]
        return said if isinstance(said, int) else f"score: {said['to 10' in question]}"

    endpoint.say = say
    found = report(run(endpoint.url, edits, tmp_path), tmp_path)
    of = {row["id"]: row["scores"] for row in found["records"]}
    ids = [records[i].id for i in range(4)]
    assert [of[i]["edits"]["Ins-Align"] for i in ids] == [1.0, 0.0, None, None]
    assert [of[i]["edits"]["MLLM Score"] for i in ids] == [1.0, 0.7, None, None]
    assert {of[i]["do nothing"]["Ins-Align"] for i in ids} == {None} and of[ids[0]]["edits"]["outcome"] == 1
    table = found["tables"][0]["scores"]["Ins-Align"]["systems"]["edits"]
    assert (table["n"], table["mean"]) == (2, 0.5)
    assert found["networks"] == {"judge": "m"} and list(found["metrics"])[:2] == ["Ins-Align", "MLLM Score"]
    lost = {"judged": 2, "unparsable": [ids[2]], "failed": [ids[3]]}
    assert found["judged"] == {"Ins-Align": lost, "MLLM Score": lost}
    for kind in ("md", "html"):
        said = (tmp_path / f"report.{kind}").read_text()
        assert "Ins-Align: 2 judged, 1 unparsable answers and 1 failed calls not scored" in said

    asked = len(endpoint.requests)
    endpoint.say = lambda question, n: "score: 1"
    again = report(run(endpoint.url, edits, tmp_path), tmp_path)
    assert len(endpoint.requests) == asked + 2 and again["judged"]["Ins-Align"]["failed"] == []  # only failed calls
    assert "is of other networks" in refused(
        run(endpoint.url, edits, tmp_path, "--metric", "L1", "--against", tmp_path)
    )


def test_an_interrupted_run_resumes(endpoint, edits, tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "THREADS", 1)
    endpoint.say = lambda question, n: "score: 1" if n <= 3 else 401
    said = refused(run(endpoint.url, edits, tmp_path))
    assert "401" in said and "run the same command again to resume" in said
    asked = len(endpoint.requests)
    assert asked < 8 and len(list((tmp_path / "answers").iterdir())) == 3 and not (tmp_path / "report.json").exists()
    endpoint.say = lambda question, n: "score: 1"
    found = report(run(endpoint.url, edits, tmp_path), tmp_path)
    assert len(endpoint.requests) == asked + 2 * 4 - 3
    assert found["judged"]["Ins-Align"] == {"judged": 4, "unparsable": [], "failed": []}


def test_risebench_from_its_files(endpoint, tmp_path):
    """With pictures of any size. The score is computed from its parts even if these are not requested."""
    data, edits = tmp_path / "data", tmp_path / "edits"
    edits.mkdir()
    (data / "logical_reasoning_images").mkdir(parents=True)
    RED.save(data / "logical_reasoning_images" / "1.png")
    GREEN.resize((20, 30)).save(data / "logical_reasoning_images" / "1_ref.png")
    row = {"index": "l_1", "category": "logical_reasoning", "instruction": "solve", "subtask": "Puzzle Solving"}
    row |= {"image": "logical_reasoning_images/1.png", "reference_img": "logical_reasoning_images/1_ref.png"}
    (data / "data_total.json").write_text(json.dumps([row]))
    BLUE.save(edits / "l_1.png")
    endpoint.say = lambda question, n: f"score: {int('expected' in question)}"
    args = ["eval", "--benchmark", "risebench", "--data", data, "--edits", edits, "-o", tmp_path / "report"]
    args += ["--judge", endpoint.url, "--judge-model", "m", "--metric", "rise score", "--metric", "L1 to source"]
    found = report(CliRunner().invoke(main, [str(a) for a in args]), tmp_path / "report")
    scores = found["records"][0]["scores"]["edits"]
    assert scores["RISE score"] == pytest.approx(0.7 * 5 + 0.3 * 1) and set(scores) == {"RISE score", "L1 to source"}
    assert len(endpoint.requests) == 2
    assert set(found["judged"]) == set(judged.RISE) and found["judged"]["RISE plausibility"]["judged"] == 0


def test_mistakes_are_one_line(endpoint, edits, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "RETRIES", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert f"endpoint '{nowhere}', model 'm': [Errno 111] Connection refused" in refused(run(nowhere, edits, tmp_path))
    for state in (401, 403, 404, 429):
        endpoint.say = lambda question, n, state=state: state
        assert f"model 'm': {state} " in refused(run(endpoint.url, edits, tmp_path))
    for state in (400, 500):
        endpoint.say = lambda question, n, state=state: state
        assert f"all 8 calls to the judge failed; the last: endpoint '{endpoint.url}', model 'm': {state} " in refused(
            run(endpoint.url, edits, tmp_path)
        )
    endpoint.say = lambda question, n: {"error": {"message": "no such route"}}  # with status 200, as some servers do
    assert "model 'm': the answer is not in OpenAI's format" in refused(run(endpoint.url, edits, tmp_path))
    assert not list((tmp_path / "answers").iterdir())
    assert "must be given together, not 'm' alone" in refused(run("", edits, tmp_path))
    alone = ("eval", "--benchmark", "mini", "--edits", str(edits), "-o", str(tmp_path), "--metric", "ins-align")
    assert "metric 'ins-align' needs a judge" in refused(CliRunner().invoke(main, alone))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny LLaVA of random weights, served by transformers: its folder, which is its name, and the URL."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("llava")
    words = AutoTokenizer.from_pretrained(Path(configs.__file__).with_name("tiny") / "parts" / "mllm")
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = "{% for m in messages %}{% for c in m.content %}{{ c.text or '<image>' }}{% endfor %}{% endfor %}"
    torch.manual_seed(0)
    sees = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=32
    )
    sees.patch_size = 16
    speaks = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    speaks.vocab_size = len(words)
    image = words.convert_tokens_to_ids("<image>")
    shape = LlavaConfig(vision_config=sees, text_config=speaks, image_token_index=image)
    LlavaForConditionalGeneration(shape).save_pretrained(folder)
    looks = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    options = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(looks, words, chat_template=template, **options).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--port", port, "--device", "cpu"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(240):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health")
                break
            except OSError:
                time.sleep(0.5)
        yield str(folder), f"http://localhost:{port}/v1"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.long
def test_unparsable_answers_of_a_real_model_are_not_scored(served, edits, tmp_path):
    name, url = served
    args = ("--limit", 1, "--judge-model", name)
    found = report(run(url, edits, tmp_path, *args, "--metric", "ins-align"), tmp_path)
    row = found["records"][0]
    assert found["judged"] == {"Ins-Align": {"judged": 0, "unparsable": [row["id"]], "failed": []}}
    assert row["scores"]["edits"]["Ins-Align"] is None
    [answer] = (tmp_path / "answers").iterdir()
    assert json.loads(answer.read_text())["answer"]
