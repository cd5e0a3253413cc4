"""Reading published tensors without running code, and putting them into modules."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reasonbrain.errors import UserError, reason
from reasonbrain.registry import plugin


@dataclass
class Report:
    """What became of the published tensors. used: number of tensors by part. new: those of the model that are
    initialised, because nothing was published for them. unused: published ones that the model does not have."""

    used: dict[str, int] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{part}: {count} tensors used" for part, count in self.used.items()]
        lines += [f"missing, initialised: {', '.join(self.new) or 'none'}"]
        shown = f"{', '.join(self.unused[:8])}{' ...' if len(self.unused) > 8 else ''}"
        return "\n".join([*lines, f"unexpected, not used: {len(self.unused)}" + (f" ({shown})" if shown else "")])


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: safetensors, or a pickle of tensors, read with ``weights_only``.

    Raises UserError for a file that cannot be read, or that holds other objects."""
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as e:
        named = re.search(r"GLOBAL (\S+)", str(e))
        what = f"holds {named[1]} besides tensors" if named else "is damaged, or holds objects besides tensors"
        raise UserError(
            f"'{path}' {what}, which is not read because it could run code; give the same weights in another layout"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as e:
        raise UserError(f"'{path}' cannot be read: {reason(e)}") from None
    found = found.get("state_dict", found)
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def _unpickle(path: Path) -> Any:
    given: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        return torch.load(path, mmap=True, **given)
    except RuntimeError:  # the older format cannot be mapped
        return torch.load(path, **given)


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Removes the tensors whose names begin with ``prefix``; returns them without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def empty(slot: str, params: dict[str, Any], width: int) -> Any:
    """The plug-in of a slot without data in its parameters."""
    params = dict(params)
    plug = plugin(slot, params.pop("name"))
    with init_empty_weights(include_buffers=False):
        return plug(width=width, **plug.without_weights(params)).eval()


def fill(part: str, module: nn.Module, tensors: dict[str, Tensor], report: Report, new: tuple[str, ...] = ()) -> None:
    """Puts tensors into a module, in the precision of its parameters.

    new: names of its submodules that get initial weights where nothing was published for them. Raises UserError for
    tensors that are missing otherwise, or have another shape."""
    state = module.state_dict()
    report.unused += [f"{part}.{name}" for name in tensors if name not in state]
    known = {name: value for name, value in tensors.items() if name in state}
    for name, value in known.items():
        if value.shape != state[name].shape:
            wanted = list(state[name].shape)
            raise UserError(f"{part}: {name} is {list(value.shape)}, but the model has {wanted}")
    missing = [name for name in state if name not in known]
    if lost := [name for name in missing if not name.startswith(new)]:
        raise UserError(f"{part}: {len(lost)} tensors are missing, e.g. {lost[0]}")
    module.load_state_dict({n: v.to(state[n].dtype) for n, v in known.items()}, strict=False, assign=True)
    for name in new:
        for layer in module.get_submodule(name).to_empty(device="cpu").modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    report.used[part] = len(known)
    report.new += [f"{part}.{name}" for name in missing]
