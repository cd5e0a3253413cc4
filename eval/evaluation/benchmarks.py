"""The benchmarks: which records, which metrics, by which networks, at which size. One row each.

    row = find("magicbrush")

- **magicbrush**: L1, L2, CLIP-I, DINO and CLIP-T to the target, CLIP ViT-B/32 and DINO ViT-S/16, at the target's size
  (OSU-NLP-Group/MagicBrush, evaluation/image_eval.py). Its pictures are 1024 x 1024.
- **emu_edit**: CLIP_dir, CLIP_im, CLIP_out, L1 and DINO (Sheynin et al., arXiv:2311.10089, section 5). There is no
  target: all but CLIP_dir and CLIP_out compare with the source. The paper names no networks; these are MagicBrush's,
  which UltraEdit took (HaozheZhao/UltraEdit, issue 18). Its pictures are 512 x 512.
- **reasonedit**: PSNR, SSIM, LPIPS (SqueezeNet) and mean squared error of the background, CLIP Score (ViT-L/14) of the
  object, at 256 x 256 (TencentARC/SmartEdit, test/metrics_evaluation.py).
- **editworld**, **reason50k**: CLIP Score of the edit and its caption (arXiv:2405.14785; arXiv:2507.01908, section 5).
  Neither says by which CLIP; this is torchmetrics' default, ViT-L/14. The tables there are a hundredth of it. How well
  the rest is kept is measured besides.
- **instructpix2pix**: CLIP direction and CLIP-I to the source, by ViT-L/14 (timothybrooks/instruct-pix2pix,
  metrics/clip_similarity.py, which scales without smoothing; here CLIP's own preparation).
- **mgie**: L1, SSIM, LPIPS, DINO, CVS and CTS (arXiv:2309.17102, section 4) on any manifest, networks as MagicBrush's.
- **manifest**: every metric to the target, and what changed from the source, on any manifest.
- **mini**: ReasonMini, see mini.py.
- **risebench**, **kris**: judged, see judged.py; with or without a judge, how well the rest is kept.

With a judge the judged metrics of judged.py come before these.
"""

from __future__ import annotations

from dataclasses import dataclass

from reasonbrain.data.opening import open_reader
from reasonbrain.data.record import Record, Records
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.judged import JUDGED, Judged
from reasonbrain.eval.evaluation.metrics import METRICS, Metric
from reasonbrain.eval.evaluation.networks import CLIP_B, CLIP_L, DINO_S
from reasonbrain.modules.data.reasonmini.benchmark import PASSED, MiniSplits

KEPT = ("L1 to source", "SSIM to source", "DINO to source")  # how far from the source: all of it, and by region


@dataclass(frozen=True)
class Benchmark:
    """``reader``: the records' ``data.name``. ``metrics``: the most telling first; worst cases go by it. ``compared``:
    side in pixels at which pictures are compared, if not at the target's. ``groups``: ``notes`` that get tables of
    their own, as the category does. ``judged``: its metrics besides, where there is a judge."""

    reader: str
    metrics: tuple[str, ...]
    compared: int | None = None
    clip: str = CLIP_B
    dino: str = DINO_S
    lpips: str = "alex"
    groups: tuple[str, ...] = ("category",)
    judged: tuple[str, ...] = ("Ins-Align", "MLLM Score")

    def records(self, data: str | None, limit: int | None) -> Records:
        """The first ``limit`` records of ``data``, each picture at its own size. Raises UserError like the reader."""
        if self.reader == "mini":
            return MiniSplits(data, limit)
        if data is None:
            raise UserError(f"--data: the benchmark needs its folder or manifest to be read as '{self.reader}'")
        records = open_reader(self.reader, data)
        return First(records, limit) if limit else records

    def chosen(self, names: tuple[str, ...] = (), judge: bool = False) -> dict[str, Metric | Judged]:
        """Its metrics, or those named. Raises UserError for an unknown one, and for a judged one without a judge."""
        known: dict[str, Metric | Judged] = {**METRICS, **(PASSED if self.reader == "mini" else {}), **JUDGED}
        spelled = {name.lower(): name for name in known}
        for name in names:
            if name.lower() not in spelled:
                raise UserError(f"metric '{name}' is not one of {', '.join(known)}")
            if spelled[name.lower()] in JUDGED and not judge:
                raise UserError(f"metric '{name}' needs a judge: --judge and --judge-model")
        names = names or (self.judged if judge else ()) + self.metrics
        return {spelled[name.lower()]: known[spelled[name.lower()]] for name in names}


@dataclass
class First:
    """The first ``count`` records."""

    records: Records
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.records))

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


BENCHMARKS = {
    "mini": Benchmark("mini", ("outcome", "L1", "PSNR", "SSIM"), groups=("split", "category", "kind")),
    "magicbrush": Benchmark("magicbrush", ("DINO", "CLIP-I", "CLIP-T", "L1", "L2", *KEPT)),
    "emu_edit": Benchmark(
        "emu_edit", ("CLIP direction", "CLIP-I to source", "CLIP-T", "L1 to source", "DINO to source")
    ),
    "reasonedit": Benchmark(
        "reasonedit",
        (
            "CLIP Score of object",
            "PSNR of background",
            "SSIM of background",
            "LPIPS of background",
            "L2 of background",
            *KEPT,
        ),
        compared=256,
        clip=CLIP_L,
        lpips="squeeze",
    ),
    "editworld": Benchmark("editworld", ("CLIP Score", *KEPT), clip=CLIP_L),
    "reason50k": Benchmark("reason50k", ("CLIP Score", *KEPT), clip=CLIP_L),
    "instructpix2pix": Benchmark("instructpix2pix", ("CLIP direction", "CLIP-I to source"), clip=CLIP_L),
    "risebench": Benchmark(
        "risebench",
        KEPT,
        groups=("category", "subtask"),
        judged=("RISE score", "RISE accuracy", "RISE reasoning", "RISE consistency", "RISE plausibility"),
    ),
    "kris": Benchmark("kris", KEPT, judged=("KRIS instruction", "KRIS knowledge", "KRIS consistency", "KRIS quality")),
    "mgie": Benchmark("manifest", ("DINO", "L1", "SSIM", "LPIPS", "CVS", "CTS")),
    "manifest": Benchmark(
        "manifest",
        (
            *("DINO", "L1", "L2", "PSNR", "SSIM", "LPIPS", "CLIP-I", "CLIP-T", "CLIP direction", "CLIP Score"),
            *KEPT,
        ),
    ),
}


def find(name: str) -> Benchmark:
    """A benchmark by name. Raises UserError."""
    if name not in BENCHMARKS:
        raise UserError(f"benchmark '{name}' is not one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
