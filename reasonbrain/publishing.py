"""Checkpoints to the model hub: the files that are uploaded, and the model card that says what they are.

reasonbrain push runs/mine someone/melter --report report
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.repocard_data import EvalResult
from omegaconf import OmegaConf

from reasonbrain import __version__
from reasonbrain.checkpoint import find_checkpoint, slot_folder
from reasonbrain.config.loading import make_config, read_config
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.errors import UserError, reason
from reasonbrain.plugin_folder import TRAINED
from reasonbrain.registry import SLOTS, plugin
from reasonbrain.utils.hub import FILES, REPOSITORY, hub_trouble, licence_of
from reasonbrain.utils.reading import read_json
from reasonbrain.utils.redact import redacted

TOP = ("config.yaml", "model_index.json", "pipeline.py")  # beside the slots' folders
CONFIGS = ("config.yaml", "model_index.json", "config.json")  # of a checkpoint, and of a slot
CARD = "README.md"
WEIGHTS = "*.safetensors*"  # those of the repository that the checkpoint lacks are deleted


def push(
    name: str | Path,
    repository: str,
    reports: Sequence[Path] = (),
    private: bool | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads a checkpoint in one commit to a repository, ``org/name``, which is made if it is missing. A README.md in
    the checkpoint's folder is its model card; otherwise it gets ``model_card``. Returns the URL of the commit or of the
    pull request.

    name: as for ``find_checkpoint``. reports: folders of `reasonbrain eval`, for the model card. private, token,
    create_pr: as in huggingface_hub. Raises UserError for a checkpoint that another machine could not load, for a
    folder that is no report, and for what the hub refuses."""
    if not _is_id(repository):
        raise UserError(f"repository '{repository}' is not of the form ORG/NAME")
    folder = find_checkpoint(name)
    cfg = make_config(read_config(str(folder / "config.yaml")), reads_data=False)
    files = {file.as_posix(): folder / file for file in _files(folder, cfg)}
    given = {name: _for_others(path) if path.name in CONFIGS else path for name, path in files.items()}
    if CARD not in files:
        given[CARD] = str(model_card(repository, cfg, reports)).encode()
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        old = {file for file in api.list_repo_files(repository) if fnmatch(file, WEIGHTS)} - set(given)
        add = [CommitOperationAdd(file, content) for file, content in given.items()]
        delete = [CommitOperationDelete(file) for file in sorted(old)]
        text = message or f"Upload {repository.partition('/')[2]} with ReasonBrain {__version__}"
        commit = api.create_commit(repository, [*add, *delete], commit_message=text, create_pr=create_pr)
    except Exception as e:  # whatever huggingface_hub and its HTTP library raise
        why = hub_trouble(e, repository) or reason(e)
        raise UserError(f"'{name}' was not uploaded to '{repository}': {why}") from None
    return str(commit.pr_url or commit.commit_url)


def _files(folder: Path, cfg: Config) -> list[Path]:
    """The files of a checkpoint, relative to its folder; nothing else that lies there.

    Raises UserError for a slot whose published weights are in a folder of this machine."""
    found = [Path(name) for name in (*TOP, CARD) if (folder / name).is_file()]
    for slot in SLOTS:
        params, target = slot_config(cfg.model, slot), slot_folder(folder, slot)
        if params is None:
            continue
        refers = any(target.glob(f"{TRAINED}.safetensors*"))
        for source in plugin(slot, params["name"]).weight_sources if refers else ():
            if params.get(source) and (Path(params[source]).exists() or not _is_id(params[source])):
                raise UserError(
                    f"model.{slot}.{source}: '{params[source]}' is no repository of the hub, so nobody else can load "
                    f"this checkpoint; export it whole: reasonbrain export RUN -o DIR"
                )
        inside = sorted(path for path in target.rglob("*") if any(fnmatch(path.name, pattern) for pattern in FILES))
        found += [path.relative_to(folder) for path in inside if path.is_file()]
    return found


def _is_id(name: str) -> bool:
    """Whether a name is of the form org/name."""
    return "@" not in name and REPOSITORY.fullmatch(name) is not None


