"""ReasonMini as a benchmark: whether the outcome is visible in the edit, and how much of the rest changed.

reasonbrain eval --benchmark mini -o REPORT [--data test] [--limit 200]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image

from reasonbrain.config.schema import DataConfig
from reasonbrain.data.record import Record, Records
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.benchmarks import Benchmark
from reasonbrain.eval.evaluation.edits import Edits, System
from reasonbrain.eval.evaluation.metrics import Case, Metric
from reasonbrain.eval.evaluation.networks import Models
from reasonbrain.modules.data.reasonmini import find_kind, kinds, make
from reasonbrain.modules.data.reasonmini.canvas import Look
from reasonbrain.modules.data.reasonmini.dataset import ReasonMini
from reasonbrain.utils.images import to_pil, to_tensor

SPLITS = ("test", "paraphrase", "compositional")
COUNT = 200  # records per split, unless a limit is given
SEED = 7  # of the records, fixed so that results are comparable
SIZE = 64  # pixels


class MiniSplits:
    """The first ``count`` records of each split, generated on the fly. A record's ``notes`` are its split, its kind,
    and the scene's params as JSON.

    ``splits``: one split; None for all three. ``names``: the kinds that take turns; empty for all. Raises UserError for
    an unknown split."""

    def __init__(self, splits: str | None, count: int | None, names: Sequence[str] = ()) -> None:
        self.names = names or [kind.name for _, kind in kinds()]
        self.splits = (splits,) if splits else SPLITS
        self.count = count or COUNT
        if splits and splits not in SPLITS:
            raise UserError(f"data '{splits}' is not a split of ReasonMini; choose from {', '.join(SPLITS)}")

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


def outcome_check(case: Case, models: Models) -> float:
    """1 if the check of the record's kind finds the outcome in the edit's pixels, else 0."""
    notes = case.record.notes
    return float(find_kind(notes["kind"])[1].check(Look(case.edit), json.loads(notes["params"])))


class MiniBenchmark(Benchmark):
    """Outcome check and distance from the target, on three splits generated on the fly: new scenes (``test``),
    held-out phrasings (``paraphrase``), and held-out combinations of object, colour and background
    (``compositional``). ``data`` selects one of them. ``limit`` is the number of records of each.

    Baselines: the unchanged source and the true target; for a model, also its edits without the instruction, and the
    true target passed through its autoencoder, which bounds the quality of its edits."""

    metrics = ("outcome", "L1", "PSNR", "SSIM")
    own_metrics = {"outcome": Metric(outcome_check, regions=False)}
    groups: ClassVar[tuple[str, ...]] = ("split", "category", "kind")

    def records(self, data: str | None, limit: int | None, trained_on: DataConfig | None = None) -> Records:
        """With ``trained_on``, only the kinds that occur in that data. Raises UserError for an unknown split."""
        turns = trained_on.options.get("turns", {}) if trained_on else {}
        return MiniSplits(data, limit, tuple(dict.fromkeys(ReasonMini(turns=turns).order)))

    def baselines(self, pipe: ReasonBrainPipeline | None, folder: Path, seed: int) -> dict[str, System]:
        """The edits without the instruction are saved in ``folder``/withheld."""
        systems = super().baselines(pipe, folder, seed) | {"true target": lambda record: record.target}
        if pipe is not None:
            without = Edits(folder / "withheld", pipe, seed, "edit this")
            systems |= {"instruction withheld": without, "autoencoder on the true target": reconstruct(pipe)}
        return systems


def reconstruct(pipe: ReasonBrainPipeline) -> Callable[[Record], Image.Image | None]:
    """The system whose edit is the true target, encoded and decoded by the pipeline's autoencoder."""

    @torch.no_grad()
    def autoencode(record: Record) -> Image.Image:
        assert record.target
        target = to_tensor([record.target]).to(pipe.device)
        return to_pil(pipe.diffusion.decode(pipe.diffusion.encode(target)))[0]

    return autoencode
