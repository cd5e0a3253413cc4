"""The plug-ins as attributes ``"<slot>:<name>"``, where diffusers looks for what model_index.json names.

getattr(components, "mllm:qwen2_5_vl")
"""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin  # noqa: F401 - diffusers takes a library's classes for loadable if it finds this there

from reasonbrain.registry import SLOTS, plugin


def __getattr__(name: str) -> Any:
    slot, _, of_slot = name.partition(":")
    if slot not in SLOTS:
        raise AttributeError(f"there is no plug-in '{name}'")
    return plugin(slot, of_slot)