def _for_others(path: Path) -> bytes:
    """The content of a configuration file, with only the last part of absolute paths, and without passwords."""

    def shared(value: Any, of_training: bool = False) -> Any:
        if isinstance(value, dict):
            return {key: shared(of, of_training or key in ("data", "train")) for key, of in value.items()}
        if isinstance(value, list):
            return [shared(of, of_training) for of in value]
        if not isinstance(value, str):
            return value
        is_path = PurePath(value).is_absolute() and (of_training or Path(value).exists())  # "/no_think" is a prompt
        return PurePath(value).name if is_path else redacted(value)

    if path.suffix == ".json":
        return json.dumps(shared(json.loads(path.read_text(encoding="utf-8"))), indent=2).encode()
    return OmegaConf.to_yaml(OmegaConf.create(shared(OmegaConf.to_container(read_config(str(path)))))).encode()


def model_card(repository: str, cfg: Config, reports: Sequence[Path] = ()) -> ModelCard:
    """A model card: how to use the model, its parts with the licences of published weights, its training, and the
    scores of ``reports``, folders of `reasonbrain eval`. Raises UserError for a folder that is no report."""
    slots = {slot: params for slot in SLOTS if (params := slot_config(cfg.model, slot))}
    bases = {
        slot: [params[key] for key in plugin(slot, params["name"]).weight_sources if _is_id(str(params.get(key)))]
        for slot, params in slots.items()
    }
    licences = {base: licence_of(base) for of_slot in bases.values() for base in of_slot}
    scores = [score for report in reports for score in _scores(report)]
    results = [
        EvalResult("image-to-image", s["benchmark"], s["benchmark"], s["score"], float(s["mean"])) for s in scores
    ]
    common = set(licences.values())
    data = ModelCardData(
        library_name="reasonbrain",
        pipeline_tag="image-to-image",
        tags=["image-editing", "instruction-based-image-editing", "reasoning"],
        base_model=list(licences) or None,
        license=common.pop() if len(common) == 1 else "other" if common else None,
        model_name=repository if results else None,
        eval_results=results or None,
        ignore_metadata_errors=True,
    )
    rows = [
        [slot, f"`{slots[slot]['name']}`", ", ".join(f"{base} ({licences[base]})" for base in bases[slot]) or "none"]
        for slot in slots
    ]
    train = cfg.train
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {repository.partition('/')[2]}\n",
        'Edits an image as a hypothetical instruction implies ("What would happen if ...?"). A model of ReasonBrain.\n',
        "## Use\n",
        f'```bash\nreasonbrain edit photo.png "What if ...?" --checkpoint {repository} -o edited.png\n```\n',
        f"```python\nfrom reasonbrain import ReasonBrainPipeline\n\npipe = ReasonBrainPipeline.from_pretrained"
        f'("{repository}")\npipe("photo.png", "What if ...?").images[0].save("edited.png")\n```\n',
        "## Parts\n",
        _markdown([["slot", "plug-in", "published weights (their licence)"], *rows]),
        "## Training\n",
        f"Configured for {train.steps:,} steps of {train.batch_size} records at a learning rate of {train.lr:g}, on "
        f"data set `{cfg.data.name}` at {cfg.data.size} pixels; config.yaml has every setting.\n"
        if cfg.data.name
        else "Not trained: every part edits as published.\n",
        "## Evaluation\n",
        _markdown(
            [
                ["benchmark", "score", "records", "mean", "95 % interval"],
                *([s["benchmark"], f"{s['score']} {s['arrow']}", s["n"], s["mean"], s["interval"]] for s in scores),
            ]
        )
        if scores
        else "Not stated.\n",
    ]
    return ModelCard("\n".join(parts), ignore_metadata_errors=True)


def _scores(report: Path) -> list[dict[str, Any]]:
    """The scores of all records of a report. Raises UserError for a folder that is no report."""
    what = f"report '{report}'"
    found = read_json(report / "report.json", what)
    try:
        table = next(table for table in found["tables"] if table["group"] == "all")
        return [
            {
                "benchmark": str(found["benchmark"]),
                "score": str(name),
                "arrow": "(higher is better)" if of["higher_is_better"] else "(lower is better)",
                "n": str(edits["n"]),
                "mean": f"{edits['mean']:.4g}",
                "interval": f"{edits['low']:.4g} to {edits['high']:.4g}" if edits["low"] is not None else "",
            }
            for name, of in table["scores"].items()
            if (edits := of["systems"]["edits"])["mean"] is not None
        ]
    except (LookupError, TypeError, AttributeError, ValueError, StopIteration) as e:
        raise UserError(f"{what} is no report of `reasonbrain eval` ({json.dumps(str(e))})") from None


def _markdown(rows: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
    return head + "|" + "---|" * len(rows[0]) + "\n" + "".join(body)
