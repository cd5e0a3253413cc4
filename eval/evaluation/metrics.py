"""Metrics: functions of a record and an edit, computed from pixels or by the networks of networks.py.

    case = look_at(record, edit)
    measured = scores(case, {"L1": METRICS["L1"]}, Models())

Where a record has a change mask, metrics are also computed **inside and outside** the mask. Means over pixels (L1, L2,
PSNR) are taken over the pixels of the region. SSIM is the mean of its local map over the region; windows at the border
reach 5 pixels across it. For networks (LPIPS, DINO, CLIP) both pictures are made black outside the region, as in
SmartEdit (TencentARC/SmartEdit, test/metrics_evaluation.py).

An edit is compared at the size of its target, or of the source if there is no target. It is scaled with Pillow's
bicubic filter, as in MagicBrush (OSU-NLP-Group/MagicBrush, evaluation/image_eval.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reasonbrain.data.crop import BENT, bent
from reasonbrain.data.record import Record
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.networks import Models, cosine

TOP_PSNR = 100.0  # in dB; equal pictures, whose PSNR is infinite, get this


@dataclass(frozen=True)
class Case:
    """A record and an edit of it, scaled to one size."""

    record: Record
    edit: Image.Image
    source: Image.Image
    target: Image.Image | None
    mask: np.ndarray | None  # [h, w] bool: where the edit may change the picture; None if unknown
    where: np.ndarray | None = None  # [h, w] bool: the region to measure; None for the whole picture

    def pixels(self, name: str) -> np.ndarray:
        """``edit``, ``source`` or ``target`` as float64 in 0..1: [h, w, 3], or [n, 3] for a region."""
        array = np.asarray(getattr(self, name), dtype=np.float64) / 255
        return array if self.where is None else array[self.where]

    def picture(self, name: str) -> Image.Image:
        """``edit``, ``source`` or ``target`` as a picture, black outside the region."""
        image: Image.Image = getattr(self, name)
        return image if self.where is None else Image.fromarray(np.asarray(image) * self.where[..., None])

    def blacken_outside(self, where: np.ndarray) -> Case:
        """The same case with pictures that are black outside ``where`` [h, w] bool, and measured as a whole."""
        case = replace(self, where=where)
        target = case.picture("target") if case.target else None
        return replace(self, edit=case.picture("edit"), source=case.picture("source"), target=target)

    def has(self, need: str) -> bool:
        """Whether the record has a ``target``, a ``background`` outside its mask, a ``caption`` of the target,
        ``captions`` of source and target, or the ``object`` in its mask that ReasonEdit names (its note CLIP)."""
        if need == "target":
            return self.target is not None
        if need == "background":
            return self.mask is not None and not self.mask.all()
        if need == "object":
            return self.mask is not None and bool(self.mask.any() and self.record.notes.get("CLIP"))
        before, after = self.record.captions or ("", "")
        return bool(after) if need == "caption" else bool(before and after)


def look_at(record: Record, edit: Image.Image, size: int | None = None) -> Case:
    """A record and its edit, scaled to ``size`` x ``size`` pixels; None for the size of the target, or of the source
    if there is no target. Raises UserError for a mask whose aspect ratio differs from that of the source."""
    if record.mask and bent(record.mask.size, record.source.size) > BENT:
        sides = [f"{i.width}x{i.height}" for i in (record.source, record.mask)]
        raise UserError(f"the source is {sides[0]} and the mask {sides[1]}; both need one aspect ratio")
    pixels = (size, size) if size else (record.target or record.source).size

    def scale(image: Image.Image) -> Image.Image:
        return image.resize(pixels, Image.Resampling.BICUBIC)

    target = scale(record.target) if record.target else None
    mask = None
    if record.mask:
        mask = np.asarray(record.mask.convert("L").resize(pixels, Image.Resampling.NEAREST)) > 127
    return Case(record, scale(edit), scale(record.source), target, mask)


Measure = Callable[[Case, Models], float]


@dataclass(frozen=True)
class Metric:
    """A metric and its requirements."""

    measure: Measure
    needs: tuple[str, ...] = ()  # parts of the record (``Case.has``) and networks (``Models.NAMES``)
    higher_is_better: bool = True
    regions: bool = True  # also computed inside and outside the mask


def scores(case: Case, metrics: dict[str, Metric], models: Models) -> dict[str, float | None]:
    """The value of every metric by name; with a mask, also ``<name> inside`` and ``<name> outside``. None if the record
    lacks what the metric needs, or if the region is empty."""
    found: dict[str, float | None] = {}
    for name, metric in metrics.items():
        able = all(case.has(need) for need in metric.needs if need not in Models.NAMES)
        found[name] = metric.measure(case, models) if able else None
        if metric.regions and case.mask is not None:
            for region, where in (("inside", case.mask), ("outside", ~case.mask)):
                there = able and where.any()
                found[f"{name} {region}"] = metric.measure(replace(case, where=where), models) if there else None
    return found


def l1(case: Case, models: Models, reference: str = "target") -> float:
    """Mean absolute difference, 0..1."""
    return float(np.abs(case.pixels("edit") - case.pixels(reference)).mean())


def l2(case: Case, models: Models, reference: str = "target") -> float:
    """Mean squared difference, 0..1, without a root, like MagicBrush's L2."""
    return float(np.square(case.pixels("edit") - case.pixels(reference)).mean())


