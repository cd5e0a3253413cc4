"""The benchmarks of published papers, one class each, with the source of every choice.

Most add ``KEPT`` to the paper's metrics: how much of the source was changed, overall and by region.
"""

from __future__ import annotations

from reasonbrain.eval.evaluation.benchmarks import Benchmark
from reasonbrain.eval.evaluation.networks import CLIP_L

KEPT = ("L1 to source", "SSIM to source", "DINO to source")


class MagicBrush(Benchmark):
    """L1, L2, CLIP-I, DINO and CLIP-T to the target, by CLIP ViT-B/32 and DINO ViT-S/16, at the target's size
    (OSU-NLP-Group/MagicBrush, evaluation/image_eval.py). Its pictures are 1024 x 1024."""

    reader = "magicbrush"
    metrics = ("DINO", "CLIP-I", "CLIP-T", "L1", "L2", *KEPT)


class EmuEdit(Benchmark):
    """CLIP_dir, CLIP_im, CLIP_out, L1 and DINO (Sheynin et al., arXiv:2311.10089, section 5).

    There is no target: all metrics but CLIP_dir and CLIP_out compare with the source. The paper names no networks;
    these are MagicBrush's, as in UltraEdit (HaozheZhao/UltraEdit, issue 18). Its pictures are 512 x 512."""

    reader = "emu_edit"
    metrics = ("CLIP direction", "CLIP-I to source", "CLIP-T", "L1 to source", "DINO to source")


class ReasonEdit(Benchmark):
    """PSNR, SSIM, LPIPS (SqueezeNet) and mean squared error of the background, and CLIP Score (ViT-L/14) of the object,
    at 256 x 256 (TencentARC/SmartEdit, test/metrics_evaluation.py)."""

    reader = "reasonedit"
    metrics = (
        *("CLIP Score of object", "PSNR of background", "SSIM of background", "LPIPS of background"),
        *("L2 of background", *KEPT),
    )
    compared = 256
    clip = CLIP_L
    lpips = "squeeze"


class EditWorld(Benchmark):
    """CLIP Score of the edit and its caption (arXiv:2405.14785). The paper does not name the CLIP model; ViT-L/14 is
    the default of torchmetrics. The paper's table shows a hundredth of the score."""

    reader = "editworld"
    metrics = ("CLIP Score", *KEPT)
    clip = CLIP_L


class Reason50K(EditWorld):
    """CLIP Score as for EditWorld (arXiv:2507.01908, section 5), on Reason50K's manifest."""

    reader = "manifest"


class InstructPix2Pix(Benchmark):
    """CLIP direction and CLIP-I to the source, by ViT-L/14 (timothybrooks/instruct-pix2pix,
    metrics/clip_similarity.py). The original scales pictures without antialiasing; this uses CLIP's preprocessing."""

    reader = "instructpix2pix"
    metrics = ("CLIP direction", "CLIP-I to source")
    clip = CLIP_L


class Mgie(Benchmark):
    """L1, SSIM, LPIPS, DINO, CVS and CTS (MGIE, arXiv:2309.17102, section 4) on any manifest, with MagicBrush's
    networks."""

    reader = "manifest"
    metrics = ("DINO", "L1", "SSIM", "LPIPS", "CVS", "CTS")


class AnyManifest(Benchmark):
    """Every metric to the target and the change from the source, on any manifest."""

    reader = "manifest"
    metrics = (
        *("DINO", "L1", "L2", "PSNR", "SSIM", "LPIPS", "CLIP-I", "CLIP-T", "CLIP direction", "CLIP Score"),
        *KEPT,
    )


class RiseBench(Benchmark):
    """Judged by reasoning, consistency and plausibility (arXiv:2504.02826, see judged.py). Also without a judge: how
    much of the source was changed."""

    reader = "risebench"
    metrics = KEPT
    judged_metrics = ("RISE score", "RISE accuracy", "RISE reasoning", "RISE consistency", "RISE plausibility")
    groups = ("category", "subtask")


class KrisBench(Benchmark):
    """Judged by instruction, knowledge, consistency and quality (arXiv:2505.16707, see judged.py). Also without a
    judge: how much of the source was changed."""

    reader = "kris"
    metrics = KEPT
    judged_metrics = ("KRIS instruction", "KRIS knowledge", "KRIS consistency", "KRIS quality")
