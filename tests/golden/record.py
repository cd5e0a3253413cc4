"""Golden values: edits, training, batches and scores of the embedded default. They show that results are unchanged.

    make golden    # or: python tests/golden/record.py; three minutes, two more where DeepSpeed builds

writes values.json, and edits.png and batch.png with the pictures themselves. Record them anew only if a change is meant
to change results, and say so in the commit. Everything runs through the command line and ``ReasonBrainPipeline``, in
processes of one thread.

``differences`` compares. On a machine with the recorded fingerprint, everything must be bit-identical. On another
machine, hashes and weights are not compared, and these tolerances apply:

- sentences, objects, sizes, names, errors and all other texts are equal,
- a picture differs by at most 1 of 255 in the mean over its values,
- losses differ by at most 1%, gradient norms by at most 5%,
- the mean scores of the evaluation differ by at most 0.02, or by 2% if above one.

With AVX2 instead of AVX512 they differ by at most 0.0001 of 255, 0.15%, 1.5% and 0.00003.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edits import sha, sha_array
from PIL import Image
from safetensors import safe_open

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VALUES = HERE / "values.json"
MEAN_PIXEL, LOSS, NORM, SCORE = 1.0, 0.01, 0.05, 0.02
COLUMNS = 11
TRAIN = ["train.steps=20", "train.batch_size=4", "train.micro_batch=2", "train.draws=1", "train.optimizer=adamw"]
TRAIN += ["train.log_every=1", "train.tracker=null", "train.bf16=true"]

Values = dict[str, Any]
Pictures = dict[str, Image.Image]


def fingerprint() -> Values:
    """The properties of this machine that determine how sums are rounded."""
    info = Path("/proc/cpuinfo")
    lines = [line.split(":") for line in info.read_text().splitlines()] if info.exists() else []
    cpu = {line[0].strip(): line[1].strip() for line in lines if len(line) > 1}
    names = ("model name", "cpu family", "model", "stepping")
    return {
        "cpu": {n: cpu[n] for n in names if n in cpu} or platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        **{p: version(p) for p in ("torch", "numpy", "transformers", "diffusers", "scikit-image", "pillow")},
    }


def start(program: str, *args: Any, codes: tuple[int, ...] = (0,)) -> None:
    """Runs a program of this Python environment in one thread."""
    command = [str(Path(sys.executable).with_name(program)), *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def draw(folder: Path, count: int) -> list[Values]:
    """Writes the first records of the test split with seed 7 to FOLDER/mini. 33 records have one of each kind."""
    start("reasonbrain", "data", "mini", "--split", "test", "--count", count, "--seed", 7, "-o", folder / "mini")
    return [json.loads(line) for line in (folder / "mini" / "manifest.jsonl").read_text().splitlines()]


def look(path: Path) -> tuple[Image.Image, Values]:
    """A picture, its size and the hash of its pixels."""
    picture = Image.open(path).convert("RGB")
    return picture, {"size": list(picture.size), "pixels sha": sha_array(np.asarray(picture))}


def edits(folder: Path) -> tuple[Values, Pictures]:
    """An edit of each of the 33 kinds of ReasonMini."""
    draw(folder, 33)
    start("python", HERE / "edits.py", folder / "mini" / "manifest.jsonl", folder)
    values, pictures = json.loads((folder / "edits.json").read_text()), {}
    for kind, value in values.items():
        pictures[kind], seen = look(folder / f"{kind}.png")
        value |= seen
    return values, pictures


def batch(folder: Path) -> tuple[Values, Pictures]:
    """``reasonbrain batch`` of eight rows: several sizes, some with variants and sentences, one without its picture."""
    mini = folder / "mini"
    records = draw(folder, 7)
    rows = [{"id": r["kind"], "image": r["src_image"], "instruction": r["instruction"], "seed": 3} for r in records]
    for row, size in zip(rows[2:5], [(48, 64), (64, 40), (96, 80)], strict=True):
        Image.open(mini / row["image"]).resize(size, Image.Resampling.BICUBIC).save(mini / row["image"])
    rows[0] |= {"n": 2, "reasoning": True}
    rows[4] |= {"n": 2, "steps": 6}
    rows[5] |= {"size": 48, "reasoning": True}
    rows.append(rows[1] | {"id": "gone", "image": "images/gone.png"})
    jobs, out = mini / "jobs.jsonl", folder / "out"
    jobs.write_text("".join(json.dumps(r) + "\n" for r in rows))
    start("reasonbrain", "batch", jobs, "-o", out, "--batch-size", 4, "--workers", 1, codes=(3,))
    text = (out / "results.jsonl").read_text().replace(str(folder), "FOLDER")
    values: Values = {}
    pictures: Pictures = {}
    for line in sorted(map(json.loads, text.splitlines()), key=lambda x: (x["row"], x["variant"] or 0)):
        del line["seconds"]
        name = f"{line['id']}@{line['variant']}"
        values[name] = line
        if line["file"]:
            pictures[name], seen = look(out / line["file"])
            line |= seen
    return values, pictures


def evaluation(folder: Path) -> tuple[Values, Pictures]:
    """``reasonbrain eval`` of 12 records: the means over all of them, and a hash of the report."""
    start("reasonbrain", "eval", "--benchmark", "mini", "--data", "test", "--limit", 12, "-o", folder / "out")
    report = json.loads((folder / "out" / "report.json").read_text())
    for volatile in ("versions", "command", "device", "config"):
        del report[volatile]
    for row in report["records"]:
        del row["content"]  # of the record alone
    scores = report["tables"][0]["scores"]
    means = {metric: {s: v["mean"] for s, v in score["systems"].items()} for metric, score in scores.items()}
    return {"report sha": sha(json.dumps(report, sort_keys=True)), "edits": report["edits"], **means}, {}


def training(stage: int) -> Callable[[Path], tuple[Values, Pictures]]:
    """20 training steps from the shipped parts: in one process (stage 0), or in two processes under ZeRO."""

    def run(folder: Path) -> tuple[Values, Pictures]:
        common = ["--config", "tiny", "-o", folder / "run", *TRAIN]
        if stage:
            zero = ["train/train.py", "--deepspeed", f"configs/deepspeed/zero{stage}.json"]
            start("torchrun", "--standalone", "--nproc_per_node", 2, *zero, *common)
        else:
            start("reasonbrain", "train", *common)
        log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        values: Values = {name: [line[name] for line in log] for name in ("step", "loss", "lm", "dm", "norm")}
        values["checkpoint sha"] = sha(*tensors(folder / "run" / "checkpoints"))
        for slot in sorted(p.parent for p in (folder / "run" / "model").rglob("*.safetensors")):
            values[f"{slot.name} sha"] = sha(*tensors(slot))
        return values, {}

    return run


def tensors(folder: Path) -> Iterator[str | bytes]:
    """File, name, type, shape and bytes of every tensor. Not of the files, whose order may differ."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                yield f"{path.relative_to(folder)} {name} {tensor.dtype} {list(tensor.shape)}"
                yield tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


