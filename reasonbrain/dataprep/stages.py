"""The stages of Reason50K's construction, target first (arXiv:2507.01908). Each is a function from row to row.

target        scales the target picture and the seed's mask
instruction   an LLM rewrites the prompt into a hypothetical instruction, and names the category if the seed has none
objects       finds the objects that the instruction names
sources       generates candidates for the source picture from the objects and the target
measured      filters: a candidate shows the objects (CLIP), and the target's scene, but not the target itself (LPIPS)
judged        an MLLM scores the remaining candidates; the best one becomes the source

A stage adds fields. ``dropped`` in a row or in one of its ``candidates`` is the reason why later stages skip it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from reasonbrain.data.reader import white
from reasonbrain.data.record import SCENARIOS
from reasonbrain.errors import UserError
from reasonbrain.objects import find_objects, finder_name
from reasonbrain.utils.endpoint import Endpoint, Refused
from reasonbrain.utils.files import writing
from reasonbrain.utils.images import load_image, save_image
from reasonbrain.utils.journal import JsonRow

MULTIPLE = 16  # of the sides of target pictures, so that every latent diffusion model here can encode them
LONGEST = 400  # maximum number of characters of an instruction

KINDS = {
    "physical": "by the laws of physics",
    "temporal": "because time passes",
    "causal": "because something causes it",
    "story": "as a story goes on",
}
REWRITE = """This is a picture: {prompt}

It is the outcome of something. Write one hypothetical instruction or question about the moment before, whose answer is
this picture{kind}. Name the things that were there before, and do not describe the outcome. For example: "What would
happen if the ice cube on the plate were left in the sun?" Answer with this sentence alone."""
CATEGORY = """"{instruction}"

Is what this asks for physical (by the laws of physics), temporal (because time passes), causal (because something
causes it) or story (as a story goes on)? Answer with one word."""
JUDGE = """The pictures are the source and the target of an edit. The instruction is: "{instruction}"

Does the target show what would come of the source by this instruction, with everything else kept? Answer with one whole
number, from 0 (not at all) to 10 (exactly)."""

NUMBER = re.compile(r"-?\d+(?:[.,]\d+)?(?:\s*/\s*10\b)?")


@dataclass(frozen=True)
class Settings:
    """The settings of a build, the same for all rows of a folder."""

    model: str  # the endpoint's model
    pipeline: str  # a folder or a hub id of a diffusers text-to-image or inpainting pipeline
    clip: str  # this and the next: as in eval/evaluation/networks.py
    lpips: str  # "none" skips this filter
    candidates: int = 4  # per row
    strength: float = 0.85  # how much of a candidate is generated anew; 1: all of it
    steps: int | None = None  # of sampling; None: the pipeline's default
    size: int = 1024  # longest side in pixels
    min_clip: float = 0.2  # cosine similarity of a candidate and its objects
    min_lpips: float = 0.05  # distance of a candidate from the target
    max_lpips: float = 0.7
    min_score: int = 7  # of the judge, 0 to 10


@dataclass
class Tools:
    """What stages use. Models are loaded when a stage first needs them, so tools can be sent to other processes."""

    folder: Path  # the output folder
    seeds: Path  # paths of the seeds' pictures are relative to this folder
    settings: Settings
    llm: Endpoint
    models: Any  # CLIP and LPIPS: Models of eval/evaluation/networks.py

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers inpainting pipeline, which starts from the noised target. With an all-white mask this is
        image-to-image generation. Raises UserError if diffusers cannot load it for inpainting."""
        import torch
        from diffusers import AutoPipelineForInpainting

        gpu = torch.cuda.is_available()
        name = self.settings.pipeline
        try:
            pipe = AutoPipelineForInpainting.from_pretrained(name, torch_dtype=torch.bfloat16 if gpu else torch.float32)
        except (OSError, ValueError) as e:
            raise UserError(f"pipeline '{name}' cannot be loaded for inpainting: {e}") from None
        pipe.set_progress_bar_config(disable=True)
        return pipe.to("cuda" if gpu else "cpu")

    def picture(self, row: JsonRow, name: str) -> Path:
        """The path of a row's picture."""
        return self.folder / "pictures" / row["id"] / f"{name}.png"


