"""Installs ReasonBrain under one importable name.

The repository keeps ``modules/``, ``train/``, ``eval/`` and ``configs/`` at its top level; they are installed as
``reasonbrain.modules``, ``reasonbrain.train``, ``reasonbrain.eval`` and ``reasonbrain.configs``.
"""

from pathlib import Path

from setuptools import find_packages, setup

MAPPED = ("modules", "train", "eval", "configs")

packages = find_packages(include=["reasonbrain", "reasonbrain.*"])
for top in MAPPED:
    packages += [f"reasonbrain.{top}"] + [f"reasonbrain.{top}.{p}" for p in find_packages(top)]

PLUGINS = {  # "<slot>:<name>" -> module below reasonbrain.modules; third-party packages add theirs the same way
    "encoders:clip": "encoders.clip",
    "frce.patch:patch_encoder": "frce.patch_encoder",
    "frce.region:superpixel": "frce.regions",
    "frce.region:sam": "frce.sam",
    "frce.text:id_controller": "frce.id_controller",
    "mllm:qwen2_5_vl": "mllm.qwen2_5_vl",
    "mllm:llava": "mllm.llava",
    "connector:qformer": "connector.qformer",
    "cme:hybrid": "cme.hybrid",
    "diffusion:flux": "diffusion.flux",
}

DATA = {  # data.name -> class below reasonbrain.modules.data
    "mini": "reasonmini:ReasonMini",
    "manifest": "manifest:Manifest",
    "folder": "folders:Triples",
    "parquet": "parquet:Parquet",
    "webdataset": "shards:Shards",
    "magicbrush": "magicbrush:MagicBrush",
    "emu_edit": "parquet:EmuEdit",
    "editworld": "folders:EditWorld",
    "reasonedit": "folders:ReasonEdit",
    "instructpix2pix": "instructpix2pix:InstructPix2Pix",
    "risebench": "folders:RiseBench",
    "kris": "folders:KrisBench",
}

TRAIN = ["deepspeed>=0.19", "bitsandbytes>=0.49"]
EVAL = [
    "torchmetrics>=1.8",  # for LPIPS, which also needs a torchvision that fits torch
    "openai>=2",  # for judged metrics and data build
]

setup(
    name="reasonbrain",
    version="0.1.0",
    description="Hypothetical instruction-based image editing: an MLLM reasons, FLUX draws.",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=packages,
    package_dir={f"reasonbrain.{top}": top for top in MAPPED},
    package_data={
        "reasonbrain.configs": [
            "*.yaml",
            "ablations/*.yaml",
            "architectures/*.json",
            "deepspeed/*.json",
            "tiny/**/*",
        ],
        "reasonbrain": ["py.typed"],
        "reasonbrain.modules.data.reasonmini": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.9",
        "diffusers>=0.38",
        "transformers>=5.0",
        "peft>=0.18",
        "accelerate>=1.10",
        "safetensors>=0.5",
        "huggingface_hub>=1.0",
        "omegaconf>=2.4",
        "einops>=0.8",
        "numpy>=1.26",
        "pillow>=11",
        "pyyaml>=6",
        "scikit-image>=0.24",
        "scipy>=1.15",
        "jinja2>=3.1",
        "pymunk>=7.0",
        "textblob>=0.19",
        "psutil>=6",
        "click>=8.1",
        "tensorboard>=2.18",
        "tqdm>=4.66",
    ],
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "data": ["datasets>=4", "imagehash>=4.3"],
        "demo": ["gradio>=5"],
        "ray": ["ray[data]>=2.50"],
        "flash": ["flash-attn>=2.7"],
        "dev": [
            *("pytest>=8", "ruff>=0.14", "mypy>=1.18", "types-PyYAML", "pre-commit>=4", "webdataset>=1.0"),
            *("fastapi>=0.115", "uvicorn>=0.32"),  # for `transformers serve`, a judge's endpoint in the tests
        ],
    },
    entry_points={
        "console_scripts": ["reasonbrain=reasonbrain.cli:main"],
        "reasonbrain.modules": [f"{slot_name} = reasonbrain.modules.{module}" for slot_name, module in PLUGINS.items()],
        "reasonbrain.data": [f"{name} = reasonbrain.modules.data.{place}" for name, place in DATA.items()],
    },
)
