"""ReasonBrain: hypothetical instruction-based image editing with an MLLM and a diffusion model."""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasonbrain.editing.pipeline import ReasonBrainPipeline

__version__ = "0.1.0"
__all__ = ["ReasonBrainPipeline"]

# With the package kernels installed, bitsandbytes fetches compiled code from a hub when it is imported, and
# transformers when a model is built. Here they do so only for those who ask, or who have imported kernels themselves.
if os.environ.setdefault("USE_HUB_KERNELS", "0").upper() not in ("1", "ON", "YES", "TRUE"):
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    # lazy, so that importing reasonbrain (in the command line, for example) does not import torch
    if name == "ReasonBrainPipeline":
        from reasonbrain.editing.pipeline import ReasonBrainPipeline

        return ReasonBrainPipeline
    raise AttributeError(name)
