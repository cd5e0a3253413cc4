"""Everything that is measured on a GPU, in one run: the benches of bench.py at true size, each in a process of its own.

    python -m reasonbrain.eval.benchmarking.gpu out/gpu.json docs/performance.md        # as `make gpu` does

Needs neither a hub nor data. What does not fit into memory is reported as such, and the rest goes on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reasonbrain.errors import UserError
from reasonbrain.eval.benchmarking.bench import table
from reasonbrain.utils.files import whole_file

MODEL = ["--config", "reasonbrain_flux_qwen", "--random"]
LORA = ["model.diffusion.trained=lora", "model.diffusion.precision=bfloat16"]
ONE = ["data.count=1", "train.batch_size=1"]
CHECKPOINTED = "train.checkpointing=[diffusion,mllm]"
SHORT = ["--warmup", "1", "--repeats", "3"]
RUNS = {  # from small to large
    "building the model": ["load", *MODEL, "--warmup", "0", "--repeats", "1", *LORA],
    "edit, 28 steps, 512": ["edit", *MODEL, *SHORT, "edit.size=512", *LORA],
    "edit, 28 steps, 1024": ["edit", *MODEL, *SHORT, "edit.size=1024", *LORA],
    "training step, LoRA, 512": ["train", *MODEL, *SHORT, "data.size=512", *ONE, *LORA],
    "training step, LoRA, checkpointed, 1024": ["train", *MODEL, *SHORT, "data.size=1024", *ONE, *LORA, CHECKPOINTED],
}
SECTION = re.compile(r"(<!-- measured by make gpu -->\n).*?(<!-- end -->)", re.DOTALL)


def measure(runs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Runs `reasonbrain bench` with these arguments. Returns its report by name, or ``{"error": its last line}``."""
    found = {}
    for name, arguments in runs.items():
        command = [sys.executable, "-m", "reasonbrain.cli", "bench", *arguments, "-o", "-"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            found[name] = {"error": said[-1][:200]}
        else:
            found[name] = json.JSONDecoder().raw_decode(done.stdout)[0]
    return found


def section(found: Mapping[str, Any]) -> str:
    """The tables of the reports, one below the other."""
    return "\n\n".join(f"### {name}\n\n" + (of["error"] if "error" in of else table(of)) for name, of in found.items())


def write(found: Mapping[str, Any], output: Path, page: Path) -> None:
    """Writes the reports as JSON, and the tables into the page between its marks."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as file:
        json.dump(found, file, indent=1)
    tables = f"\n{section(found)}\n\n"
    text = SECTION.sub(lambda marks: marks[1] + tables + marks[2], page.read_text(encoding="utf-8"))
    with whole_file(page) as file:
        file.write(text)


def main() -> None:
    """Measures RUNS. Raises UserError without an accelerator."""
    if not torch.accelerator.is_available():
        raise UserError("make gpu: torch finds no accelerator on this machine")
    write(measure(RUNS), Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")