PARTS = {"edits": edits, "batch": batch, "eval": evaluation}
PARTS |= {"train": training(0), "zero2": training(2), "zero3": training(3)}


def cells(pictures: Pictures) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """The position of each picture on the sheet."""
    side = max(max(p.size) for p in pictures.values())
    for i, (name, p) in enumerate(pictures.items()):
        x, y = i % COLUMNS * side, i // COLUMNS * side
        yield name, (x, y, x + p.width, y + p.height)


def sheet(pictures: Pictures) -> Image.Image:
    """All pictures on one sheet."""
    side = max(max(p.size) for p in pictures.values())
    made = Image.new("RGB", (min(len(pictures), COLUMNS) * side, -(-len(pictures) // COLUMNS) * side))
    for name, box in cells(pictures):
        made.paste(pictures[name], box)
    return made


def differences(part: str, values: Values, pictures: Pictures, here: Values | None = None) -> list[str]:
    """The differences from the recorded values, one line each. ``here``: the fingerprint of the values' machine."""
    golden = json.loads(VALUES.read_text())
    exact = (here or fingerprint()) == golden["fingerprint"]
    found = list(_differ(part, golden[part], values, exact))
    if pictures and not found:
        with Image.open(HERE / f"{part}.png") as recorded:
            for name, box in cells(pictures):
                was, now = (np.asarray(p, np.float64) for p in (recorded.crop(box), pictures[name]))
                mean = float(np.abs(was - now).mean())
                if mean > (0 if exact else MEAN_PIXEL):
                    found.append(f"{part}/{name}: the picture differs by {mean:.3g} of 255")
    return found


def _differ(where: str, was: Any, now: Any, exact: bool) -> Iterator[str]:
    if where.endswith(" sha") and not exact and now is not None:
        return
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        for key in was:
            yield from _differ(f"{where}/{key}", was[key], now[key], exact)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (a, b) in enumerate(zip(was, now, strict=True)):
            yield from _differ(f"{where}/{i}", a, b, exact)
    elif isinstance(was, float) and isinstance(now, float) and not exact:
        score = SCORE if where.startswith("eval/") else 0.0
        if not math.isclose(was, now, rel_tol=score or (NORM if "/norm/" in where else LOSS), abs_tol=score):
            yield f"{where}: {was} was recorded, not {now}"
    elif was != now:
        yield f"{where}: {was} was recorded, not {now}"


def main() -> None:
    """Writes all files after all parts have run."""
    import tempfile

    golden, sheets = {"fingerprint": fingerprint()}, {}
    for part, make in PARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            golden[part], pictures = make(Path(folder))
        if pictures:
            sheets[part] = sheet(pictures)
        print(f"{part}: {len(golden[part])} values", flush=True)
    lines = {part: ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in golden[part].items()) for part in golden}
    VALUES.write_text("{\n" + ",\n".join(f'"{part}": {{\n{text}\n}}' for part, text in lines.items()) + "\n}\n")
    for part, made in sheets.items():
        made.save(HERE / f"{part}.png", optimize=True)


if __name__ == "__main__":
    main()
