"""A model hub on the loopback address, for ``huggingface_hub`` with HF_ENDPOINT: folders served as repositories.

with Hub({"black-forest-labs/FLUX.1-dev": Path("flux")}) as hub:
    subprocess.run(command, env=os.environ | hub.environment(home))

It can also do what a hub does on a bad day: ``hub.gated``, ``hub.lacks``, ``hub.breaks``.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from uploads import Uploads

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", COMMIT, "v1")


class Hub(ThreadingHTTPServer):
    """Serves ``repositories``: folders by id.

    gated: ids whose files need a licence to be accepted. lacks: (id, file) pairs that are listed, but answer 404.
    breaks: (id, file) pairs whose connection breaks off in the middle of the file. requests: how often each path was
    asked for with GET. uploads: where new repositories are written; visibility, messages: what they were made with, and
    of their commits."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path], uploads: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.gated: set[str] = set()
        self.lacks: set[tuple[str, str]] = set()
        self.breaks: set[tuple[str, str]] = set()
        self.requests: Counter[str] = Counter()
        self.uploads, self.visibility, self.messages = uploads, {}, []
        self.objects: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, offline: bool = False) -> dict[str, str]:
        """Environment variables of a process that uses this hub, with its cache in ``home``."""
        found = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "",
        }
        return found | ({"HF_HUB_OFFLINE": "1"} if offline else {})


class Handler(Uploads):
    """The parts of the hub's protocol that loading a model needs."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.requests[urlsplit(self.path).path] += 1
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", path):
            repository, kind, revision = found[1], found[2] or "revision", found[3] or "main"
            if self._refused(repository, revision, of_file=False):
                return
            self._json(getattr(self, f"_{kind}")(repository), body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if not self._refused(found[1], found[2], of_file=True):
                self._file(found[1], found[3], body)
        else:
            self._error(404, "EntryNotFound", f"no such page: {path}")

    def _refused(self, repository: str, revision: str, of_file: bool) -> bool:
        if repository not in self.server.repositories:
            self._error(401, "RepoNotFound", "Repository not found")
        elif revision not in REVISIONS:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif of_file and repository in self.server.gated:
            self._error(401, "GatedRepo", f"Access to model {repository} is restricted. You must be authenticated.")
        else:
            return False
        return True

    def _files(self, repository: str) -> list[Path]:
        folder = self.server.repositories[repository]
        return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())

    def _revision(self, repository: str) -> dict[str, Any]:
        siblings = [{"rfilename": file.as_posix()} for file in self._files(repository)]
        common = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
        return common | {"private": False, "gated": repository in self.server.gated, "downloads": 0, "likes": 0}

    def _tree(self, repository: str) -> list[dict[str, Any]]:
        folder = self.server.repositories[repository]
        sizes = {file: (folder / file).stat().st_size for file in self._files(repository)}
        return [{"type": "file", "path": f.as_posix(), "size": n, "oid": COMMIT} for f, n in sizes.items()]

    def _file(self, repository: str, name: str, body: bool) -> None:
        folder = self.server.repositories[repository].resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder) or not path.is_file() or (repository, name) in self.server.lacks:
            self._error(404, "EntryNotFound", f"Entry not found: {name}")
            return
        data = path.read_bytes()
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        if (repository, name) in self.server.breaks:
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _json(self, value: Any, body: bool) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _error(self, status: int, code: str, message: str, **more: str) -> None:
        data = json.dumps({"error": message} | more).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
