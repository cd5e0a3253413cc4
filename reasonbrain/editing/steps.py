"""What the callback of a pipeline sees of a call in progress, and what it may change."""

from __future__ import annotations

import threading

from torch import Tensor


class _Call(threading.local):
    """What is known of the call in progress, or of the last one, by thread."""

    guidance: float | None = None
    timesteps = 0
    timestep: Tensor | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:  # pipelines are pickled and copied; a call is not
        return _Call, ()


class Steps:
    """The part of a pipeline that follows the denoising steps of its calls."""

    _interrupt = False

    def __init__(self) -> None:
        self._call = _Call()
        super().__init__()

    @property
    def guidance_scale(self) -> float | None:
        """The guidance value of the call in progress, or of the last one. A callback changes ``_guidance_scale``."""
        return self._call.guidance

    @property
    def _guidance_scale(self) -> float | None:
        return self._call.guidance

    @_guidance_scale.setter
    def _guidance_scale(self, value: float | None) -> None:
        self._call.guidance = value

    @property
    def num_timesteps(self) -> int:
        """The number of denoising steps of the call in progress, or of the last one."""
        return self._call.timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """The timestep of the step in progress; None outside of a call."""
        return self._call.timestep

    @property
    def interrupt(self) -> bool:
        """Whether the steps left are skipped. Set ``_interrupt``, in a callback or in another thread; the next call
        resets it."""
        return self._interrupt

    def _before_step(self, step: int, timesteps: Tensor) -> float | None:
        self._call.timesteps, self._call.timestep = len(timesteps), timesteps[step]
        return None if self._interrupt else self._guidance_scale or 0.0  # None: a model without such a scale
