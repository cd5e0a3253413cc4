"""ReasonBrain: hypothetical instruction-based image editing. An MLLM reasons, FLUX draws."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasonbrain.editing.pipeline import ReasonBrainPipeline

__version__ = "0.1.0"
__all__ = ["ReasonBrainPipeline"]


def __getattr__(name: str) -> Any:
    # lazy: importing reasonbrain (for its command line, say) must not import torch
    if name == "ReasonBrainPipeline":
        from reasonbrain.editing.pipeline import ReasonBrainPipeline

        return ReasonBrainPipeline
    raise AttributeError(name)
