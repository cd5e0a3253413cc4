"""Reason50K's construction: with an endpoint whose answers are known, killed at random moments, with a real server of a
tiny model, on Ray; and the review page. Pictures are drawn by a tiny random Stable Diffusion."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.data.build.journal import Journal
from reasonbrain.data.build.review import serve
from reasonbrain.data.build.split import write_splits
from reasonbrain.data.readers import open_reader

STAGES = ("target", "instruction", "objects", "sources", "measured", "judged")


def answer(words, pictures):
    """What a good model would say; the judge's score is a function of the pictures."""
    if "whole number" in words:
        number = pictures[0][-1]
        return "4 of 10" if "plant" in words else f"{7 + number % 4}" if number % 5 else "I cannot say."
    if "one word" in words:
        return "Temporal." if "month" in words else "I do not know"
    if "nothing at all" in words:
        return "<think>a candle? no</think>  "
    if "what is this" in words:
        return "Would it?"
    if "green plant" in words:
        return '<think>hm</think> "What would happen if the plant were watered for a month?"'
    return "What would happen if someone blew on the red candle?"


class Answers(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint. ``asked``: every question that came, by the name that its answer is kept under."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        asked = {name: asked[name] for name in ("model", "messages", "temperature")}
        self.server.asked.append(hashlib.sha256(json.dumps(asked).encode()).hexdigest())
        content = asked["messages"][0]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words = " ".join(part["text"] for part in parts if part["type"] == "text").replace("\n", " ")
        pictures = [hashlib.sha256(p["image_url"]["url"].encode()).digest() for p in parts if p["type"] == "image_url"]
        time.sleep(self.server.wait)
        if "forbidden" in words:
            return self.reply(400, {"error": {"message": "against the rules"}})
        message = {"role": "assistant", "content": answer(words, pictures)}
        said = {"id": "1", "object": "chat.completion", "created": 0, "model": "fixed"}
        said["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        self.reply(200, said)

    def reply(self, status, said):
        out = json.dumps(said).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)
        except OSError:  # who asked was killed
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.wait, server.daemon_threads = [], 0.0, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def pipeline(parts, tmp_path_factory):
    """A folder with a Stable Diffusion as text-to-image, 64 x 64 at its smallest, of random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(parts / "clip")
    words = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    tokenizer.model_max_length = words.max_position_embeddings
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("pipeline")
    StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(parts / "vae"),
        CLIPTextModel(words),
        tokenizer,
        unet,
        DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_seeds(folder, rows):
    """A picture 64 x 48 for each row that names none."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for row in rows:
        if "image" not in row:
            row["image"] = f"{row['id']}.jpg"
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / row["image"])
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "seeds.jsonl"


@pytest.fixture
def command(parts, pipeline, tmp_path):
    """``command(url, *more)``: the arguments of a build of ``tmp_path``/seeds into ``tmp_path``/built."""
    fixed = ["--pipeline", pipeline, "--clip", parts / "clip", "--lpips", "none", "--min-clip", "-1", "--steps", "2"]
    paths = ["data", "build", tmp_path / "seeds" / "seeds.jsonl", "-o", tmp_path / "built", *fixed]
    return lambda url, *more: [str(part) for part in (*paths, "--url", url, "--model", "fixed", *more)]


def url(server):
    return f"http://127.0.0.1:{server.server_port}/v1"


