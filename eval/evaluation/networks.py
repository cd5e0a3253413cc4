"""The networks that metrics use: CLIP, DINO and LPIPS, each loaded on first use.

Pictures are preprocessed with Pillow as in CLIP's and DINO's own code: the shorter side is scaled with the bicubic
filter, the centre is cropped, values are normalised. For DINO the side is scaled to 256 and cropped to 224, as in
MagicBrush's evaluation/image_eval.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, ViTModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from reasonbrain.errors import UserError, first_line
from reasonbrain.modules.common.published import load_published, load_tokenizer
from reasonbrain.utils.hub import hub_trouble
from reasonbrain.utils.images import to_tensor

CLIP_B = "openai/clip-vit-base-patch32"
CLIP_L = "openai/clip-vit-large-patch14"
DINO_S = "facebook/dino-vits16"
KEPT = 16  # number of cached embeddings of pictures, and of texts; several metrics use the same ones


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine similarity of two vectors; 0 if one of them is 0."""
    return float(F.cosine_similarity(a, b, dim=0))


class Models:
    """The networks by name, loaded on first use.

    ``clip``, ``dino``: folders or hub ids of a CLIPModel and a ViTModel. ``lpips``: alex, squeeze or vgg. The
    attributes of the same names raise ImportError, OSError, RuntimeError, ValueError or UserError if a network cannot
    be loaded."""

    NAMES = ("clip", "dino", "lpips")

    def __init__(
        self, clip: str = CLIP_B, dino: str = DINO_S, lpips: str = "alex", device: torch.device | str = "cpu"
    ) -> None:
        self.ids = {"clip": clip, "dino": dino, "lpips": lpips}
        self.device = torch.device(device)

    @cached_property
    def clip(self) -> Clip:
        return Clip(self.ids["clip"], self.device)

    @cached_property
    def dino(self) -> Dino:
        return Dino(self.ids["dino"], self.device)

    @cached_property
    def lpips(self) -> Callable[[Image.Image, Image.Image], float]:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        except ModuleNotFoundError:
            raise ImportError("torchmetrics is not installed: pip install 'reasonbrain[eval]'") from None

        net = LearnedPerceptualImagePatchSimilarity(self.ids["lpips"], normalize=True).to(self.device)  # type: ignore

        @torch.no_grad()
        def distance(a: Image.Image, b: Image.Image) -> float:
            value = float(net(to_tensor([a]).to(self.device), to_tensor([b]).to(self.device)))
            net.reset()
            return value

        return distance

    def missing(self, name: str) -> str | None:
        """Why one of ``NAMES`` cannot be loaded; None if it can."""
        try:
            getattr(self, name)
        except Exception as e:  # no torchvision, no hub, other weights
            known = isinstance(e, (ImportError, OSError, RuntimeError, ValueError, UserError))
            if (trouble := hub_trouble(e, self.ids[name])) is None and not known:
                raise
            return f"{name} '{self.ids[name]}' cannot be loaded: {trouble or first_line(e)}"
        return None


class _ImageEncoder(ABC):
    """A network that embeds pictures."""

    def __init__(self, name: str, kind: Any, device: torch.device, **options: Any) -> None:
        options |= {"dtype": torch.float32, "use_safetensors": None}  # some are published without safetensors
        self.model = load_published(kind, name, spare=("pooler.",), **options)
        self.model.eval().to(device)
        self.device = device
        self._recent = lru_cache(KEPT)(self._embed)

    def image(self, picture: Image.Image) -> Tensor:
        """An RGB picture -> [D], normalised to length 1."""
        return self._recent(picture.size, picture.tobytes())

    @torch.no_grad()
    def _embed(self, size: tuple[int, int], data: bytes) -> Tensor:
        array = np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3)
        pixels = self.processor(array, input_data_format="channels_last", return_tensors="pt").pixel_values
        return F.normalize(self.encode(pixels.to(self.device))[0].cpu(), dim=0)

    processor: Any

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """[1, 3, S, S] -> [1, D]."""


class Clip(_ImageEncoder):
    """A CLIP model that embeds images and texts."""

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, CLIPModel, device)
        side = self.model.config.vision_config.image_size
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
        self.tokenizer = load_tokenizer(name)
        self.text = lru_cache(KEPT)(self._text)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)

    @torch.no_grad()
    def _text(self, text: str) -> Tensor:
        """A text -> [D], normalised to length 1. Tokens beyond CLIP's 77 are truncated."""
        length = self.model.config.text_config.max_position_embeddings
        # split_special_tokens: "<|endoftext|>" in a caption is text and does not end it
        tokens = self.tokenizer(
            text, truncation=True, max_length=length, split_special_tokens=True, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.model.text_projection(pooled)[0].cpu(), dim=0)


class Dino(_ImageEncoder):
    """A DINO ViT that embeds images."""

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, ViTModel, device, add_pooling_layer=False)
        side = self.model.config.image_size
        self.processor = CLIPImageProcessorPil(
            size={"shortest_edge": side * 256 // 224},
            crop_size=side,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).last_hidden_state[:, 0]
