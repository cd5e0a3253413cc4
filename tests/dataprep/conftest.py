"""Fixtures for the tests of ``data build``."""

import threading
from http.server import ThreadingHTTPServer

import pytest
import torch
from building import Answers


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.wait, server.daemon_threads = [], 0.0, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def pipeline(parts, tmp_path_factory):
    """A folder with a tiny Stable Diffusion text-to-image pipeline of random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(parts / "clip")
    words = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    tokenizer.model_max_length = words.max_position_embeddings
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("pipeline")
    StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(parts / "vae"),
        CLIPTextModel(words),
        tokenizer,
        unet,
        DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def command(parts, pipeline, tmp_path):
    """``command(url, *more)``: the arguments that build ``tmp_path``/seeds into ``tmp_path``/built."""
    fixed = ["--pipeline", pipeline, "--clip", parts / "clip", "--lpips", "none", "--min-clip", "-1", "--steps", "2"]
    paths = ["data", "build", tmp_path / "seeds" / "seeds.jsonl", "-o", tmp_path / "built", *fixed]
    return lambda url, *more: [str(part) for part in (*paths, "--url", url, "--model", "fixed", *more)]
