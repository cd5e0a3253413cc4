"""A language model behind an OpenAI-compatible endpoint, whose answers are paid for once.

    llm = Endpoint("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct", Path("answers"))
    llm.ask("What changed between these pictures?", [before, after])

The key is taken from OPENAI_API_KEY. An answer is a file named by the hash of everything that was sent, written whole
before ``ask`` returns: after a kill only what was under way is asked again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import UserError
from .files import whole_file

RETRIES = 5  # of a request that was refused for now (429), failed in the server (5xx) or lost its connection


class Refused(Exception):
    """The endpoint will not answer this question; others it may."""


class Endpoint:
    """``url``: up to and with /v1. ``model``: as the server calls it. ``cache``: the folder of answers.

    May be used by several threads, and sent to another process before the first question."""

    def __init__(self, url: str, model: str, cache: Path) -> None:
        self.url, self.model, self.cache = url, model, cache
        cache.mkdir(parents=True, exist_ok=True)

    @cached_property
    def client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise UserError("an endpoint is asked through openai: pip install 'reasonbrain[build]'") from None
        key = os.environ.get("OPENAI_API_KEY", "none")  # local servers want none
        return OpenAI(base_url=self.url, api_key=key, max_retries=RETRIES)

    def ask(self, prompt: str, pictures: Sequence[Image.Image] = ()) -> str:
        """The answer at temperature 0, with the pictures [RGB] before the words.

        Raises Refused where it turns this question down (a content filter, too many tokens), and UserError where it
        cannot be reached or answers nobody, or ``openai`` is not installed."""
        content: Any = [*map(_picture, pictures), {"type": "text", "text": prompt}] if pictures else prompt
        sent = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        file = self.cache / f"{hashlib.sha256(json.dumps(sent).encode()).hexdigest()}.json"
        if file.exists():
            return json.loads(file.read_bytes())["answer"]
        client = self.client
        from openai import BadRequestError, OpenAIError, UnprocessableEntityError

        try:
            choices = getattr(client.chat.completions.create(**sent), "choices", None)
        except (BadRequestError, UnprocessableEntityError) as e:
            raise Refused(str(e)) from None
        except OpenAIError as e:
            raise UserError(f"endpoint '{self.url}', model '{self.model}': {e}") from None
        if not choices:  # a web page, or an error that calls itself a success
            raise UserError(f"endpoint '{self.url}' does not answer as OpenAI's does")
        answer = choices[0].message.content or ""
        with whole_file(file) as out:
            json.dump({"model": self.model, "prompt": prompt, "answer": answer}, out)
        return answer


def _picture(image: Image.Image) -> dict[str, Any]:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
