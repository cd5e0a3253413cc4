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
from reasonbrain.utils.journal import Journal, read_by_id

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Review</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self'; connect-src 'self';
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body { font: 17px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem 1rem 6rem; color: #222 }
#pictures { display: flex; flex-wrap: wrap; gap: 1rem } figure { flex: 1 1 20rem; margin: 0 }
img { width: 100%; max-height: 65vh; object-fit: contain; background: #eee; display: block }
h1 { font-size: 1.3rem; overflow-wrap: anywhere } .quiet, figcaption { color: #666; font-size: .9rem }
nav { position: fixed; bottom: 0; left: 0; right: 0; display: flex; gap: .5rem; padding: .75rem; background: #fff;
 border-top: 1px solid #ddd } button { font: inherit; padding: .8rem; flex: 1; border: 1px solid #999;
 border-radius: 6px; background: #fff }
#accept { background: #1b7f3b; color: #fff } #reject { background: #b00020; color: #fff }
@media (max-width: 45rem) { img { max-height: 31vh } #pictures { gap: .25rem } }
</style></head><body>
<p id="state" class="quiet"></p><h1 id="words"></h1>
<div id="pictures"><figure><img id="source" alt="source"><figcaption>source</figcaption></figure>
<figure><img id="target" alt="target"><figcaption>target</figcaption></figure></div><p id="more" class="quiet"></p>
<nav><button id="back">&larr;</button><button id="reject">Reject (r)</button><button id="accept">Accept (a)</button>
<button id="next">&rarr;</button></nav>
<script>
const at = id => document.getElementById(id)
let rows = [], now = 0
function draw() {
  now = Math.min(Math.max(now, 0), rows.length - 1)
  const left = rows.filter(row => !row.verdict).length
  at("state").textContent = `${rows.length ? now + 1 : 0} of ${rows.length}, ${left} left to judge`
  if (!rows.length) return
  const row = rows[now]
  at("state").textContent += row.verdict ? ` \\u00b7 ${row.verdict}ed` : ""
  at("words").textContent = row.instruction
  at("source").src = row.source
  at("target").src = row.target
  at("more").textContent = [row.id, row.category, row.prompt, row.objects.join(", ")].join(" \\u00b7 ")
}
async function judge(verdict) {
  const row = rows[now]
  const answer = await fetch("verdict", {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({id: row.id, verdict})}).catch(() => null)
  if (!answer || !answer.ok) { at("state").textContent = "not saved; is the server still there?"; return }
  row.verdict = verdict
  const after = rows.findIndex((row, i) => i > now && !row.verdict)
  const first = rows.findIndex(row => !row.verdict)
  now = after >= 0 ? after : first >= 0 ? first : now
  draw()
}
function move(by) { now += by; draw() }
at("accept").onclick = () => judge("accept")
at("reject").onclick = () => judge("reject")
at("back").onclick = () => move(-1)
at("next").onclick = () => move(1)
const keys = {a: "accept", r: "reject", ArrowLeft: "back", ArrowRight: "next"}
onkeydown = event => { if (keys[event.key]) at(keys[event.key]).click() }
fetch("rows").then(answer => answer.json()).then(found => {
  rows = found
  now = Math.max(rows.findIndex(row => !row.verdict), 0)
  draw()
})
</script></body></html>
"""


def serve(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """The server, not running yet; port 0 takes a free one.

    Raises UserError where ``folder`` holds nothing that was judged, and where the address is taken."""
    if not (folder / "judged.jsonl").exists():
        raise UserError(f"'{folder}' holds no judged.jsonl: reasonbrain data build writes it")
    rows = {k: row for k, row in read_by_id(folder / "judged.jsonl").items() if "dropped" not in row}
    review = Journal(folder / "review.jsonl")
    verdicts = {k: line["verdict"] for k, line in read_by_id(folder / "review.jsonl").items()}
    lock = threading.Lock()
    files = {f"/pictures/{k}/target.png" for k in rows} | {f"/{row['source']}" for row in rows.values()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self.reply(200, "text/html; charset=utf-8", PAGE.encode())
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
