"""The review server refuses hostile requests, and damaged or hostile folders."""

import json
import socket
import threading
import time

import pytest
from PIL import Image

from reasonbrain.dataprep import review
from reasonbrain.errors import UserError

ROW = {"id": "a", "instruction": "i", "category": "story", "prompt": "p", "objects": [], "candidates": []}
ROW |= {"source": "pictures/a/0.png"}


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "built" / "pictures" / "a"
    pictures.mkdir(parents=True)
    for name in ("target", "0"):
        Image.new("RGB", (8, 8)).save(pictures / f"{name}.png")
    (tmp_path / "secret.png").write_text("secret")
    write(tmp_path / "built", ROW)
    return tmp_path / "built"


def write(folder, *rows):
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def server(folder):
    made = review.serve(folder, "127.0.0.1", 0)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def send(server, data):
    """The status of the response to raw bytes; 0 if the connection was closed without a response."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:
            pass
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0


def request(method="GET", path="/rows", body=b"", **headers):
    headers = {"Host": "localhost:8080", "Content_Length": str(len(body))} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:9", "[::1]:9", "192.168.1.7", "LOCALHOST"])
def test_this_machines_names(server, host):
    assert send(server, request(Host=host)) == send(server, request(Host=host, Origin=f"http://{host}")) == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", None, "[", "127.0.0.1@evil.example"])
def test_other_names_are_refused(server, host, folder):
    verdict = json.dumps({"id": "a", "verdict": "accept"}).encode()
    for path in ("/", "/rows", "/pictures/a/0.png"):
        assert send(server, request(path=path, Host=host)) == 403
    assert send(server, request("POST", "/verdict", verdict, Host=host, Content_Type="application/json")) == 403
    assert not (folder / "review.jsonl").read_text()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://localhost:9", "https://localhost"])
def test_pages_of_other_sites_are_refused(server, origin, folder):
    verdict = json.dumps({"id": "a", "verdict": "accept"}).encode()
    more = {"Content_Type": "application/json", "Origin": origin}
    assert send(server, request("POST", "/verdict", verdict, **more)) == 403
    assert not (folder / "review.jsonl").read_text()
    assert send(server, request("POST", "/verdict", verdict, **more | {"Origin": "http://localhost:8080"})) == 204


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("POST", "/verdict", Content_Length="99999999"), 413),
        (request("POST", "/verdict", Content_Length="9" * 5000), 400),
        *((request("POST", "/verdict", Content_Length=n), 400) for n in ("-1", "x", "1e3", " ", "\xb2")),
        (request("POST", "/verdict", Transfer_Encoding="chunked"), 400),
        (request("POST", "/verdict", b"[" * 60_000, Content_Type="application/json"), 400),
        (request("POST", "/verdict", b'{"id": [], "verdict": {}}', Content_Type="application/json"), 400),
        (request("POST", "/verdict", b"\xff", Content_Type="application/json"), 400),
        (request("PUT"), 501),
        (request(path="/../judged.jsonl"), 404),
        (request(path="/%2e%2e/secret.png"), 404),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", 400),
        (b"GET / HTTP/9999999999.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 403),
    ],
)
def test_malformed_requests_are_refused_quietly(server, data, status, capfd):
    assert send(server, data) in (status, 0)
    assert send(server, request()) == 200
    assert capfd.readouterr() == ("", "")


def test_slow_and_half_open_connections_are_closed(folder, monkeypatch, capfd):
    monkeypatch.setattr(review, "PATIENCE", 0.2)
    monkeypatch.setattr(review, "CONNECTIONS", 3)
    made = review.serve(folder, "127.0.0.1", 0)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    address = ("127.0.0.1", made.server_port)
    begun = [b"", b"GET / HT", request("POST", "/verdict", Content_Length="100")]
    waiting = [socket.create_connection(address, timeout=10) for _ in begun]
    for connection, data in zip(waiting, begun, strict=True):
        connection.sendall(data)
    for connection in waiting:
        while connection.recv(65536):  # an error after 10 seconds
            pass
        connection.close()
    while made.until:  # the threads of closed connections end a moment later
        time.sleep(0.01)
    assert send(made, request()) == 200 and not capfd.readouterr().err
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(
    "changed",
    [
        *({"source": name} for name in ("../secret.png", "/etc/passwd", "pictures/../../secret.png", "a\0b", 5, None)),
        *({"id": name} for name in ("../a", "", "a/b", "\ud800")),
        *({field: 5} for field in ("instruction", "prompt", "category", "objects", "candidates")),
        {"objects": [5]},
        {"candidates": [{"image": "../secret.png"}]},
        {"candidates": [{}]},
    ],
)
def test_a_damaged_or_hostile_folder_is_refused(folder, changed):
    write(folder, ROW | changed)
    with pytest.raises(UserError, match="judged.jsonl'"):
        review.serve(folder, "127.0.0.1", 0)


def test_invalid_verdicts_are_refused(folder):
    for line in ({"id": "a"}, {"id": "a", "verdict": "maybe"}, {"verdict": "accept"}, {"id": 5}):
        (folder / "review.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match="review.jsonl'"):
            review.serve(folder, "127.0.0.1", 0)


def test_a_link_out_of_the_folder_is_not_followed(folder, server):
    picture = folder / "pictures" / "a" / "0.png"
    assert send(server, request(path="/pictures/a/0.png")) == 200
    picture.unlink()
    picture.symlink_to(folder.parent / "secret.png")
    assert send(server, request(path="/pictures/a/0.png")) == 404
