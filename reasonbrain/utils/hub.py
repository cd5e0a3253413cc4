"""Repositories of the model hub: a local copy, their licence, and in words a user can act on why one could not be read.

folder = download("someone/model@v1")
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from huggingface_hub import ModelCard, constants, is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from reasonbrain.errors import UserError, reason
from reasonbrain.utils.text import printable

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # org/name, or org/name@revision
FILES = [
    "*.json",
    "*.safetensors",
    "*.yaml",
    "*.txt",
    "*.model",
    "*.jinja",
]  # of a checkpoint; nothing that is run or unpickled
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def hub_trouble(error: BaseException, repository: str) -> str | None:
    """What kept a library from reading a repository, and what to do; None if ``error`` is about something else.

    Libraries raise errors of their own, often with another reason, so those that led to ``error`` are looked at."""
    chain = list(_chain(error))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if has(GatedRepoError):
        return f"its licence is not accepted; accept it at {constants.ENDPOINT}/{repository}, then {LOG_IN}"
    refusals = [e for e in chain if isinstance(e, HfHubHTTPError) and e.response.status_code in (401, 403)]
    if any(e.response.request.method == "POST" for e in refusals):
        return f"you may not write there; {LOG_IN}, with a token that may write"
    if has(RevisionNotFoundError):
        return "it has no such revision"
    if has(RepositoryNotFoundError):
        return f"there is no such repository, or it is private; check the name, or {LOG_IN}"
    if has(LocalEntryNotFoundError) or (is_offline_mode() and has(OSError)):
        asked = "HF_HUB_OFFLINE is set" if is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        return f"it is not complete in the cache, and {asked}; run the command again with access to the hub"
    if has(EntryNotFoundError):
        return "a file that belongs to it is missing there; choose another repository"
    if network := next((e for e in chain if type(e).__module__.partition(".")[0] in ("httpx", "httpx2")), None):
        return f"the connection broke off ({type(network).__name__}); run the command again to go on with the download"
    return None


def is_repository(name: str | Path) -> bool:
    """Whether a name can only be a repository's: there is neither such a file or folder nor a folder to hold it."""
    return REPOSITORY.fullmatch(str(name)) is not None and not Path(name).exists() and not Path(name).parent.exists()


def download(
    name: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a checkpoint in a repository, ``org/name`` or ``org/name@revision``; what is not in the cache is
    downloaded. The other arguments are huggingface_hub's. Raises UserError if it cannot be had."""
    repository, _, at = name.partition("@")
    where: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    try:
        return Path(snapshot_download(repository, revision=revision or at or None, allow_patterns=FILES, **where))
    except Exception as e:  # whatever huggingface_hub and its HTTP library raise
        why = hub_trouble(e, repository) or reason(e)
        raise UserError(f"checkpoint '{name}' is no folder, and as a repository of the hub: {why}") from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from, or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_cached(repository: str, file: str) -> bool:
    """Whether a file of a repository was downloaded before. ``repository``: may also be no valid id."""
    try:
        return isinstance(try_to_load_from_cache(repository, file), str)
    except HFValidationError:
        return False


def licence_of(repository: str) -> str:
    """The licence of a repository as its model card states it, or ``not stated``, also where no card can be read."""
    try:
        return _licence(repository)[0]
    except Exception:  # whatever huggingface_hub and its HTTP library raise
        return "not stated"


def tell_licence(repository: str) -> None:
    """Prints the licence of a repository to stderr, as its model card states it. Raises whatever ``huggingface_hub``
    raises, except for a repository without a card."""
    name, link = _licence(repository)
    more = f", {link}" if link else ""
    click.echo(f"downloading '{repository}'; its licence: {printable(f'{name}{more}')}", err=True)


def _licence(repository: str) -> tuple[str, str | None]:
    """The name of a licence, and where it is to be read."""
    try:
        stated = ModelCard.load(repository, ignore_metadata_errors=True).data.to_dict()
    except EntryNotFoundError:
        stated = {}
    return stated.get("license_name") or stated.get("license") or "not stated", stated.get("license_link")
