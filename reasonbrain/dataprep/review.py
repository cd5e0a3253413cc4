"""The review page: a person accepts or rejects each row that passed the filters, seeing source, instruction and target.

    reasonbrain data review built
    ssh -L 8080:localhost:8080 MACHINE                # to open it from another machine

A verdict is on the disk, as a line of review.jsonl, before the page shows the next row. Of two verdicts on a row the
later one counts. The page itself is utils/templates/review.html.
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
    """A server of the page, not started yet. Port 0 chooses a free port.

    Raises UserError if ``folder`` has no judged rows, and if the address cannot be used."""
    if not (folder / "judged.jsonl").exists():
        raise UserError(f"'{folder}' has no judged.jsonl: reasonbrain data build writes it")
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
            # a form of another site in the same browser can send text, but not JSON
            json_sent = re.match("application/json", self.headers.get("Content-Type", ""))
            try:
                verdict = json.loads(said) if json_sent else {}
                line = {"id": verdict["id"], "verdict": verdict["verdict"], "time": round(time.time())}
                fits = line["id"] in rows and line["verdict"] in ("accept", "reject")
            except (ValueError, KeyError, TypeError):
                fits = False
            if self.path != "/verdict" or not fits:
                return self.reply(400, "text/plain", b"not a verdict")
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
            """Logs nothing: the page shows the progress."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as e:
        raise UserError(f"address {host}:{port} cannot be used: {e.strerror}") from None
