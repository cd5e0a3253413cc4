"""``data build`` killed at random moments, on Ray, and with a real server for a tiny model."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from building import STAGES, lines, run, url, write_seeds

pytestmark = pytest.mark.long


def test_killed_at_random_moments(endpoint, command, tmp_path):
    """After repeated SIGKILLs no answered question is asked again, and the result equals that of an uninterrupted
    build."""
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
    assert len(endpoint.asked) - len(set(endpoint.asked)) <= 8 * len(kills)  # questions in flight: one per thread
    assert set(endpoint.asked) == {file.stem for file in built.glob("answers/*.json")}

    endpoint.wait = 0.0
    os.rename(built, tmp_path / "killed")
    run(command(url(endpoint), "--no-review"))
    for name in STAGES:
        one, two = ({row["id"]: row for row in lines(f / f"{name}.jsonl")} for f in (built, tmp_path / "killed"))
        assert one == two and len(lines(tmp_path / "killed" / f"{name}.jsonl")) == 8
    pictures = {f.relative_to(built): f.read_bytes() for f in built.glob("pictures/*/*.png")}
    assert pictures == {name: (tmp_path / "killed" / name).read_bytes() for name in pictures}


def test_on_ray(endpoint, command, tmp_path, monkeypatch):
    """Ray workers give the same results as threads, and a UserError in one of them is one line."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # otherwise workers starve on a busy machine
    write_seeds(tmp_path / "seeds", [{"id": f"s{i}", "prompt": "a red candle", "category": "causal"} for i in range(2)])
    run(command(url(endpoint), "--no-review", "--candidates", "2"))
    os.rename(tmp_path / "built", tmp_path / "local")
    said = run(command("http://127.0.0.1:9/v1", "--executor", "ray", "--candidates", "2"), code=2)
    assert said.rstrip().splitlines()[-1].startswith("error: endpoint 'http://127.0.0.1:9/v1'")
    run(command(url(endpoint), "--executor", "ray", "--no-review", "--candidates", "2"))
    for name in STAGES:
        one, two = ({r["id"]: r for r in lines(tmp_path / f / f"{name}.jsonl")} for f in ("built", "local"))
        assert one == two and len(one) == 2
    assert (tmp_path / "built" / "train.jsonl").read_text() == (tmp_path / "local" / "train.jsonl").read_text()


@pytest.fixture(scope="module")
def served(parts, tmp_path_factory):
    """``transformers serve`` with a tiny random LLaVA that can generate only a few objects and numbers."""
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
    for p in model.parameters():  # larger weights than usual, so that the output depends on the input
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


def test_flow_with_a_real_server(served, command, tmp_path):
    """The generated texts make no sense, but every stage processes them, reasons are kept, and the rest is split."""
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
    assert [line for line in run(arguments).splitlines() if line.endswith("records")] == [
        line for line in said.splitlines() if line.endswith("records")
    ]
    assert before == {file: file.stat().st_mtime_ns for file in built.glob("answers/*")}
