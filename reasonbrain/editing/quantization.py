"""diffusers' ``quantization_config`` in terms of the slots.

pipe = ReasonBrainPipeline.from_pretrained(name, quantization_config=PipelineQuantizationConfig(
    quant_mapping={"transformer": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}))
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import PipelineQuantizationConfig

from reasonbrain.editing.arguments import check_choices
from reasonbrain.errors import UserError

ALIASES = {"transformer": "diffusion"}  # the model that diffusers calls so is in that slot


def slots_in_4_bits(config: PipelineQuantizationConfig, names: Sequence[str]) -> list[str]:
    """The components that a config holds in NF4, of ``names``; all of them if it names none.

    Raises UserError for another quantization, and for a component that does not exist."""
    if config.quant_mapping:
        of = {name: given.to_dict() for name, given in config.quant_mapping.items()}
    else:
        chosen = config.components_to_quantize or names
        of = {
            name: {"load_in_4bit": config.quant_backend == "bitsandbytes_4bit"} | config.quant_kwargs for name in chosen
        }
    for name, kind in of.items():
        if not kind.get("load_in_4bit") or kind.get("bnb_4bit_quant_type") != "nf4":
            raise UserError(
                f"quantization_config: component '{name}' is not in bitsandbytes' nf4, the one quantization here; "
                f"ask for load_in_4bit=True and bnb_4bit_quant_type='nf4'"
            )
    found = [ALIASES.get(name, name) for name in of]
    check_choices("quantization_config: component", found, names)
    return found
