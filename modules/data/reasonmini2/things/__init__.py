"""How each thing looks in each of its states.

A drawing function gets the ``Drawing``, in whose frame the thing stands at (0, 0) and is up to 60 units wide and high,
and the thing's parameters: ``state``, ``color``, and ``vary`` (0..1), a free proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reasonbrain.modules.data.reasonmini2.drawing import Drawing

Params = dict[str, Any]
Draw = Callable[[Drawing, Params], None]

DRAW: dict[str, Draw] = {}  # by the thing's name


def draws(name: str) -> Callable[[Draw], Draw]:
    """Registers the function that draws a thing."""

    def register(function: Draw) -> Draw:
        DRAW[name] = function
        return function

    return register
