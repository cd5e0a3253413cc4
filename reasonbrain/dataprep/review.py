"""The review page: source, instruction and target of each row that the filters let pass; accept or reject.

    reasonbrain data review built
    ssh -L 8080:localhost:8080 MACHINE                # to see it from another machine

Every verdict is a line of review.jsonl before the page goes on. Of two verdicts on a row the later one holds.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from reasonbrain.errors import UserError
from reasonbrain.utils.gallery import environment
from reasonbrain.utils.journal import Journal, read_by_id


def serve(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """The server, not running yet; port 0 takes a free one.

    Raises UserError where ``folder`` holds nothing that was judged, and where the address is taken."""
    if not (folder / "judged.jsonl").exists():
        raise UserError(f"'{folder}' holds no judged.jsonl: reasonbrain data build writes it")
    rows = {k: row for k, row in read_by_id(folder / "judged.jsonl").items() if "dropped" not in row}
    review = Journal(folder / "review.jsonl")
    verdicts = {k: line["verdict"] for k, line in read_by_id(folder / "review.jsonl").items()}
    page = environment().get_template("review.html").render(title="Review").encode()
    lock = threading.Lock()
    files = {f"/pictures/{k}/target.png" for k in rows} | {f"/{row['source']}" for row in rows.values()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self.reply(200, "text/html; charset=utf-8", page)
            elif self.path == "/rows":
                shown = ("id", "instruction", "category", "prompt", "objects", "source")
                found = [
                    {name: row[name] for name in shown}
                    | {"target": f"pictures/{k}/target.png", "verdict": verdicts.get(k)}
                    for k, row in rows.items()
                ]
                self.reply(200, "application/json", json.dumps(found).encode())
            elif self.path in files:
                self.reply(200, "image/png", (folder / self.path[1:]).read_bytes())
            else:
                self.reply(404, "text/plain", b"no such page")

        def do_POST(self) -> None:
            said = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            # another site's form in the same browser can send text, but not JSON
            json_sent = re.match("application/json", self.headers.get("Content-Type", ""))
            try:
                verdict = json.loads(said) if json_sent else {}
                line = {"id": verdict["id"], "verdict": verdict["verdict"], "time": round(time.time())}
                fits = line["id"] in rows and line["verdict"] in ("accept", "reject")
            except (ValueError, KeyError, TypeError):
                fits = False
            if self.path != "/verdict" or not fits:
                return self.reply(400, "text/plain", b"no verdict")
            with lock:
                review.add(line)
                verdicts[line["id"]] = line["verdict"]
            self.reply(204, "text/plain", b"")

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: the page itself shows what is done."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as e:
        raise UserError(f"{host}:{port} cannot be served: {e.strerror}") from None
