"""Installs ReasonBrain under one importable name.

The repository keeps ``modules/``, ``train/``, ``eval/`` and ``configs/`` at its top level; they are installed as
``reasonbrain.modules``, ``reasonbrain.train``, ``reasonbrain.eval`` and ``reasonbrain.configs``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

MAPPED = ("modules", "train", "eval", "configs")

packages = find_packages(include=["reasonbrain", "reasonbrain.*"])
for top in MAPPED:
    packages += [f"reasonbrain.{top}"] + [f"reasonbrain.{top}.{p}" for p in find_packages(top)]

PLUGINS = {  # "<slot>:<name>" -> module below reasonbrain.modules; third-party packages add theirs the same way
    "encoders:clip": "encoders.clip",
    "encoders:clip_states": "encoders.clip_states",
    "frce.patch:patch_encoder": "frce.patch_encoder",
    "frce.region:superpixel": "frce.regions",
    "frce.region:sam": "frce.sam",
    "frce.text:id_controller": "frce.id_controller",
    "mllm:qwen2_5_vl": "mllm.qwen2_5_vl",
    "mllm:qwen3_vl": "mllm.qwen3_vl",
    "mllm:llava": "mllm.llava",
    "mllm:text_llm": "mllm.text_llm",
    "mllm:endpoint": "mllm.endpoint",
    "connector:qformer": "connector.qformer",
    "connector:edit_head": "connector.edit_head",
    "cme:hybrid": "cme.hybrid",
    "cme:bim": "cme.bim",
    "diffusion:flux": "diffusion.flux",
    "diffusion:sd": "diffusion.sd",
    "diffusion:editor": "diffusion.editor",
}

BENCHMARKS = {  # name -> class below reasonbrain
    "mini": "modules.data.reasonmini.benchmark:MiniBenchmark",
    "mini2": "modules.data.reasonmini2.benchmark:Mini2Benchmark",
    "magicbrush": "eval.evaluation.published:MagicBrush",
    "emu_edit": "eval.evaluation.published:EmuEdit",
    "reasonedit": "eval.evaluation.published:ReasonEdit",
    "editworld": "eval.evaluation.published:EditWorld",
    "reason50k": "eval.evaluation.published:Reason50K",
    "instructpix2pix": "eval.evaluation.published:InstructPix2Pix",
    "risebench": "eval.evaluation.published:RiseBench",
    "kris": "eval.evaluation.published:KrisBench",
    "mgie": "eval.evaluation.published:Mgie",
    "manifest": "eval.evaluation.published:AnyManifest",
}

DATA = {  # data.name -> class below reasonbrain.modules.data
    "mini": "reasonmini:ReasonMini",
    "mini2": "reasonmini2.dataset:ReasonMini2",
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

# Packages that only some commands need; the core installs those of `reasonbrain edit` and `batch`.
EXTRAS = {
    "mini": ["pymunk>=7.0", "resvg-py>=0.5"],  # ReasonMini, the data set of the embedded default
    "train": ["tensorboard>=2.18", "deepspeed>=0.19", "bitsandbytes>=0.49"],
    "eval": [  # eval, ablate, bench, data build
        *("scipy>=1.15", "psutil>=6"),
        "torchmetrics>=1.8",  # for LPIPS, which also needs a torchvision that fits torch
    ],
    "data": ["datasets>=4", "imagehash>=4.3"],  # Parquet, data check
    "ray": ["ray[data]>=2.52"],
    "flash": ["flash-attn>=2.7"],
    # the documentation site
    "docs": [f'{package}; python_version >= "3.11"' for package in ("zensical>=0.0.70", "mkdocstrings-python>=2")],
}
DEV = [
    *("pytest>=8", "pytest-xdist>=3.8", "ruff>=0.14", "mypy>=1.18", "types-PyYAML", "codespell[toml]>=2.4"),
    *("pre-commit>=4", "build>=1.2", "webdataset>=1.0", "hypothesis>=6.150"),
    *("fastapi>=0.115", "uvicorn>=0.32", "openai>=2"),  # for `transformers serve`, a judge's endpoint in the tests
]


def description() -> str:
    """README.md without images and links that do not work outside the repository."""
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", Path("README.md").read_text(encoding="utf-8"))
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


setup(
    name="reasonbrain",
    version="0.1.0",
    description="Hypothetical instruction-based image editing: an MLLM reasons, FLUX draws.",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The ReasonBrain authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["image editing", "diffusion models", "multimodal large language models", "FLUX", "DeepSpeed"],
    project_urls={"Paper of the method": "https://arxiv.org/abs/2507.01908"},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
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
        "reasonbrain.utils": ["templates/*.html"],
        "reasonbrain.modules.data.reasonmini": ["*.yaml"],
        "reasonbrain.modules.data.reasonmini2": ["*.yaml"],
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
        "textblob>=0.19",
        "click>=8.1",
        "jinja2>=3.1",
        "tqdm>=4.66",
    ],
    extras_require={**EXTRAS, "dev": DEV},
    entry_points={
        "console_scripts": ["reasonbrain=reasonbrain.cli:main"],
        "reasonbrain.modules": [f"{slot_name} = reasonbrain.modules.{module}" for slot_name, module in PLUGINS.items()],
        "reasonbrain.benchmarks": [f"{name} = reasonbrain.{cls}" for name, cls in BENCHMARKS.items()],
        "reasonbrain.data": [f"{name} = reasonbrain.modules.data.{cls}" for name, cls in DATA.items()],
    },
)