def run(arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result.output + result.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_content(endpoint, command, tmp_path):
    """Every field of a row, every reason to leave one out, then review and splits."""
    mask = Image.new("L", (64, 48))
    mask.paste(255, (0, 0, 32, 48))
    candles = [{"id": f"candle-{i}", "prompt": "smoke over a red candle", "category": "causal"} for i in range(4)]
    rows = [
        *candles,
        {"id": "plant", "prompt": "a green plant"},
        {"id": "masked", "prompt": "smoke over a red candle", "category": "physical", "mask": "mask.png"},
        {"id": "lost", "prompt": "x", "image": "lost.jpg"},
        {"id": "silent", "prompt": "nothing at all"},
        {"id": "vague", "prompt": "what is this", "category": "story"},
        {"id": "unsure", "prompt": "smoke"},
        {"id": "turned-down", "prompt": "forbidden"},
    ]
    seeds = write_seeds(tmp_path / "seeds", rows)
    mask.save(seeds.parent / "mask.png")
    built = tmp_path / "built"
    said = run(command(url(endpoint), "--candidates", "3"))
    reasons = {row["id"]: row["reason"] for row in lines(built / "dropped.jsonl") if "image" not in row}
    assert "lost.jpg' does not exist" in reasons["lost"]
    assert reasons["silent"] == "the instruction has 0 characters"
    assert reasons["vague"] == "the instruction names no object"
    assert "against the rules" in reasons["turned-down"]
    assert reasons["unsure"] == "no category in 'I do not know'"
    assert "wait for: reasonbrain data review" in said and not (built / "train.jsonl").read_text()

    judged = {row["id"]: row for row in lines(built / "judged.jsonl")}
    assert judged.keys() == {"candle-0", "candle-1", "candle-2", "candle-3", "plant", "masked"}
    plant = judged["plant"]
    assert plant["instruction"] == "What would happen if the plant were watered for a month?"
    assert (
        plant["category"] == "temporal" and plant["objects"] == ["plant"] and plant["finder"] in ("textblob", "spacy")
    )
    kept = {name for name, row in judged.items() if "dropped" not in row}
    assert "plant" not in kept and len(kept) > 1
    for row in judged.values():
        scores = [c.get("score", -1) for c in row["candidates"]]
        assert len(scores) == 3 and len({c["seed"] for c in row["candidates"]}) == 3
        for c in row["candidates"]:
            assert (built / c["image"]).exists() and -1 <= c["clip"] <= 1
            assert c["score"] < 7 if "below 7" in c.get("dropped", "") else "score" in c or "no score" in c["dropped"]
        if row["id"] in kept:
            best = next(c for c in row["candidates"] if c["image"] == row["source"])
            assert "dropped" not in best and best["score"] == max(scores) >= 7
            others = [c for c in row["candidates"] if c is not best]
            assert all("dropped" in c for c in others)
        else:
            assert reasons[row["id"]] == "no candidate is left" and max(scores) < 7
    listed = {row["image"] for row in lines(built / "dropped.jsonl") if "image" in row}
    every = {c["image"] for row in judged.values() for c in row["candidates"]}
    assert listed == every - {judged[name]["source"] for name in kept}

    # a mask keeps what is outside it (as the autoencoder gives it back), and something inside it is drawn anew
    before, after = (
        np.asarray(Image.open(built / "pictures/masked" / f"{n}.png")).astype(int) for n in ("target", "0")
    )
    change = np.abs(before - after).mean((0, 2))
    plain = np.asarray(Image.open(built / "pictures/candle-0/0.png")).astype(int)
    assert before.shape == after.shape == plain.shape == (48, 64, 3)
    assert change[40:].mean() < change[:24].mean()

    asked = len(endpoint.asked)
    server = serve(built, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rejected = sorted(kept)[0]
    for name in kept:
        assert post(server, {"id": name, "verdict": "accept"}) == 204
    assert post(server, {"id": rejected, "verdict": "reject"}) == 204
    server.shutdown()
    server.server_close()
    run(command(url(endpoint), "--candidates", "3", "--shares", "1", "0", "0"))
    assert len(endpoint.asked) == asked  # everything was there
    assert {"id": rejected, "reason": "rejected in review"} in lines(built / "dropped.jsonl")
    reader = open_reader("manifest", str(built))
    records = [reader[i] for i in range(len(reader))]
    assert {record.id for record in records} == kept - {rejected}
    assert all(r.source.size == r.target.size == (64, 48) and r.objects and r.captions for r in records)
    assert "was built with candidates=3" in run(command(url(endpoint)), code=2)


def post(server, said, kind="application/json", path="/verdict"):
    address = f"http://127.0.0.1:{server.server_port}{path}"
    request = urllib.request.Request(address, json.dumps(said).encode(), {"Content-Type": kind})
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as e:
        return e.code


def test_review_serves_its_rows_and_nothing_else(tmp_path):
    folder = tmp_path / "pictures" / "a"
    folder.mkdir(parents=True)
    for name in ("target", "0", "1"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    row = {
        "id": "a",
        "instruction": "<b>",
        "category": "story",
        "prompt": "p",
        "objects": [],
        "source": "pictures/a/0.png",
    }
    (tmp_path / "judged.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"id": "b", "dropped": "no"}) + "\n")
    server = serve(tmp_path, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def get(path):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}").read()
        except urllib.error.HTTPError as e:
            return e.code

    assert b"Accept" in get("/") and get("/pictures/a/0.png") == (folder / "0.png").read_bytes()
    assert [get(path) for path in ("/pictures/a/1.png", "/judged.jsonl", "/pictures/../judged.jsonl")] == [404] * 3
    assert [(r["id"], r["verdict"]) for r in json.loads(get("/rows"))] == [("a", None)]
    accept = {"id": "a", "verdict": "accept"}
    assert post(server, accept, kind="text/plain") == post(server, accept | {"id": "b"}) == 400
    assert post(server, accept | {"verdict": "maybe"}) == post(server, [1]) == 400
    assert post(server, accept) == 204
    assert [r["verdict"] for r in json.loads(get("/rows"))] == ["accept"]
    server.shutdown()
    server.server_close()
    assert [(row["id"], row["verdict"]) for row in lines(tmp_path / "review.jsonl")] == [("a", "accept")]


def test_splits_have_the_shares_of_every_category(tmp_path):
    sizes = {"physical": 200, "temporal": 100, "causal": 40, "story": 7}
    rows = [
        {"id": f"{kind}{i}", "category": kind, "source": "s", "instruction": "i", "prompt": "p", "objects": []}
        for kind, size in sizes.items()
        for i in range(size)
    ]
    assert write_splits(tmp_path, rows, (80, 10, 10)) == {"train": 278, "val": 34, "test": 35}
    found = {name: lines(tmp_path / f"{name}.jsonl") for name in ("train", "val", "test")}
    assert sorted(row["id"] for rows in found.values() for row in rows) == sorted(row["id"] for row in rows)
    assert Counter(row["category"] for row in found["test"]) == {
        "physical": 20,
        "temporal": 10,
        "causal": 4,
        "story": 1,
    }
    assert write_splits(tmp_path, rows[::-1], (80, 10, 10)) and lines(tmp_path / "val.jsonl") == found["val"]


def test_half_a_line_is_not_a_row(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    journal.add({"id": "1"})
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"id": "2", "text": "cut o')
    again = Journal(tmp_path / "a.jsonl")
    assert list(again.rows) == ["1"]
    again.add({"id": "3"})
    assert [row["id"] for row in lines(tmp_path / "a.jsonl")] == ["1", "3"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "../x", "image": "a", "prompt": "b"}', "no file name"),
        ('{"id": 1, "image": "a"}', "line 1"),
        ('{"id": 1, "image": "a", "prompt": 2}', "line 1: prompt is not text"),
        (
            '{"id": 1, "image": "a", "prompt": "b"}\n{"id": "1", "image": "a", "prompt": "b"}',
            "line 2: id '1' comes twice",
        ),
        ('{"id": 1, "image": "a", "prompt": "b", "category": "sad"}', "'sad' is not one of physical"),
        ("[]", "line 1"),
        ("", "hold no seed"),
    ],
)
def test_malformed_seeds(line, said, command, tmp_path):
    write_seeds(tmp_path / "seeds", []).write_text(line)
    assert said in run(command("http://127.0.0.1:9/v1"), code=2)
    assert not (tmp_path / "built").exists()


@pytest.mark.long
def test_killed_at_random_moments(endpoint, command, tmp_path):
    """SIGKILL, again and again: no answer that arrived is asked for again, and what comes out is what an undisturbed
    build makes."""
    seeds = [{"id": f"s{i}", "prompt": f"a red candle {i}", "category": "causal"} for i in range(8)]
    write_seeds(tmp_path / "seeds", seeds)
    endpoint.wait = 0.2
    arguments = [sys.executable, "-m", "reasonbrain.cli", *command(url(endpoint), "--no-review")]
    built, moments = tmp_path / "built", random.Random(0)
    kills = []

    def progress():
        return sum(f.stat().st_size for f in built.glob("*.jsonl")) + len(list(built.glob("pictures/*/*.png")))

    while True:
        before, process = progress(), subprocess.Popen(arguments, stdout=subprocess.PIPE)
        while process.poll() is None and (len(kills) == 8 or progress() == before):
            time.sleep(0.02)
        if process.poll() is None:
            time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills.append(({file.stem for file in built.glob("answers/*.json")}, len(endpoint.asked)))
    assert len(kills) >= 3
    for answered, asked in kills:
        assert not answered & set(endpoint.asked[asked:])
    assert len(endpoint.asked) - len(set(endpoint.asked)) <= 8 * len(kills)  # those on their way: one a thread
    assert set(endpoint.asked) == {file.stem for file in built.glob("answers/*.json")}

    endpoint.wait = 0.0
    os.rename(built, tmp_path / "killed")
    run(command(url(endpoint), "--no-review"))
    for name in STAGES:
        one, two = ({row["id"]: row for row in lines(f / f"{name}.jsonl")} for f in (built, tmp_path / "killed"))
        assert one == two and len(lines(tmp_path / "killed" / f"{name}.jsonl")) == 8
    pictures = {f.relative_to(built): f.read_bytes() for f in built.glob("pictures/*/*.png")}
    assert pictures == {name: (tmp_path / "killed" / name).read_bytes() for name in pictures}


@pytest.mark.long
def test_on_ray(endpoint, command, tmp_path):
    """Ray's workers make what threads make, and a user's mistake in one of them is one line."""
    pytest.importorskip("ray")
    write_seeds(tmp_path / "seeds", [{"id": f"s{i}", "prompt": "a red candle", "category": "causal"} for i in range(3)])
    run(command(url(endpoint), "--no-review", "--candidates", "2"))
    os.rename(tmp_path / "built", tmp_path / "local")
    said = run(command("http://127.0.0.1:9/v1", "--engine", "ray", "--candidates", "2"), code=2)
    assert said.rstrip().splitlines()[-1].startswith("error: endpoint 'http://127.0.0.1:9/v1'") and len(said) < 2000
    run(command(url(endpoint), "--engine", "ray", "--no-review", "--candidates", "2"))
    for name in STAGES:
        one, two = ({r["id"]: r for r in lines(tmp_path / f / f"{name}.jsonl")} for f in ("built", "local"))
        assert one == two and len(one) == 3
    assert (tmp_path / "built" / "train.jsonl").read_text() == (tmp_path / "local" / "train.jsonl").read_text()


@pytest.fixture(scope="module")
def served(parts, tmp_path_factory):
    """``transformers serve`` with a tiny random LLaVA that can say nothing but a few things and numbers."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        GenerationConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    pytest.importorskip("fastapi")
    tokenizer = AutoTokenizer.from_pretrained(parts / "mllm")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    chat = (
        "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **layers},
        vision_config={"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **layers},
        image_token_index=image,
    )
    model = LlavaForConditionalGeneration(config)
    for p in model.parameters():  # livelier than the usual start
        p.data.mul_(8.0 if p.ndim > 1 else 1.0)
    words = {i for word in (" candle", " ice", " 7", " 8", " 9", " 3") for i in tokenizer(word).input_ids}
    model.generation_config = GenerationConfig(
        suppress_tokens=[i for i in range(len(tokenizer)) if i not in words | {tokenizer.eos_token_id}],
        exponential_decay_length_penalty=(6, 4.0),  # the server gives it 1024 tokens
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    looks = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        looks,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=chat,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [f"{os.path.dirname(sys.executable)}/transformers", "serve", str(folder), "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health").read()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.3)
        yield f"{address}/v1", str(folder)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.long
def test_flow_with_a_real_server(served, command, tmp_path):
    """Its words make no sense; every stage runs on them, every reason is kept, and the splits hold what is left."""
    address, model = served
    kinds = ("physical", "temporal", "causal", "story")
    seeds = [{"id": f"{kind}{i}", "prompt": f"a candle {i}", "category": kind} for kind in kinds for i in range(3)]
    write_seeds(tmp_path / "seeds", [*seeds, {"id": "open", "prompt": "ice"}])
    arguments = [*command(address, "--candidates", "2", "--no-review", "--shares", "2", "1", "0"), "--model", model]
    said = run(arguments)
    built = tmp_path / "built"
    for name in STAGES:
        assert lines(built / f"{name}.jsonl")
    reasons = {row["id"]: row["reason"] for row in lines(built / "dropped.jsonl") if "image" not in row}
    assert reasons["open"].startswith("no category in '")
    judged = lines(built / "judged.jsonl")
    assert {c["score"] for row in judged for c in row["candidates"] if "score" in c} <= {7, 8, 9, 3}
    kept = {row["id"] for row in judged if "dropped" not in row}
    assert kept and kept | reasons.keys() == {row["id"] for row in [*seeds, {"id": "open"}]}
    splits = {name: {row["id"] for row in lines(built / f"{name}.jsonl")} for name in ("train", "val", "test")}
    assert splits["train"] | splits["val"] == kept and not splits["train"] & splits["val"] and not splits["test"]
    before = {file: file.stat().st_mtime_ns for file in built.glob("answers/*")}
    assert run(arguments).splitlines()[-3:] == said.splitlines()[-3:]
    assert before == {file: file.stat().st_mtime_ns for file in built.glob("answers/*")}
