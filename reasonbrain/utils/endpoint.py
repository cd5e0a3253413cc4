"""A client for a language model behind an OpenAI-compatible endpoint. Answers are cached on disk, so that no request is
paid for twice.

    llm = Endpoint("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-72B-Instruct", Path("answers"))
    llm.ask("What changed?", {"Before:": before, "After:": after})

The key is read from OPENAI_API_KEY; a local server needs none. An answer is a file named by a hash of the model's name,
the question and the pictures. It is written before ``ask`` returns: after a kill, only questions in progress are asked
again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.gallery import data_uri

RETRIES = 5  # of the client: after 0.5 s, then twice as long each time, or as long as the server asks for
TIMEOUT = 180  # seconds for an answer
SIDE = 768  # largest side of a picture in pixels, as in RISEBench's gpt_eval.py
STOPS = (401, 403, 404, 429)  # HTTP status codes that every further request would get as well


class Refused(Exception):
    """The endpoint refuses this question (a content filter, too many tokens). Others may be answered."""


class Failed(UserError):
    """This call failed after all retries. Another one may succeed."""


class Endpoint:
    """``url``: including /v1. ``model``: the server's name of the model. ``answers``: the folder of answers.

    Thread-safe. It can be sent to another process before the first question. Raises UserError if the folder cannot be
    made."""

    def __init__(self, url: str, model: str, answers: Path) -> None:
        self.url, self.model, self.answers = url, model, answers
        try:
            answers.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"output '{answers}': {e.strerror}") from None

    @cached_property
    def client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise UserError("an endpoint needs the package openai: pip install 'reasonbrain[eval]'") from None
        key = os.environ.get("OPENAI_API_KEY") or "none"
        return OpenAI(base_url=self.url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT)

    def ask(self, question: str, pictures: Mapping[str, Image.Image] | None = None) -> str:
        """The answer, at temperature 0. ``pictures``: by caption; each is sent after its caption.

        Raises Refused, Failed, and UserError for what would fail every call: an unreachable endpoint, a wrong key or
        model, an exhausted quota; or if ``openai`` is not installed."""
        shown = {caption: _scaled(picture) for caption, picture in (pictures or {}).items()}
        path = self.answers / f"{_key(self.model, question, shown)}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))["answer"]
        content: Any = question
        if shown:
            content = [{"type": "text", "text": question}]
            for caption, picture in shown.items():
                part = {"type": "image_url", "image_url": {"url": data_uri(picture, "png")}}
                content += [{"type": "text", "text": caption}, part]
        answer = self._call([{"role": "user", "content": content}])
        with whole_file(path) as file:
            json.dump({"model": self.model, "question": question, "answer": answer}, file, indent=1)
        return answer

    def _call(self, messages: list[Any]) -> str:
        client = self.client
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        who = f"endpoint '{self.url}', model '{self.model}'"
        try:
            answered = client.chat.completions.create(model=self.model, messages=messages, temperature=0)
        except APIStatusError as e:
            said = f"{who}: {e.status_code} {' '.join(e.response.text.split())[:200]}"
            if e.status_code in STOPS:
                raise UserError(
                    f"{said}; answers so far are in '{self.answers}'; run the same command again to resume"
                ) from None
            raise (Failed(said) if e.status_code >= 500 else Refused(said)) from None
        except APIError as e:
            lost = isinstance(e, APIConnectionError) and not isinstance(e, APITimeoutError)
            raise (UserError if lost else Failed)(f"{who}: {e}") from None
        choices = getattr(answered, "choices", None)
        if not choices:  # a web page, or an error with status 200
            raise Failed(f"{who}: the answer is not in OpenAI's format")
        return choices[0].message.content or ""


def _scaled(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return picture


def _key(model: str, question: str, pictures: Mapping[str, Image.Image]) -> str:
    """A hash of the question and of the pixels. Encoded pictures would depend on Pillow's version."""
    sum_ = hashlib.blake2b(json.dumps([model, question]).encode(), digest_size=16)
    for caption, picture in pictures.items():
        sum_.update(json.dumps([caption, picture.size]).encode())
        sum_.update(picture.tobytes())
    return sum_.hexdigest()
