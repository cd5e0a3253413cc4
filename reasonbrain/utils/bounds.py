"""A bound on the number of parameters that a module is built with.

with at_most(TENSORS, "model.cme"):
    module = build(blocks=10**8)  # raises UserError soon, instead of filling the memory
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from reasonbrain.errors import UserError

TENSORS = 20_000  # of a slot; published models have up to a few thousand


@contextmanager
def at_most(tensors: int, where: str) -> Iterator[None]:
    """Raises UserError, naming ``where``, as soon as the block has registered more than so many parameters."""
    count = 0

    def registered(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > tensors:
            raise UserError(f"{where}: its parameters ask for more than {tensors} tensors")

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()
