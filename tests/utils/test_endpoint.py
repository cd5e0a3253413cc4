"""Hostile, slow and broken endpoints give a one-line error within the deadline, without secrets."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reasonbrain.errors import UserError
from reasonbrain.utils import endpoint as asking
from reasonbrain.utils.endpoint import Endpoint, Failed, Refused

KEY = "sk-very-secret-1"


class Handler(BaseHTTPRequestHandler):
    """Lets ``server.act(handler)`` answer."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        try:
            self.server.act(self)
        except OSError:  # the client has left
            pass

    def say(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def chat(content):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(asking, "RETRIES", 0)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.paths, made.daemon_threads = [], True
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.05)


def drip_headers(handler):
    handler.send_response(200)
    while True:
        handler.wfile.write(b"X")
        time.sleep(0.05)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


@pytest.mark.parametrize("act", [drip, drip_headers, lambda handler: time.sleep(30)])
def test_a_question_has_a_deadline(server, act, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "DEADLINE", 0.5)
    monkeypatch.setattr(asking, "RETRIES", 5)
    server.act, start = act, time.monotonic()
    with pytest.raises(Failed, match="model 'm': no answer within 0.5 s"):
        Endpoint(server.url, "m", tmp_path).ask("Why?")
    assert time.monotonic() - start < 5 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("act", [endless, lambda handler: handler.say(400, b"x" * (5 << 20))])
def test_an_answer_has_a_maximum_size(server, act, tmp_path):
    server.act = act
    with pytest.raises(Failed, match="the answer has more than 4194304 bytes"):
        Endpoint(server.url, "m", tmp_path).ask("Why?")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[1,2]", b"5", b"[" * 200_000, b"<html>hi</html>", b"\xff\xfe"),
        *(b'{"choices": %s}' % c for c in (b"null", b"[]", b'"abc"', b'{"0": 1}', b"[5]", b"[{}]")),
        *(b'{"choices": [{"message": %s}]}' % m for m in (b"null", b'{"content": 5}', b'{"content": [{"text": "x"}]}')),
    ],
)
def test_answers_in_another_format_are_refused(server, body, tmp_path):
    server.act = lambda handler: handler.say(200, body)
    with pytest.raises(Failed, match="model 'm': the answer is not in OpenAI's format"):
        Endpoint(server.url, "m", tmp_path).ask("Why?")
    assert not list(tmp_path.iterdir())


def test_an_answer_without_valid_unicode(server, tmp_path):
    server.act = lambda handler: handler.say(200, chat("it \ud800 broke"))
    assert Endpoint(server.url, "m", tmp_path).ask("Why \udfff?") == "it ? broke"
    server.act = lambda handler: handler.say(200, chat(None))
    assert Endpoint(server.url, "m", tmp_path).ask("What?") == ""


def test_an_empty_answer_is_not_kept(server, tmp_path):
    """A server that had no tokens left, or a wrong template, is asked again once it is mended. Nor is one used that an
    earlier version kept."""
    said = ["", None, "It melts.", "not asked"]
    server.act = lambda handler: handler.say(200, chat(said.pop(0)))
    assert [Endpoint(server.url, "m", tmp_path).ask("What?") for _ in range(4)] == ["", "", "It melts.", "It melts."]
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"answer": ""}')
    assert Endpoint(server.url, "m", tmp_path).ask("What?") == "not asked"


def test_a_truncated_answer(server, tmp_path):
    server.act = lambda handler: handler.say(200, b"{", Content_Length="1000")
    with pytest.raises(Failed, match="model 'm': IncompleteRead|model 'm': the answer is not"):
        Endpoint(server.url, "m", tmp_path).ask("Why?")


def test_redirects_are_not_followed(server, tmp_path):
    server.act = lambda handler: handler.say(307, b"", Location="file:///etc/passwd")
    with pytest.raises(UserError, match="model 'm': 307"):
        Endpoint(server.url, "m", tmp_path).ask("Why?")
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("status", [200, 307, 400, 401, 500])
@pytest.mark.parametrize("user", ["", "me:pass%40word@"])
def test_secrets_are_removed(server, status, user, tmp_path):
    """A server that echoes the header and the password, in an answer or an error."""
    said = []

    def act(handler):
        said.append(
            f"{handler.headers['Authorization']} {KEY} {'pass@word pass%40word' if user else ''} http://x:y@host/"
        )
        handler.say(status, chat(said[0]) if status == 200 else said[0].encode())

    server.act = act
    url = server.url.replace("//", f"//{user}")
    try:
        text = Endpoint(url, "m", tmp_path).ask("Why?")
    except (UserError, Refused) as e:
        text = str(e)
    basic = base64.b64encode(b"me:pass@word").decode()
    assert said[0].startswith(f"Basic {basic}" if user else f"Bearer {KEY}")
    text += "".join(file.read_text() for file in tmp_path.iterdir())
    assert "***" in text and not [s for s in (KEY, "pass", basic, "x:y") if s in text], text


def test_urls_and_keys(tmp_path, monkeypatch):
    for url in (
        "file:///etc/passwd",
        "localhost:80",
        "http://",
        "http://a b/v1",
        "http://h:x/v1",
        "ftp://h",
        "http://[::1",
    ):
        with pytest.raises(UserError, match="^endpoint '.*'"):
            Endpoint(url, "m", tmp_path)
    with pytest.raises(UserError) as e:
        Endpoint("ftp://me:password@host", "m", tmp_path)
    assert "password" not in str(e.value)
    for key in ("a\nb", "schlüssel"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError, match="OPENAI_API_KEY contains characters") as e:
            Endpoint("http://127.0.0.1:9/v1", "m", tmp_path).ask("Why?")
        assert key not in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"answer": 5}', "{}", "[" * 100_000, "\udcff"])
def test_a_damaged_answer_on_disk_is_a_one_line_error(server, text, tmp_path):
    server.act = lambda handler: handler.say(200, chat("yes"))
    llm = Endpoint(server.url, "m", tmp_path)
    assert llm.ask("Why?") == "yes"
    (file,) = tmp_path.iterdir()
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=f"answer: '{file}' is "):
        llm.ask("Why?")
