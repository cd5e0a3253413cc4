"""The base class of every plug-in: a diffusers model with its own folder, config.json and safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reasonbrain.config.schema import ModelConfig
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Inputs

# kinds of Plugin.memory_options, in the order in which `reasonbrain plan` tries them: train adapters in place of the
# weights; hold frozen weights in fewer bits
MEMORY_OPTIONS = ("adapters", "quantised")


class Plugin(ModelMixin, ConfigMixin):
    """A module that fills a slot. Its ``__init__`` is decorated with diffusers' ``register_to_config`` and takes
    ``width`` (D, see interfaces) before its own parameters. What the slot's module has to compute is its protocol in
    interfaces.py.

    Beyond that the framework, planning, training and benches ask a plug-in the questions below and look at none of its
    parameters. Every answer has a default; a plug-in overrides those that are not true of it.

    A plug-in around published weights takes ``pretrained`` (a hub id or a folder in the hub's layout) and
    ``architecture`` (a dict), and names ``pretrained`` in ``weight_sources``. With ``architecture`` it is built from
    that alone, weights to be loaded afterwards; otherwise it loads ``pretrained`` and records the architecture in its
    own config.json.
    """

    config_name = "config.json"
    slot: str
    plugin_name: str
    # parameters (``str | None``) that say where published weights are: a hub id or a folder; null in a checkpoint
    weight_sources: tuple[str, ...] = ()
    preparing: tuple[str, ...] = ()  # paths of the submodules that prepare records, for which training computes once
    without_adapters: dict[str, Any] = {}  # parameters that build it once peft's adapters are merged into its weights
    _frozen: tuple[nn.Module, ...] = ()

    @classmethod
    def check_config(cls, parameters: Mapping[str, Any], model: ModelConfig) -> None:
        """Raises UserError if the plug-in's ``parameters`` do not fit the other slots of ``model``. Called when a
        configuration is read, before anything is built."""

    @property
    def reads_sentence(self) -> bool:
        """Slot ``encoders``: whether the plug-in encodes ``Inputs.sentences``, which the MLLM then generates."""
        return False

    # asked before a plug-in is built; params: the slot's parameters as configured

    @classmethod
    def without_weights(cls, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters that build the same modules without reading any weights.

        By default ``architecture`` is filled in from ``pretrained``: of a folder from its config.json, of a hub id from
        ``configs/architectures``. Raises UserError where neither is there."""
        if not params.get("pretrained") or params.get("architecture"):
            return params
        return params | {"architecture": architecture_of(params["pretrained"])}

    @classmethod
    def loads_published(cls, params: dict[str, Any]) -> bool:
        """Whether it starts from published weights, so that a checkpoint may leave out what did not train."""
        return any(params.get(source) for source in cls.weight_sources) and not params.get("architecture")

    @classmethod
    def memory_options(cls, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Changes of the parameters that lower the memory of training, by kind (MEMORY_OPTIONS); without those that
        ``params`` contain already. None by default."""
        return {}

    @classmethod
    def check_partitioned_loading(cls, params: dict[str, Any]) -> None:
        """Raises UserError if a checkpoint of the plug-in cannot be loaded one tensor at a time, as ZeRO-3 does it."""

    # asked of a plug-in

    def gives_loss(self) -> bool:
        """Whether a loss comes from this plug-in. By default true in the slots mllm and diffusion."""
        return self.slot in ("mllm", "diffusion")

    def stand_in_assets(self) -> None:
        """Sets stand-ins for what ``load_assets`` reads (tokenizer, image processor) that give inputs of the same
        shapes, for a model with random weights. Nothing by default."""

    def prepare_dry_run(self, size: int) -> None:
        """Prepares for a pass on fake tensors, which have shapes but no numbers, over pictures of ``size`` x ``size``
        pixels, after ``stand_in_assets``: replaces what reads numbers (``.item()``, ``.numpy()``). Nothing by
        default."""

    def needs_weights(self, source: str | None) -> str:
        """``source``, the parameter that ``weight_sources`` names first. Raises UserError if it is not given."""
        if not source:
            raise UserError(
                f"model.{self.slot}.{self.weight_sources[0]}: '{self.plugin_name}' needs published weights; "
                f"give a folder or a hub id"
            )
        return source

    def freeze(self, *modules: nn.Module) -> None:
        """Takes modules out of training, for good: no gradients, and always in eval mode."""
        self._frozen += modules
        for module in modules:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Plugin:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def prepares(self) -> dict[str, nn.Module]:
        """The modules of ``preparing`` by path, without those that train: what these give changes with every step."""
        found = {path: self.get_submodule(path) for path in self.preparing}
        return {path: m for path, m in found.items() if not any(p.requires_grad for p in m.parameters())}

    def image_features(self, images: Tensor) -> Tensor | None:
        """What modules of ``preparing`` find in images [B, 3, H, W] in 0..1 alone: [B, ...]; None: nothing.

        As long as none of them trains, training computes it once a record, and ``known_features`` has it."""
        return None

    def image_settings(self) -> dict[str, Any]:
        """What ``image_features`` depends on beside pictures and weights, for JSON."""
        return {}

    def known_features(self, inputs: Inputs) -> Tensor:
        """``image_features`` of a batch, as it brings them or else computed."""
        ready = inputs.ready.get(self.slot)
        return self.image_features(inputs.images) if ready is None else ready  # type: ignore[return-value]

    def repeated(self) -> list[nn.Module]:
        """The like blocks that make up most of the plug-in, in the order they run; none here."""
        return []

    def checkpoint_activations(self) -> None:
        """From now on ``repeated`` blocks keep their inputs alone for the backward pass and compute the rest again.

        The libraries' own switch would do nothing here: transformers' looks at ``training``, and what is frozen stays
        in eval mode. As there, ``forward`` is what is wrapped, so that hooks (ZeRO's) run once."""
        for block in self.repeated():
            block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]

    def compile_blocks(self) -> None:
        """Compiles the ``repeated`` blocks (torch.compile) when they first run: like blocks share the work, which makes
        it far quicker than compiling the whole. Needs a C++ compiler on a CPU."""
        for block in self.repeated():
            block.compile()

    def tie_weights(self) -> None:
        """Shares again what a checkpoint stores once; called after loading."""

    def save_assets(self, folder: Path) -> None:
        """Writes what belongs to the plug-in and is no tensor (a tokenizer)."""

    def load_assets(self, folder: Path) -> None:
        """Reads what ``save_assets`` wrote."""


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # a function of its own: torch.compile looks into it, but would pass over the block where ``checkpoint`` stands here
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def architecture_of(source: str) -> dict[str, Any]:
    """The architecture of a published model: config.json in a folder, or what is kept here of a hub id.

    Raises UserError for a folder without a readable config.json, and like ``public_architecture``."""
    folder = Path(source)
    if not folder.is_dir():
        return public_architecture(source)
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"folder '{source}' has no readable config.json") from None


def public_architecture(name: str) -> dict[str, Any]:
    """The architecture of a published model, kept in ``configs/architectures`` so that no hub is needed for it.

    Raises UserError naming the models that are there."""
    folder = files("reasonbrain.configs") / "architectures"
    file = folder / f"{name.replace('/', '--')}.json"
    if not file.is_file():
        known = sorted(f.name[:-5].replace("--", "/") for f in folder.iterdir() if f.name.endswith(".json"))
        raise UserError(f"no architecture of '{name}' is kept here; choose from {', '.join(known)}")
    return json.loads(file.read_text(encoding="utf-8"))
