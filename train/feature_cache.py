"""Cache of features from frozen models: regions, latents of source and target, and ``Plugin.image_features`` of the
source. Training does not change them, so they are computed once per record. A folder also holds the sentences that the
MLLM generates, where a slot reads them, and ``Plugin.prompt_features`` of these or of the instructions.

    reasonbrain data cache --config tiny -o DIR [key=value ...]          # precompute the features of all records
    reasonbrain train --config tiny -o RUN data.features=DIR             # train with them

Without a folder, features are computed when a record is first used, and kept in memory; sentences and their features
are computed in every step, because ZeRO-3 runs an MLLM in all processes at once. So they are with ``data.augment``,
which changes the instructions. Records are prefetched in a thread; models run in the main thread only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from reasonbrain.config.schema import Config, slot_config
from reasonbrain.data.opening import identity, open_records
from reasonbrain.data.record import Record, Size
from reasonbrain.errors import UserError, reason
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin_folder import save_tensors
from reasonbrain.train.buckets import Buckets
from reasonbrain.train.distributed import processes
from reasonbrain.utils.files import check_name, whole_file, writing

SHARD = 64  # records per file
MEMORY = 4 << 30  # bytes of features kept in memory without a folder
TENSORS = ("image", "regions", "source", "target")

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """A record with its cached features.

    image: [3, H, W] uint8
    regions: labels [H, W] int16
    source, target: latents [C, h, w]
    ready: ``image_features`` by slot, in the precision that they were computed in
    sentence: what the MLLM should say; "" if the record does not have it
    words: ``prompt_features`` by name for each instruction, or empty
    sentences: the MLLM's sentence for each instruction, or None
    named: with sentences, the objects in each instruction, or those that the MLLM named where there are none
    edits: ``Record.edits``
    """

    id: str
    instructions: Sequence[str]
    objects: list[str] | None
    image: Tensor
    regions: Tensor
    source: Tensor
    target: Tensor
    ready: dict[str, Tensor]
    sentence: str = ""
    words: list[dict[str, Tensor]] = field(default_factory=list)
    sentences: list[str] | None = None
    named: list[list[str]] | None = None
    edits: bool = True

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as in a cache file."""
        found = {name: getattr(self, name) for name in TENSORS} | {f"ready.{slot}": t for slot, t in self.ready.items()}
        return found | {f"words.{i}.{name}": t for i, words in enumerate(self.words) for name, t in words.items()}