def target(row: JsonRow, tools: Tools) -> JsonRow:
    """Adds no field. Writes target.png, and mask.png (white where the picture may change) if the seed has a mask."""
    try:
        image = load_image(tools.seeds / row["image"])
        shrink = min(1.0, tools.settings.size / max(image.size))
        width, height = (max(1, round(side * shrink / MULTIPLE)) * MULTIPLE for side in image.size)
        mask = white(tools.seeds / row["mask"]) if "mask" in row else None
    except UserError as e:
        return row | {"dropped": str(e)}
    with writing(tools.folder):
        tools.picture(row, "target").parent.mkdir(parents=True, exist_ok=True)
    save_image(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), tools.picture(row, "target"))
    if mask:
        save_image(ImageOps.fit(mask, (width, height), Image.Resampling.NEAREST), tools.picture(row, "mask"))
    return row


def instruction(row: JsonRow, tools: Tools) -> JsonRow:
    """Adds ``instruction``, and ``category`` if the seed has none."""
    kind = f", which came {KINDS[row['category']]}" if row.get("category") else ""
    said = answer_of(tools.llm.ask(REWRITE.format(prompt=row["prompt"], kind=kind)))
    words = " ".join(said.split()).strip("\"'“” ")
    if not words or len(words) > LONGEST:
        return row | {"dropped": f"the instruction has {len(words)} characters"}
    row = row | {"instruction": words}
    if row.get("category"):
        return row
    said = answer_of(tools.llm.ask(CATEGORY.format(instruction=words)))
    named = [name for name in SCENARIOS if name in said.lower()]
    return row | ({"category": named[0]} if len(named) == 1 else {"dropped": f"no category in '{said[:LONGEST]}'"})


def objects(row: JsonRow, tools: Tools) -> JsonRow:
    """Adds ``objects``, and ``finder``: the name of the method that found them."""
    found = find_objects(row["instruction"])
    row = row | {"objects": found, "finder": finder_name()}
    return row if found else row | {"dropped": "the instruction names no object"}


def sources(row: JsonRow, tools: Tools) -> JsonRow:
    """Adds ``candidates``, {"image", "seed"}. A candidate is generated from the noised target with the objects as the
    prompt; if the seed has a mask, only inside the mask. A picture that exists is not generated again."""
    import torch

    settings = tools.settings
    before = load_image(tools.picture(row, "target"))
    mask = Image.new("L", before.size, "white")
    if "mask" in row:
        mask = load_image(tools.picture(row, "mask")).convert("L")
    steps = {} if settings.steps is None else {"num_inference_steps": settings.steps}
    made = []
    for number in range(settings.candidates):
        file, seed = tools.picture(row, str(number)), zlib.crc32(f"{row['id']}/{number}".encode())
        made.append({"image": file.relative_to(tools.folder).as_posix(), "seed": seed})
        if file.exists():
            continue
        drawn = tools.pipeline(
            prompt=caption(row),
            image=before,
            mask_image=mask,
            strength=settings.strength,
            width=before.width,
            height=before.height,
            generator=torch.Generator().manual_seed(seed),
            **steps,
        )
        save_image(drawn.images[0].convert("RGB"), file)
    return row | {"candidates": made}


def measured(row: JsonRow, tools: Tools) -> JsonRow:
    """Adds ``clip`` (cosine with the objects) and ``lpips`` (distance from the target) to every candidate. Raises
    UserError if a network is not available."""
    settings, models = tools.settings, tools.models
    for name in ("clip", *(["lpips"] if settings.lpips != "none" else [])):
        if why := models.missing(name):
            raise UserError(why)
    after = load_image(tools.picture(row, "target"))
    made = []
    for candidate in row["candidates"]:
        image = load_image(tools.folder / candidate["image"])
        clip = float(models.clip.image(image) @ models.clip.text(caption(row)))  # both normalised: the cosine
        lpips = None if settings.lpips == "none" else models.lpips(image, after)
        reason = drop_reason(clip, lpips, settings)
        made.append(candidate | {"clip": clip, "lpips": lpips} | ({"dropped": reason} if reason else {}))
    return _left(row, made)


