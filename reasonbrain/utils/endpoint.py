"""A client for a language model behind an OpenAI-compatible endpoint. Answers are cached on disk, so that no question
is paid for twice.

    llm = Endpoint("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-72B-Instruct", Path("answers"))
    llm.ask("What changed?", {"Before:": before, "After:": after})

The key is read from OPENAI_API_KEY; a local server needs none. An answer is a file named by a hash of the model's name,
the question and the pictures; an empty one is not kept. The file is written before ``ask`` returns, so after a kill
only questions in flight are asked again.

The server is not trusted: an answer has at most ``LARGEST`` bytes, a question takes at most ``DEADLINE`` seconds with
all retries, redirects are not followed, and keys and passwords that the server echoes are removed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener

from PIL import Image

from reasonbrain.errors import Unavailable, UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.gallery import data_uri
from reasonbrain.utils.reading import read_json
from reasonbrain.utils.redact import redacted
from reasonbrain.utils.threads import within

RETRIES = 5  # after 0.5 s, then after twice as long each time, or after as long as the server asks for
TIMEOUT = 180  # seconds for one request
DEADLINE = 600  # seconds for a question, with all retries
LARGEST = 4 << 20  # bytes of an answer
SIDE = 768  # largest side of a picture in pixels, as in RISEBench's gpt_eval.py
STOPS = (401, 403, 404, 429)  # HTTP status codes that every later request would get as well; redirects count, too
AGAIN = (408, 409, 429)  # status codes, besides those from 500 on, after which a request is sent again


class Refused(Exception):
    """The endpoint refuses this question (content filter, too many tokens). It may answer others."""


class Failed(UserError):
    """This call failed after all retries. A later one may succeed."""


class Endpoint:
    """A model at an endpoint. Thread-safe and picklable.

    ``url``: including /v1; may contain a user name and a password. ``model``: the server's name of the model.
    ``answers``: the folder of answers, created at the first question. Raises UserError if ``url`` is not an HTTP
    URL."""

    def __init__(self, url: str, model: str, answers: Path) -> None:
        self.model, self.answers = model, answers
        self.who = f"endpoint '{redacted(url)}', model '{model}'"
        self.secrets: list[str] = []  # from the URL
        try:
            parts = urlsplit(url)
            plain = re.fullmatch(r"[!-~]+", url)
            if not plain or parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError("it must be http://HOST/v1 or https://HOST/v1")
        except ValueError as e:
            raise UserError(f"{self.who}: {e}") from None
        if parts.username is not None:
            password = unquote(parts.password or "")
            basic = base64.b64encode(f"{unquote(parts.username)}:{password}".encode()).decode()
            self.secrets = [password, parts.password or "", basic]
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/"), fragment="")
        self.url = urlunsplit(address._replace(path=f"{address.path}/chat/completions"))

    def ask(self, question: str, pictures: Mapping[str, Image.Image] | None = None) -> str:
        """The model's answer, at temperature 0. ``pictures``: by caption; each is sent after its caption.

        Raises Refused, Failed, and Unavailable for what would fail every call: an unreachable endpoint, a wrong key or
        model, an exhausted quota, a redirect. Raises UserError for a folder of answers that cannot be written, and if
        the cached answer is damaged."""
        shown = {caption: _scale(picture) for caption, picture in (pictures or {}).items()}
        path = self.answers / f"{_key(self.model, question, shown)}.json"
        if path.exists():
            known = read_json(path, "answer")
            if not isinstance(known, dict) or not isinstance(known.get("answer"), str):
                raise UserError(f"answer: '{path}' is damaged; delete it to ask again")
            if known["answer"]:
                return known["answer"]
        try:
            self.answers.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"output '{self.answers}': {e.strerror}") from None
        content: Any = question
        if shown:
            content = [{"type": "text", "text": question}]
            for caption, picture in shown.items():
                part = {"type": "image_url", "image_url": {"url": data_uri(picture, "png")}}
                content += [{"type": "text", "text": caption}, part]
        answer = self._call([{"role": "user", "content": content}])
        if answer:  # an empty one says what is wrong with the server: too few tokens, another chat template
            with whole_file(path) as file:
                json.dump({"model": self.model, "question": question, "answer": answer}, file, indent=1)
        return answer

    def _call(self, messages: list[Any]) -> str:
        until = time.monotonic() + DEADLINE
        data = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        request = Request(self.url, data, self._headers())
        wait = 0.5
        for attempt in range(RETRIES + 1):
            pause = wait
            failure: Exception = Failed(f"{self.who}: no answer within {min(TIMEOUT, DEADLINE)} s")
            try:
                status, pause, said = within(until - time.monotonic(), partial(_send, request, until, wait))
                if status == 200:
                    return self._text(said)
                failure = self._failure(status, said)
                if status not in AGAIN and status < 500:
                    raise failure
            except TimeoutError:
                pass
            except URLError as e:
                if not isinstance(e.reason, TimeoutError):
                    failure = Unavailable(f"{self.who}: {self._clean(str(e.reason))}")
            except (OSError, HTTPException) as e:
                failure = Failed(f"{self.who}: {self._clean(str(e)) or type(e).__name__}")
            if attempt == RETRIES or time.monotonic() + pause >= until:
                raise failure
            time.sleep(pause)
            wait *= 2
        raise AssertionError("not reached")

    def _headers(self) -> dict[str, str]:
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        if not key.isascii() or not key.isprintable():
            raise UserError("OPENAI_API_KEY contains characters that are not valid in a key")
        by = f"Basic {self.secrets[-1]}" if self.secrets else f"Bearer {key}"
        return {"Content-Type": "application/json", "Authorization": by, "User-Agent": "reasonbrain"}

    def _clean(self, text: str) -> str:
        """A text from the server as one line without secrets."""
        return redacted(" ".join(text.split()), *self.secrets)

    def _failure(self, status: int, body: bytes) -> Exception:
        said = f"{self.who}: {status} {self._clean(body.decode(errors='replace'))[:200]}"
        if status in STOPS or status < 400:
            return Unavailable(f"{said}; answers so far are in '{self.answers}'; run the same command again to resume")
        return Failed(said) if status >= 500 else Refused(said)

    def _text(self, body: bytes) -> str:
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, LookupError, TypeError):  # a web page, or an error with status 200
            content = 0
        if not isinstance(content, str | None):
            raise Failed(f"{self.who}: the answer is not in OpenAI's format")
        return redacted((content or "").encode(errors="replace").decode(), *self.secrets)  # JSON may hold surrogates


class _AnyStatus(HTTPErrorProcessor):
    """Returns responses of any status. Redirects are not followed, because they could lead to another host."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def _send(request: Request, until: float, wait: float) -> tuple[int, float, bytes]:
    """Sends a request. Returns the status, the seconds to wait before the next attempt (``wait`` unless the server
    states another time), and the body.

    Raises TimeoutError after ``until``, and Failed for a body of more than ``LARGEST`` bytes."""
    body = bytearray()
    with build_opener(_AnyStatus).open(request, timeout=TIMEOUT) as response:
        while part := response.read1(1 << 16):
            body += part
            if len(body) > LARGEST:
                raise Failed(f"endpoint '{request.host}': the answer has more than {LARGEST} bytes")
            if time.monotonic() > until:  # the caller no longer waits
                raise TimeoutError
        for name, unit in (("Retry-After-Ms", 1000), ("Retry-After", 1)):
            if (said := response.headers.get(name, "")).isdecimal() and len(said) < 9:
                wait = int(said) / unit
                break
        return response.status, wait, bytes(body)


def _scale(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return picture


def _key(model: str, question: str, pictures: Mapping[str, Image.Image]) -> str:
    """A hash of the question and of the pixels, because encoded pictures depend on Pillow's version."""
    digest = hashlib.blake2b(json.dumps([model, question]).encode(), digest_size=16)
    for caption, picture in pictures.items():
        digest.update(json.dumps([caption, picture.size]).encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()