class Ahead:
    """Wraps ``read`` with prefetching in a background thread."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read
        self.thread = ThreadPoolExecutor(1)
        self.coming: dict[int, Future[Any]] = {}

    def expect(self, numbers: Iterable[int]) -> None:
        """Prefetches these records; pending reads of earlier calls are cancelled."""
        for future in self.coming.values():
            future.cancel()
        self.coming = {number: self.thread.submit(self.read, number) for number in dict.fromkeys(numbers)}

    def __call__(self, number: int) -> Any:
        """Returns record ``number``; raises what ``read`` raises."""
        return self.coming[number].result() if number in self.coming else self.read(number)


class FeatureCache:
    """``features[number]`` is record ``number`` with its features, or a replacement of the same size if it is bad.

    Raises UserError for a bad record unless ``data.skip_bad`` is set, and for a folder (``data.features``) that was
    computed from other data or by other models, or is incomplete.
    """

    def __init__(self, cfg: Config, model: ReasonBrain) -> None:
        self.cfg, self.model = cfg, model
        diffusion = model.slot("diffusion")
        self.records = open_records(cfg.data, diffusion.multiple if diffusion else 1)
        self.bad: set[int] = set()
        self.kept: OrderedDict[int, Prepared] = OrderedDict()
        self.held = 0
        self.folder = Path(cfg.data.features) if cfg.data.features else None
        if self.folder:
            check_key(self.folder, key(cfg, model))
            there = len(list(self.folder.glob("*.safetensors")))
            if there < shards(len(self)):
                raise UserError(
                    f"data.features: '{self.folder}' holds {there} of {shards(len(self))} files; "
                    f"finish it: reasonbrain data cache -o {self.folder}"
                )
        self.buckets = Buckets(read_sizes(self.folder) if self.folder else self.records.sizes)
        self.read = Ahead(self._read if self.folder else self.records.__getitem__)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Prepared:
        for candidate in self.buckets.instead(number):
            try:
                found = self.read(candidate) if self.folder else self._remember(candidate)
            except UserError as e:
                self._bad(candidate, e)
                continue
            if found:
                return found
        raise UserError(f"data: none of the {len(self)} records can be read")

    def expect(self, numbers: Iterable[int]) -> None:
        """Prefetches records: with their features from the folder, otherwise their images only."""
        self.read.expect(n for n in numbers if n not in self.kept and n not in self.bad)

    def _bad(self, number: int, error: UserError) -> None:
        if not self.cfg.data.skip_bad:
            raise error
        if number not in self.bad:
            self.bad.add(number)
            log.warning(f"{error}; the next record takes its place ({len(self.bad)} bad so far)")

    def _remember(self, number: int) -> Prepared:
        if number in self.bad:
            raise UserError("known to be bad")
        if number not in self.kept:
            self.kept[number] = made = compute(self.model, self.read(number))
            self.held += made.bytes
            while self.held > MEMORY:
                self.held -= self.kept.popitem(last=False)[1].bytes
        return self.kept[number]

    def _read(self, number: int) -> Prepared | None:
        """Reads a record from the folder; None if it was bad when the folder was written."""
        assert self.folder
        words, file = _open(self.folder / f"{number // SHARD:06d}.safetensors")
        if str(number) not in words:
            return None
        said = dict(words[str(number)])
        ready = {slot: file.get_tensor(f"{number}.ready.{slot}") for slot in said.pop("ready")}
        names = said.pop("words", [])  # earlier versions wrote none
        told = [
            {name: file.get_tensor(f"{number}.words.{i}.{name}") for name in names}
            for i in range(len(said["instructions"]) if names else 0)
        ]
        tensors = {name: file.get_tensor(f"{number}.{name}") for name in TENSORS}
        return Prepared(**said, **tensors, ready=ready, words=told)

    def write(self, folder: Path) -> None:
        """Computes the features of all records and writes them to ``folder``; existing files are kept.

        The files are split over the processes. Raises UserError if the folder holds features of other data or models,
        is being written by another command, or cannot be written.
        """
        check_name(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "key.json").exists() and processes.rank() == 0:
                for name, value in (("sizes.json", self.records.sizes), ("key.json", key(self.cfg, self.model))):
                    with whole_file(folder / name) as file:
                        json.dump(value, file)
        except OSError as e:
            raise UserError(f"output '{folder}': {e.strerror}") from None
        processes.wait()
        check_key(folder, key(self.cfg, self.model))
        files = range(processes.rank(), shards(len(self)), processes.world())
        with processes.claimed(folder, self.model.device, f"output '{folder}' is being written"):
            for index in tqdm(files, desc="features", unit="file", disable=None):
                path = folder / f"{index:06d}.safetensors"
                if not path.exists() or not path.stat().st_size:  # empty: lost in a power failure
                    self._write_file(path, range(index * SHARD, min((index + 1) * SHARD, len(self))))
            processes.wait()

    def _write_file(self, path: Path, numbers: range) -> None:
        words: dict[str, dict[str, Any]] = {}
        tensors: dict[str, Tensor] = {}
        for number in numbers:
            try:
                made = compute(self.model, self.records[number], words=not self.cfg.data.augment)
            except UserError as e:
                self._bad(number, e)
                continue
            said = {"id": made.id, "instructions": list(made.instructions), "objects": made.objects}
            said |= {"ready": list(made.ready), "words": list(made.words[0]) if made.words else []}
            said |= {"sentence": made.sentence, "sentences": made.sentences, "named": made.named}
            words[str(number)] = said | {"edits": made.edits}
            tensors |= {f"{number}.{name}": tensor.contiguous() for name, tensor in made.tensors().items()}
        new = path.with_suffix(".new")
        with writing(path):
            save_tensors(tensors, new, {"words": json.dumps(words)})
            os.replace(new, path)


@torch.no_grad()
def compute(model: ReasonBrain, record: Record, words: bool = False) -> Prepared:
    """Computes the features of one record. words: also the sentences, and the features of the prompts.

    Records are not batched here: results would differ in the last bits with the batch, and a resumed run would not be
    exact. For the same reason, call it outside autocast and attention kernel contexts.

    Raises UserError for a record without a target that has an edit to learn.
    """
    target = record.target or (None if record.edits else record.source)
    if target is None:
        raise UserError(f"record '{record.id}' has no target, so it cannot be trained on")
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in (record.source, target)])
    both = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    device = model.device
    diffusion = model.slot("diffusion")
    images = both.to(device).float() / 255
    regions = model.segment(images[:1])
    latents = diffusion.encode(images) if diffusion else images
    ready = {slot: features[0].cpu() for slot, features in model.image_features(images[:1]).items()}
    tensors = both[0], regions[0].to("cpu", torch.int16), latents[0].cpu(), latents[1].cpu()
    found = Prepared(record.id, record.instructions, record.objects, *tensors, ready, record.sentence)
    found.edits = record.edits
    if words:
        batch = {slot: features[None] for slot, features in ready.items()}
        given = [record.sentence] if record.sentence else None
        told = [model.make_inputs(images[:1], [text], None, regions, batch, given) for text in record.instructions]
        if model.reads_sentence:
            told = [model.reason(inputs) for inputs in told]
            found.sentences = [inputs.sentences[0] for inputs in told]  # type: ignore[index]
            found.named = [inputs.objects[0] for inputs in told]
        prompts = [(inputs.sentences or inputs.instructions)[0] for inputs in told]
        made = [diffusion.prompt_features([prompt], device) for prompt in prompts] if diffusion else []
        found.words = [{name: t[0].cpu() for name, t in one.items()} for one in made if one]
    return found


@lru_cache(maxsize=256)
def _open(path: Path) -> tuple[dict[str, Any], Any]:
    try:
        file = safe_open(path, "pt")
        return json.loads(file.metadata()["words"]), file
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as e:
        raise UserError(
            f"data.features: '{path}' is damaged ({reason(e)}); delete it and repeat `reasonbrain data cache`"
        ) from None


def shards(records: int) -> int:
    """The number of shards that hold so many records."""
    return -(-records // SHARD)


def key(cfg: Config, model: ReasonBrain) -> dict[str, Any]:
    """Identifies what features depend on: the data, the settings of the segmentation, of ``image_features`` and of the
    words, and a hash of the weights of the frozen models. MLLM and text encoders are named only: ZeRO-3 holds parts of
    them."""
    weights = hashlib.blake2b(digest_size=16)
    for part in model.parts.values():
        for module in part.prepares().values():
            for tensor in module.state_dict().values():
                weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    segmenting = model.slot("frce.region")
    sources = segmenting.weight_sources if segmenting else ()
    region = {k: v for k, v in (slot_config(cfg.model, "frce.region") or {}).items() if k not in sources}
    settings = {slot: found for slot, part in model.prepared_slots().items() if (found := part.image_settings())}
    found = {"data": identity(cfg.data), "region": region, "settings": settings, "weights": weights.hexdigest()}
    readers = ["mllm", "diffusion"] if model.reads_sentence else ["diffusion"]
    told = {
        slot: part.prompt_settings(slot_config(cfg.model, slot) or {}) for slot in readers if (part := model.slot(slot))
    }
    if cfg.data.augment or not any(told.values()):
        return found
    thinking = cfg.model.thinking and asdict(cfg.model.thinking)
    return found | {"words": told | {"thinking": thinking}}


def read_sizes(folder: Path) -> list[Size]:
    """The image size of each record, as ``Records.sizes``. Raises UserError if the file is missing or damaged."""
    try:
        return json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"data.features: '{folder}' has no sizes.json ({e}); recreate it in another folder") from None


def check_key(folder: Path, wanted: dict[str, Any]) -> None:
    """Raises UserError if the features in the folder were not made for ``wanted``, which ``key`` returns."""
    try:
        made = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"data.features: '{folder}' was not made by `reasonbrain data cache`") from None
    for name, value in json.loads(json.dumps(wanted)).items():
        if not _same(made.get(name), value):
            raise UserError(
                f"data.features: '{folder}' was made with another {name}: {made.get(name)}, not {value}; "
                "choose another folder"
            )


def _same(made: Any, wanted: Any) -> bool:
    """Whether two values of a key are equal. Images that are missing now (None) equal any: features need none."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        both = made.keys() == wanted.keys()
        return both and all(_same(made[k], v) for k, v in wanted.items() if (k, v) != ("pictures", None))
    if isinstance(made, list) and isinstance(wanted, list):
        return len(made) == len(wanted) and all(map(_same, made, wanted))
    return made == wanted
