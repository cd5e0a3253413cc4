"""Measures a checkpoint on ReasonMini: outcome checks and preservation, the table of the README.

    python -m reasonbrain.eval.mini --checkpoint tiny --count 200 -o runs/eval

For each split: the edits, the untouched sources ("do nothing"), the plain autoencoder's reconstruction of the true
targets (what an edit through it can reach), and the true targets. Writes DIR/<split>/ (records, edits, score.json),
DIR/report.json, and prints the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from reasonbrain import ReasonBrainPipeline
from reasonbrain.data.mini.score import score
from reasonbrain.data.mini.store import read_manifest, write_split
from reasonbrain.images import to_pil, to_tensor

SPLITS = ("test", "paraphrase", "compositional")


def edit_split(pipe: ReasonBrainPipeline, folder: Path, edits: Path, batch_size: int, blank: bool = False) -> None:
    """Edits every record of a written split into EDITS/<id>.png; a picture's seed is 0. ``blank``: with every
    instruction replaced by the same two words, to see what the picture alone gives away."""
    edits.mkdir(parents=True, exist_ok=True)
    records = list(read_manifest(folder))
    pipe.set_progress_bar_config(disable=True)
    for i in tqdm(range(0, len(records), batch_size), desc=f"{folder.name}: edits", unit="batch"):
        part = records[i : i + batch_size]
        images = pipe(
            [folder / r["src_image"] for r in part],
            ["edit this"] * len(part) if blank else [r["instruction"] for r in part],
            objects=[[] for _ in part] if blank else None,
            generator=torch.Generator().manual_seed(0),
        ).images
        for record, image in zip(part, images, strict=True):
            image.save(edits / f"{record['id']}.png")


def reconstruct_targets(pipe: ReasonBrainPipeline, folder: Path, out: Path) -> None:
    """The true targets through the autoencoder and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    for record in read_manifest(folder):
        target = to_tensor([Image.open(folder / record["tgt_image"])]).to(pipe.device)
        to_pil(pipe.diffusion.decode(pipe.diffusion.encode(target)))[0].save(out / f"{record['id']}.png")


def rows(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| split | system | outcome check passed | error inside the mask | error outside |",
        "|---|---|---|---|---|",
    ]
    for split, systems in report.items():
        for system, s in systems.items():
            cells = f"{100 * s['passed']:.1f} %", f"{s['error_inside']:.4f}", f"{s['error_outside']:.4f}"
            lines.append(f"| {split} | {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--splits", nargs="+", default=SPLITS, choices=SPLITS + ("val",))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--blank", action="store_true", help="also edit without the instruction")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    pipe = ReasonBrainPipeline.from_pretrained(args.checkpoint, args.overrides)
    report: dict[str, Any] = {}
    for split in args.splits:
        folder = args.output / split
        if not (folder / "manifest.jsonl").exists():
            write_split(split, args.count, args.seed, folder)
        edit_split(pipe, folder, folder / "edits", args.batch_size)
        scores = score(folder, folder / "edits")
        (folder / "score.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
        report[split] = {"ReasonBrain tiny": scores["edits"]}
        if args.blank:
            edit_split(pipe, folder, folder / "blank", args.batch_size, blank=True)
            report[split]["the same, instruction withheld"] = score(folder, folder / "blank")["edits"]
        reconstruct_targets(pipe, folder, folder / "reconstructed")
        report[split]["do nothing"] = scores["sources"]
        report[split]["autoencoder on the true target"] = score(folder, folder / "reconstructed")["edits"]
        report[split]["true target"] = scores["targets"]
        (args.output / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(rows(report))


if __name__ == "__main__":
    main()
