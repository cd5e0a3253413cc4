"""diffusers' quantization configs hold the slots that they name in NF4, and others are refused."""

import pytest
import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig
from transformers import BitsAndBytesConfig as OfTransformers

from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.modules.common.nf4 import Nf4Linear

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DIFFUSION, MLLM = {"transformer": BitsAndBytesConfig(**NF4)}, {"mllm": OfTransformers(**NF4)}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_mapping": DIFFUSION}, {"diffusion"}),
        ({"quant_mapping": DIFFUSION | MLLM}, {"diffusion", "mllm"}),
        ({"quant_backend": "bitsandbytes_4bit", "quant_kwargs": NF4, "components_to_quantize": "mllm"}, {"mllm"}),
        ({"quant_backend": "bitsandbytes_4bit", "quant_kwargs": NF4}, {"diffusion", "mllm"}),
    ],
)
def test_the_slots_that_a_config_names_are_held_in_4_bits(config, expected):
    config = PipelineQuantizationConfig(**config)
    pipe = ReasonBrainPipeline.from_pretrained("tiny", torch_dtype=torch.bfloat16, quantization_config=config)
    held = {name for name, part in pipe.model.parts.items() if any(isinstance(m, Nf4Linear) for m in part.modules())}
    assert held == expected
    assert pipe("docs/samples/ice.png", "Melt it.", num_inference_steps=1).images[0].size == (64, 64)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"quant_mapping": {"mllm": OfTransformers(load_in_8bit=True)}},
            "component 'mllm' is not in bitsandbytes' nf4",
        ),
        (
            {"quant_backend": "bitsandbytes_4bit", "quant_kwargs": {"load_in_4bit": True}},
            "ask for load_in_4bit=True and",
        ),
        ({"quant_backend": "bitsandbytes_8bit", "quant_kwargs": {"load_in_8bit": True}}, "'encoders' is not in"),
        ({"quant_mapping": {"unet": BitsAndBytesConfig(**NF4)}}, "component 'unet' is not one of encoders, "),
    ],
)
def test_other_quantizations_are_refused(config, said):
    with pytest.raises(UserError, match=said):
        ReasonBrainPipeline.from_pretrained("tiny", quantization_config=PipelineQuantizationConfig(**config))
