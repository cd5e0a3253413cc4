"""ReasonMini as a benchmark: did it happen, and was the rest left alone? Its table is the README's.

    reasonbrain eval --benchmark mini -o REPORT [--data test] [--limit 200]

Three splits: new scenes, phrasings never trained on, combinations of object, colour and background never trained on.
Beside the edits stand the untouched source, the true target, and of a model of ours its edits without the instruction
and its autoencoder alone on the true target, which is what an edit through it can reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from reasonbrain.data.record import Record
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.edits import Edits, System
from reasonbrain.eval.evaluation.metrics import Case, Metric
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.modules.data.reasonmini import find_kind, kinds, make
from reasonbrain.modules.data.reasonmini.canvas import Look
from reasonbrain.utils.images import to_pil, to_tensor

SPLITS = ("test", "paraphrase", "compositional")
COUNT = 200  # records a split, unless another number is asked for
SEED = 7  # of the world: the same records for everyone
SIZE = 64


class MiniSplits:
    """The first ``count`` records of each split, drawn on the fly. ``notes``: split, kind and the scene's params.
    ``names``: those of the kinds that take their turns, instead of all.

    Raises UserError for an unknown split."""

    def __init__(self, splits: str | None, count: int | None, names: Sequence[str] = ()) -> None:
        self.names = names or [kind.name for _, kind in kinds()]
        self.splits = (splits,) if splits else SPLITS
        self.count = count or COUNT
        if splits and splits not in SPLITS:
            raise UserError(f"data '{splits}': ReasonMini draws its own; choose a split from {', '.join(SPLITS)}")

    def __len__(self) -> int:
        return len(self.splits) * self.count

    def __getitem__(self, index: int) -> Record:
        split = self.splits[index // self.count]
        number = index % self.count
        s = make(split, number, SEED, SIZE, self.names[number % len(self.names)])
        notes = {"split": split, "kind": s.kind.name, "params": json.dumps(s.params)}
        mask = Image.fromarray(s.mask).convert("L")
        return Record(
            s.id, s.source, s.target, [s.instruction], s.objects, s.kind.category, mask, ("", s.outcome), notes
        )


def happened(case: Case, models: Models) -> float:
    """1 if the kind's check sees from the pixels that it happened, else 0."""
    notes = case.record.notes
    return float(find_kind(notes["kind"])[1].check(Look(case.edit), json.loads(notes["params"])))


PASSED = {"outcome": Metric(happened, regions=False)}


def baselines(pipe: ReasonBrainPipeline | None, folder: Path, seed: int) -> dict[str, System]:
    """What stands beside the edits, by name. Edits without the instruction are kept in ``folder``."""
    systems: dict[str, System] = {"true target": lambda record: record.target}
    if pipe is not None:
        without = Edits(folder / "withheld", pipe, seed, "edit this")
        systems |= {"instruction withheld": without, "autoencoder on the true target": reconstruct(pipe)}
    return systems


def reconstruct(pipe: ReasonBrainPipeline) -> Callable[[Record], Image.Image | None]:
    """The true target through the autoencoder and nothing else."""

    @torch.no_grad()
    def through(record: Record) -> Image.Image:
        assert record.target
        target = to_tensor([record.target]).to(pipe.device)
        return to_pil(pipe.diffusion.decode(pipe.diffusion.encode(target)))[0]

    return through
