"""An OpenAI-compatible endpoint on the loopback address whose answers are a function of the question.

with Thinker(lambda question, pictures: "...") as server:
    server.url, server.asked
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

from PIL import Image

SAID = {"change": "Turn the ice cube into a puddle", "look": "It is flat and clear.", "keep": "The plate stays blue"}
SENTENCE = "Turn the ice cube into a puddle. It is flat and clear. The plate stays blue."


class Thinker(ThreadingHTTPServer):
    """Answers with ``answer(question, pictures)``; a tuple (status, text) refuses. asked: the questions so far."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, list[Image.Image]], str | tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = answer, []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Thinker
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][0]["content"]
        uris = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        pictures = [Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]
        question = parts[0]["text"]
        self.server.asked.append(question)
        said = self.server.answer(question, pictures)
        status, text = said if isinstance(said, tuple) else (200, said)
        out = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)