def drop_reason(clip: float, lpips: float | None, settings: Settings) -> str | None:
    """Why a candidate with these values is dropped; None if it is kept."""
    if clip < settings.min_clip:
        return f"CLIP {clip:.3f} is below {settings.min_clip:g}: not the objects"
    if lpips is not None and lpips < settings.min_lpips:
        return f"LPIPS {lpips:.3f} is below {settings.min_lpips:g}: the target itself"
    if lpips is not None and lpips > settings.max_lpips:
        return f"LPIPS {lpips:.3f} is above {settings.max_lpips:g}: another scene"
    return None


def judged(row: JsonRow, tools: Tools) -> JsonRow:
    """Adds ``score`` to every remaining candidate, and ``source``: the picture with the highest score."""
    after = load_image(tools.picture(row, "target"))
    made = []
    for candidate in row["candidates"]:
        if "dropped" not in candidate:
            pictures = {"The source:": load_image(tools.folder / candidate["image"]), "The target:": after}
            said = answer_of(tools.llm.ask(JUDGE.format(instruction=row["instruction"]), pictures))
            score, least = score_of(said), tools.settings.min_score
            if score is None:
                candidate = candidate | {"dropped": f"the judge gave no score: '{said[:LONGEST]}'"}
            elif score < least:
                candidate = candidate | {"score": score, "dropped": f"score {score} is below {least}"}
            else:
                candidate = candidate | {"score": score}
        made.append(candidate)
    left = [candidate for candidate in made if "dropped" not in candidate]
    best = max(left, key=lambda candidate: (candidate["score"], candidate["clip"]), default=None)
    made = [c if c is best or "dropped" in c else c | {"dropped": "another candidate is better"} for c in made]
    return _left(row | ({"source": best["image"]} if best else {}), made)


def score_of(said: str) -> int | None:
    """The judge's score: the only number in its answer, N or N/10. None if there are others, or if it is not a whole
    number from 0 to 10."""
    found = {number.split("/")[0].strip() for number in NUMBER.findall(said)}
    return int(*found) if len(found) == 1 and found <= {*map(str, range(11))} else None


def caption(row: JsonRow) -> str:
    """The prompt for the source picture: the objects, as in the paper."""
    return ", ".join(row["objects"])


def answer_of(said: str) -> str:
    """The answer without a reasoning model's <think> part, which ends with the last </think>."""
    return said.rpartition("</think>")[2].strip()


def _left(row: JsonRow, candidates: list[JsonRow]) -> JsonRow:
    row = row | {"candidates": candidates}
    return row if any("dropped" not in c for c in candidates) else row | {"dropped": "no candidate is left"}


@dataclass(frozen=True)
class Stage:
    """A stage: its function and how it is run. Rows that the endpoint refuses are dropped."""

    work: Callable[[JsonRow, Tools], JsonRow]
    threads: int = 1  # rows processed in parallel on one machine; more for stages that wait for the endpoint
    models: bool = False  # whether it runs networks of its own, on a GPU if there is one

    def __call__(self, row: JsonRow, tools: Tools) -> JsonRow:
        try:
            return self.work(row, tools)
        except Refused as e:
            return row | {"dropped": f"refused by the endpoint: {e}"}

    @property
    def name(self) -> str:
        return self.work.__name__


STAGES = (
    Stage(target, threads=4),
    Stage(instruction, threads=8),
    Stage(objects),
    Stage(sources, models=True),
    Stage(measured, models=True),
    Stage(judged, threads=8),
)