def psnr(case: Case, models: Models, reference: str = "target") -> float:
    """Peak signal-to-noise ratio in dB, at most ``TOP_PSNR``."""
    a, b = case.pixels("edit"), case.pixels(reference)
    return TOP_PSNR if np.array_equal(a, b) else min(TOP_PSNR, float(peak_signal_noise_ratio(b, a, data_range=1)))


def ssim(case: Case, models: Models, reference: str = "target") -> float:
    """Structural similarity (Wang et al. 2004): Gaussian windows of 11 pixels, sigma 1.5, averaged over channels and
    all positions. At the border the picture is mirrored, as in torchmetrics, which SmartEdit uses."""
    a, b = (np.asarray(getattr(case, name), dtype=np.float64) / 255 for name in ("edit", reference))
    a, b = (np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="reflect") for image in (a, b))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    local = structural_similarity(a, b, data_range=1.0, full=True, **options)[1][5:-5, 5:-5]
    return float(local.mean() if case.where is None else local[case.where].mean())


def lpips(case: Case, models: Models, reference: str = "target") -> float:
    """Learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924), computed by torchmetrics."""
    return models.lpips(case.picture("edit"), case.picture(reference))


def clip_image(case: Case, models: Models, reference: str = "target") -> float:
    """Cosine similarity of CLIP's image embeddings: CLIP-I; MGIE's CVS; with the source, Emu Edit's CLIP_im."""
    return cosine(models.clip.image(case.picture("edit")), models.clip.image(case.picture(reference)))


def dino(case: Case, models: Models, reference: str = "target") -> float:
    """Cosine similarity of DINO's [CLS] embeddings (arXiv:2104.14294)."""
    return cosine(models.dino.image(case.picture("edit")), models.dino.image(case.picture(reference)))


def clip_text(case: Case, models: Models) -> float:
    """Cosine similarity of CLIP's embeddings of the edit and of the target's caption: CLIP-T; MGIE's CTS; Emu Edit's
    CLIP_out."""
    return cosine(models.clip.image(case.picture("edit")), models.clip.text(_captions(case)[1]))


def clip_score(case: Case, models: Models) -> float:
    """max(100 cos, 0), scaled as in torchmetrics; Hessel et al. (arXiv:2104.08718) use 2.5 in place of 100."""
    return max(100 * clip_text(case, models), 0.0)


def clip_direction(case: Case, models: Models) -> float:
    """Cosine similarity of the change in CLIP's normalised image embedding and the change in its text embedding
    (StyleGAN-NADA, arXiv:2108.00946, eq. 2; InstructPix2Pix). 0 if the edit changed nothing."""
    image, text = models.clip.image, models.clip.text
    before, after = _captions(case)
    return cosine(image(case.picture("edit")) - image(case.picture("source")), text(after) - text(before))


def object_score(case: Case, models: Models) -> float:
    """CLIP Score of the edit cropped to the mask's bounding box, with the name of the object. As in SmartEdit, the box
    ends one pixel before the mask's last row and column."""
    assert case.mask is not None
    rows, columns = (np.flatnonzero(case.mask.any(axis)) for axis in (1, 0))
    left, top = columns[0], rows[0]
    box = case.edit.crop((left, top, max(columns[-1], left + 1), max(rows[-1], top + 1)))
    return max(100 * cosine(models.clip.image(box), models.clip.text(case.record.notes["CLIP"])), 0.0)


def background(measure: Measure) -> Measure:
    """SmartEdit's comparison of the background: ``measure`` of source and edit as whole pictures that are black inside
    the mask."""

    def measure_background(case: Case, models: Models) -> float:
        assert case.mask is not None
        return measure(case.blacken_outside(~case.mask), models)

    return measure_background


def _captions(case: Case) -> tuple[str, str]:
    assert case.record.captions
    return case.record.captions


# comparisons of the edit with another picture: function, networks, whether higher is better
PAIRED: dict[str, tuple[Callable[..., float], tuple[str, ...], bool]] = {
    "L1": (l1, (), False),
    "L2": (l2, (), False),
    "PSNR": (psnr, (), True),
    "SSIM": (ssim, (), True),
    "LPIPS": (lpips, ("lpips",), False),
    "CLIP-I": (clip_image, ("clip",), True),
    "DINO": (dino, ("dino",), True),
}
METRICS: dict[str, Metric] = {
    **{name: Metric(measure, ("target", *models), higher) for name, (measure, models, higher) in PAIRED.items()},
    "CVS": Metric(clip_image, ("target", "clip")),
    "CLIP-T": Metric(clip_text, ("caption", "clip")),
    "CTS": Metric(clip_text, ("caption", "clip")),
    "CLIP Score": Metric(clip_score, ("caption", "clip")),
    "CLIP direction": Metric(clip_direction, ("captions", "clip")),
    **{
        f"{name} to source": Metric(partial(measure, reference="source"), models, higher)
        for name, (measure, models, higher) in PAIRED.items()
    },
    **{
        f"{name} of background": Metric(
            background(partial(measure, reference="source")), ("background", *models), higher, regions=False
        )
        for name, (measure, models, higher) in PAIRED.items()
    },
    "CLIP Score of object": Metric(object_score, ("object", "clip"), regions=False),
}
