"""Shared by the tests of ``data build``: an OpenAI-compatible endpoint of fixed answers, seeds, and the command."""

import base64
import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler
from io import BytesIO

import numpy as np
from click.testing import CliRunner
from PIL import Image

from reasonbrain.cli import main
from reasonbrain.utils.endpoint import _key

STAGES = ("target", "instruction", "objects", "sources", "measured", "judged")


def answer(words, pictures):
    """The answer of a good model. The judge's score is a function of the pictures."""
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


def decoded(uri):
    return Image.open(BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


class Answers(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint. ``asked``: the questions, by the names of their answers' files."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        content = asked["messages"][0]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        question, *shown = parts
        shown = {c["text"]: decoded(p["image_url"]["url"]) for c, p in zip(shown[::2], shown[1::2], strict=True)}
        self.server.asked.append(_key(asked["model"], question["text"], shown))
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
        except OSError:  # the client was killed
            self.close_connection = True

    def log_message(self, *_):
        pass


def write_seeds(folder, rows):
    """Writes seeds.jsonl, and a picture of 64 x 48 pixels for each row without one."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for row in rows:
        if "image" not in row:
            row["image"] = f"{row['id']}.jpg"
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / row["image"])
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "seeds.jsonl"


def url(server):
    return f"http://127.0.0.1:{server.server_port}/v1"


def run(arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result.output + result.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
