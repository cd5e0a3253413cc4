"""The part of the hub's protocol that uploading needs: repositories, commits, and large files by LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_someone"  # the one token that may write


class Uploads(BaseHTTPRequestHandler):
    """Answers POST and PUT. New repositories are folders of ``server.uploads``; objects of LFS are kept in memory."""

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        path, body = unquote(address.path), self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "", "Invalid username or password.")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []}, True)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self._create(f"{asked['organization']}/{asked['name']}", asked.get("visibility"))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {"path": f["path"], "uploadMode": self._mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files}, True)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            at = f"http://{self.headers['Host']}/lfs/"
            objects = [o | {"actions": {"upload": {"href": at + o["oid"]}}} for o in json.loads(body)["objects"]]
            self._json({"transfer": "basic", "objects": objects}, True)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(
                found[1], [json.loads(line) for line in body.splitlines()], "create_pr" in parse_qs(address.query)
            )
        else:
            self._error(404, "EntryNotFound", f"no such page: {path}")

    def do_PUT(self) -> None:
        body = self._body()
        assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        self.server.objects[self.path.rpartition("/")[2]] = body
        self._json({}, True)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, repository: str, visibility: str | None) -> None:
        at = f"http://{self.headers['Host']}/{repository}"
        if repository in self.server.repositories:
            self._error(409, "", "You already created this model repo", url=at)
            return
        self.server.repositories[repository] = self.server.uploads / repository
        self.server.repositories[repository].mkdir(parents=True)
        self.server.visibility[repository] = visibility
        self._json({"url": at}, True)

    @staticmethod
    def _mode(file: str) -> str:
        return "lfs" if file.endswith(".safetensors") else "regular"

    def _commit(self, repository: str, lines: list[dict[str, Any]], pull_request: bool) -> None:
        folder, at = self.server.repositories[repository], f"http://{self.headers['Host']}/{repository}"
        for line in lines if not pull_request else ():
            kind, value = line["key"], line["value"]
            if kind == "header":
                self.server.messages.append(value["summary"])
            elif kind == "deletedFile":
                (folder / value["path"]).unlink()
            else:
                lfs = kind == "lfsFile"
                content = self.server.objects[value["oid"]] if lfs else base64.b64decode(value["content"])
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(content)
        commit = {"commitUrl": f"{at}/commit/{'0' * 40}", "commitOid": "0" * 40}
        self._json(commit | ({"pullRequestUrl": f"{at}/discussions/1"} if pull_request else {}), True)
