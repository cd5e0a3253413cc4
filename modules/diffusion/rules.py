"""How each of diffusers' editing pipelines is called: what the plug-in ``editor`` has to know of a class.

A rule names the arguments of a call. Before a pipeline is used, they are checked against its signature, because they
differ between versions of diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from PIL import Image

from reasonbrain.errors import UserError

Size = Callable[[int, int], int]  # of height and width
HEIGHT_AND_WIDTH: dict[str, Size] = {"height": lambda h, w: h, "width": lambda h, w: w}
STEPS = "num_inference_steps"


@dataclass(frozen=True)
class Rule:
    """How a class of pipelines is called.

    image: the argument of the picture. prompt: what the words are put into. together: takes several pictures, each with
    its own prompt, and rows do not depend on each other. size: the arguments that depend on height and width, which are
    multiples of ``multiple``. area: number of pixels that the published weights draw. scales: the argument of each
    scale of ``EditConfig``. fixed: further arguments. own: defaults of ``steps`` and scales that differ from the
    signature's, given the pipeline's configuration."""

    image: str = "image"
    prompt: str = "{}"
    together: bool = False
    size: Mapping[str, Size] = field(default_factory=lambda: HEIGHT_AND_WIDTH)
    multiple: int = 16
    area: int = 1024**2
    scales: Mapping[str, str] = field(default_factory=lambda: {"guidance": "guidance_scale"})
    fixed: Mapping[str, Any] = field(default_factory=dict)
    own: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}

    def defaults(self, pipeline: Any) -> dict[str, Any]:
        """``steps`` and the scales that the pipeline takes, with their defaults."""
        known = inspect.signature(type(pipeline).__call__).parameters
        names = {"steps": STEPS} | dict(self.scales)
        found: dict[str, Any] = {key: known[name].default for key, name in names.items()}
        return found | self.own(pipeline.config)

    def arguments(self, pictures: list[Image.Image], prompts: list[str], settings: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call for pictures of one size. settings: ``steps`` and the scales."""
        width, height = pictures[0].size
        words = [self.prompt.format(prompt) for prompt in prompts]
        given: dict[str, Any] = {"prompt": words if self.together else words[0], self.image: pictures}
        given |= {name: size(height, width) for name, size in self.size.items()}
        given |= {name: settings[key] for key, name in self.scales.items()}
        return given | {STEPS: settings["steps"], **self.fixed}


BOTH = {"guidance": "guidance_scale", "image_guidance": "image_guidance_scale"}
QWEN = {"guidance": "true_cfg_scale"}  # active only with a negative prompt

RULES = {
    "FluxKontextPipeline": Rule(
        together=True,
        size=HEIGHT_AND_WIDTH | {"max_area": lambda h, w: h * w},  # it would be rescaled to 1024 x 1024 pixels
        fixed={"_auto_resize": False},  # the source would be snapped to one of 17 sizes
        own=lambda config: {"guidance": 2.5},  # as on its model card
    ),
    "Flux2KleinPipeline": Rule(own=lambda config: {"steps": 4, "guidance": 1.0} if config["is_distilled"] else {}),
    "QwenImageEditPipeline": Rule(multiple=32, scales=QWEN, fixed={"negative_prompt": " "}),
    "QwenImageEditPlusPipeline": Rule(
        multiple=32, scales=QWEN, fixed={"negative_prompt": " "}, own=lambda config: {"steps": 40}
    ),
    "StableDiffusionInstructPix2PixPipeline": Rule(together=True, size={}, multiple=8, area=512**2, scales=BOTH),
    "StableDiffusionXLInstructPix2PixPipeline": Rule(together=True, multiple=8, area=768**2, scales=BOTH),
    "OmniGenPipeline": Rule(
        image="input_images",
        prompt="<img><|image_1|></img> {}",
        size=HEIGHT_AND_WIDTH | {"max_input_image_size": max},
        scales={"guidance": "guidance_scale", "image_guidance": "img_guidance_scale"},
    ),
}


def find_rule(name: Any, where: str) -> tuple[type, Rule]:
    """The class of a pipeline by name, and its rule. where: what says so, for messages.

    Raises UserError for a class without a rule, one that the installed diffusers lacks, and one whose call lacks an
    argument of the rule."""
    rule = RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise UserError(f"{where} is a {name}, which is not an editing pipeline known here: {', '.join(RULES)}")
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise UserError(f"{where} is a {name}, which diffusers {diffusers.__version__} does not have; upgrade it")
    known = inspect.signature(cls.__call__).parameters
    fixed = ("prompt", "generator", "output_type", STEPS)
    for argument in (*fixed, rule.image, *rule.size, *rule.scales.values(), *rule.fixed):
        if argument not in known:
            raise UserError(
                f"{where} is a {name}, which takes no '{argument}' in diffusers {diffusers.__version__}; "
                f"install another version of diffusers"
            )
    return cls, rule
