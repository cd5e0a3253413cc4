"""Faster edits: ``edit.cache`` reuses what hardly changes between steps, ``edit.compile`` compiles the blocks.

accelerate(pipe)
"""

from __future__ import annotations

from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError

CONFIGS = {"first_block": FirstBlockCacheConfig, "taylor": TaylorSeerCacheConfig}  # of schema.CACHES


def accelerate(pipe: ReasonBrainPipeline) -> None:
    """Applies ``edit.cache``, with the defaults of diffusers, and ``edit.compile`` to the pipeline's diffusion model.

    Raises UserError where there is none, and like ``Plugin.enable_cache`` and ``Plugin.compile_blocks``."""
    edit, part = pipe.settings.edit, pipe.diffusion
    for key in ("cache", "compile"):
        if getattr(edit, key) and part is None:
            raise UserError(f"edit.{key}: model.diffusion is null")
    if edit.cache:
        part.enable_cache(CONFIGS[edit.cache]())
    if edit.compile:
        part.compile_blocks()
