"""The review page, on which a person accepts or rejects each row that passed the filters.

    reasonbrain data review built
    ssh -L 8080:localhost:8080 MACHINE                # to open it from another machine

The page shows source, instruction and target. A verdict is written to review.jsonl before the page shows the next row.
The last verdict on a row counts. The page itself is utils/templates/review.html.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from reasonbrain.dataprep.rows import VERDICTS, read_rows, read_verdicts
from reasonbrain.errors import UserError
from reasonbrain.utils.files import inside
from reasonbrain.utils.gallery import environment
from reasonbrain.utils.journal import Journal

LARGEST = 1 << 16  # maximum number of bytes in the body of a request
PATIENCE = 60  # maximum number of seconds of a connection
CONNECTIONS = 64  # maximum number of open connections; further ones are closed immediately


class _Server(ThreadingHTTPServer):
    """Closes connections that take too long, and does not log connections that break."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.until: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if len(self.until) >= CONNECTIONS:
            return False
        self.until[request] = time.monotonic() + PATIENCE
        return True

    def service_actions(self) -> None:
        """Called about twice a second."""
        for request, until in list(self.until.items()):
            if time.monotonic() > until:
                try:
                    request.shutdown(socket.SHUT_RDWR)  # wakes up the thread that reads from it
                except OSError:
                    pass

    def shutdown_request(self, request: Any) -> None:
        self.until.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors of a connection, which the client causes."""


def serve(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server for the page, not started yet. Port 0 chooses a free port.

    Raises UserError if ``folder`` has no judged rows or damaged ones, and if the address cannot be used."""
    if not (folder / "judged.jsonl").is_file():
        raise UserError(f"'{folder}' has no judged.jsonl: reasonbrain data build writes it")
    rows = {name: row for name, row in read_rows(folder, "judged").items() if "dropped" not in row}
    pictures = {f"/{name}": name for k, row in rows.items() for name in (row["source"], f"pictures/{k}/target.png")}
    verdicts = read_verdicts(folder)
    review = Journal(folder / "review.jsonl")
    page = environment().get_template("review.html").render(title="Review").encode()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def parse_request(self) -> bool:
            """Also refuses requests that a page of another site may have sent: cross-site requests, and requests
            through a name of its own that resolves to this machine (DNS rebinding)."""
            if not super().parse_request():
                return False
            at, origin = self.headers.get("Host", ""), self.headers.get("Origin")
            if _is_ours(at, host) and origin in (None, f"http://{at}", f"https://{at}"):
                return True
            self.reply(403, "text/plain", b"not from here")
            return False

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
            elif unquote(self.path) in pictures:
                try:
                    file = inside(folder, pictures[unquote(self.path)])  # the file may have become a link since
                    if not file.is_file():  # opening a FIFO would wait for a writer
                        raise UserError("not a file")
                    self.reply(200, "image/png", file.read_bytes())
                except (UserError, OSError):
                    self.reply(404, "text/plain", b"the picture is gone")
            else:
                self.reply(404, "text/plain", b"no such page")

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not re.fullmatch("[0-9]{1,9}", length) or "Transfer-Encoding" in self.headers:
                return self.reply(400, "text/plain", b"no length")
            if int(length) > LARGEST:
                return self.reply(413, "text/plain", b"too long")
            said = self.rfile.read(int(length))
            # a form on another site in the same browser can send text, but not JSON
            json_sent = re.match("application/json", self.headers.get("Content-Type", ""))
            try:
                verdict = json.loads(said) if json_sent else {}
                line = {"id": verdict["id"], "verdict": verdict["verdict"], "time": round(time.time())}
                fits = line["id"] in rows and line["verdict"] in VERDICTS
            except (ValueError, KeyError, TypeError, RecursionError):
                fits = False
            if self.path != "/verdict" or not fits:
                return self.reply(400, "text/plain", b"not a verdict")
            try:
                with lock:
                    review.add(line)
                    verdicts[line["id"]] = line["verdict"]
            except UserError:  # the disk is full; the page says that it was not saved
                return self.reply(500, "text/plain", b"not saved")
            self.reply(204, "text/plain", b"")

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Logs nothing: the page shows the progress."""

    try:
        return _Server((host, port), Handler)
    except OSError as e:
        raise UserError(f"address {host}:{port} cannot be used: {e.strerror}") from None


def _is_ours(at: str, host: str) -> bool:
    """Whether a Host header names this machine: by the name given with --host, by its host name, or by an IP address.
    A page of another site can make its own name resolve to this machine, but none of these."""
    try:
        name = urlsplit(f"//{at}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
