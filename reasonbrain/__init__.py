"""ReasonBrain: hypothetical instruction-based image editing with an MLLM and a diffusion model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasonbrain.editing.pipeline import ReasonBrainPipeline

__version__ = "0.1.0"
__all__ = ["ReasonBrainPipeline"]


def __getattr__(name: str) -> Any:
    # lazy, so that importing reasonbrain (in the command line, for example) does not import torch
    if name == "ReasonBrainPipeline":
        from reasonbrain.editing.pipeline import ReasonBrainPipeline

        return ReasonBrainPipeline
    raise AttributeError(name)
