"""MLLM ``endpoint``: any multimodal model behind an OpenAI-compatible server (vLLM, SGLang, ``transformers serve``).

It writes sentences and has no [IMG] tokens, so it gives words to the diffusion model and no guidance.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from diffusers.configuration_utils import register_to_config
from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Cues, Guidance, Inputs, no_tokens
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register
from reasonbrain.utils.endpoint import Endpoint, Refused
from reasonbrain.utils.images import to_pil

TOGETHER = 8  # questions that are asked at the same time
SHOWN = "The picture:"


@register("mllm", "endpoint")
class EndpointMllm(Plugin):
    """A multimodal model behind an OpenAI-compatible server. Its key is OPENAI_API_KEY; a local server needs none.

    Answers are cached by what was asked: the model's name, the question and the pixels.

    Args:
        url: the server, with /v1: http://localhost:8000/v1
        model: the server's name of the model
        answers: folder of the cached answers; null: one for each ``url`` in the user's cache folder
    """

    @register_to_config
    def __init__(
        self, width: int, url: str | None = None, model: str | None = None, answers: str | None = None
    ) -> None:
        super().__init__()
        for key, value in (("url", url), ("model", model)):
            if not value:
                raise UserError(f"model.mllm.{key}: 'endpoint' needs it; for example http://localhost:8000/v1")
        if urlsplit(str(url)).username is not None:  # configurations are stored with results
            raise UserError("model.mllm.url: it must not hold a user name or password; put the key in OPENAI_API_KEY")
        self.register_buffer("here", torch.empty(0), persistent=False)  # pipelines ask a module where it is
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonbrain" / "answers"
        own = cache / re.sub(r"[^\w.-]+", "_", str(url))  # many servers call their model "default"
        self.endpoint = Endpoint(str(url), str(model), Path(answers) if answers else own)

    @classmethod
    def is_whole(cls, params: dict[str, Any]) -> bool:
        return True

    def gives_loss(self) -> bool:
        return False

    def forward(self, inputs: Inputs, cues: Cues) -> Guidance:
        """No guidance, and a loss of 0."""
        return Guidance(no_tokens(cues.visual), cues.visual.new_zeros(()))

    def text_length(self, instruction: str) -> int:
        """0: no row depends on another."""
        return 0

    def reason(self, inputs: Inputs, max_new_tokens: int = 96) -> list[str]:
        """The model's answers; "" where the server refuses a question. The server bounds their length.

        Raises UserError like ``Endpoint.ask``."""
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(self._answer, inputs.instructions, to_pil(inputs.images)))

    def _answer(self, question: str, picture: Image.Image) -> str:
        try:
            return self.endpoint.ask(question, {SHOWN: picture}).strip()
        except Refused:
            return ""
