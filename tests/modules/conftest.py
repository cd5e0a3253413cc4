"""Tiny models in the hub's layout, by short name."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from published import save_clip, save_flux, save_llava, save_qwen, save_sam
from torch import nn


class Saved(NamedTuple):
    """A folder in the hub's layout and the models in it (FLUX: by subfolder)."""

    folder: str
    models: dict[str, nn.Module]


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> dict[str, Saved]:
    """``clip``, ``sam``, ``qwen``, ``llava`` and ``flux``, each saved by its own class."""
    saved = {}
    for save in (save_clip, save_sam, save_qwen, save_llava, save_flux):
        name = save.__name__.removeprefix("save_")
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        saved[name] = Saved(str(folder), save(folder))
    return saved
