"""A judge: a multimodal model behind any OpenAI-compatible endpoint, and what is read from its answers.

    judge = Judge("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-72B-Instruct", Path("REPORT/answers"))
    score = read_score(judge.ask("...", {"The edited picture:": edit}), {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0})

The key is taken from the environment's OPENAI_API_KEY; a local server needs none.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.files import whole_file

RETRIES = 5  # by the client: half a second apart, then twice as long each time, or as long as the server says
TIMEOUT = 180  # seconds for an answer
SIDE = 768  # pixels that a picture's longer side may have, as in RISEBench's gpt_eval.py
STOPS = (401, 403, 404, 429)  # HTTP states that every further call would meet too
LINE = re.compile(r'^[\s*_`>#"{]*(?:final )?score[\s*_`"]*[:=][\s*_`"]*(-?[\d./]*\d)[\s*_`".,}]*$', re.I | re.M)


def read_score(answer: str, values: Mapping[int, float]) -> float | None:
    """The value of the whole number on the line "score: N", also written N/HIGHEST. None where there is no such line,
    where several differ, or where ``values`` has no such number: a judge is never guessed at."""
    spelled = {text: value for n, value in values.items() for text in (str(n), f"{n}/{max(values)}")}
    found = {spelled.get(text) for text in LINE.findall(answer)}
    return found.pop() if len(found) == 1 else None


class Judge:
    """Asks ``model`` at ``url``, at temperature 0. Every answer is kept in ``folder``, under a hash of the model's
    name, the question and the pictures, and is not asked for again. ``failure``: what the last failed call said.

    Raises UserError where the client or the folder cannot be had. May be asked from several threads."""

    def __init__(self, url: str, model: str, folder: Path) -> None:
        try:
            from openai import OpenAI
        except ImportError:
            raise UserError("--judge needs the package openai: pip install 'reasonbrain[eval]'") from None
        self.url, self.model, self.folder, self.failure = url, model, folder, ""
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self.client = OpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"output '{folder}': {e.strerror}") from None

    def ask(self, question: str, pictures: Mapping[str, Image.Image]) -> str | None:
        """The answer to a question and pictures, each under a line that says what it is. None where the call failed.

        Raises UserError for what would fail every call: an endpoint that is not there, a wrong key or model, a spent
        quota."""
        shown = {caption: _scaled(picture) for caption, picture in pictures.items()}
        path = self.folder / f"{_key(self.model, question, shown)}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))["answer"]
        content: list[Any] = [{"type": "text", "text": question}]
        for caption, picture in shown.items():
            content += [{"type": "text", "text": caption}, {"type": "image_url", "image_url": {"url": _uri(picture)}}]
        answer = self._call([{"role": "user", "content": content}])
        if answer is not None:
            with whole_file(path) as file:
                json.dump({"model": self.model, "question": question, "answer": answer}, file, indent=1)
        return answer

    def _call(self, messages: list[Any]) -> str | None:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        try:
            answered = self.client.chat.completions.create(model=self.model, messages=messages, temperature=0)
        except APIError as e:
            said = " ".join(e.response.text.split())[:200] if isinstance(e, APIStatusError) else str(e)
            state = f"{e.status_code} " if isinstance(e, APIStatusError) else ""
            self.failure = f"{state}{said}"
            lost = isinstance(e, APIConnectionError) and not isinstance(e, APITimeoutError)
            if lost or (isinstance(e, APIStatusError) and e.status_code in STOPS):
                raise UserError(
                    f"--judge '{self.url}', model '{self.model}': {self.failure}; answers so far are kept in "
                    f"'{self.folder}', and the same command goes on"
                ) from None
            return None
        choices = getattr(answered, "choices", None)
        if not choices:  # a web page, or an error that calls itself a success
            self.failure = "the endpoint does not answer as OpenAI's does"
            return None
        return choices[0].message.content or ""


def _scaled(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return picture


def _key(model: str, question: str, pictures: Mapping[str, Image.Image]) -> str:
    """Of the pixels, which do not depend on how a version of Pillow writes them."""
    sum_ = hashlib.blake2b(json.dumps([model, question]).encode(), digest_size=16)
    for caption, picture in pictures.items():
        sum_.update(json.dumps([caption, picture.size]).encode())
        sum_.update(picture.tobytes())
    return sum_.hexdigest()


def _uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
