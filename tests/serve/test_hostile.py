"""Clients that mean harm: the server goes on, answers others, and ends when it is told to."""

from __future__ import annotations

import io
import logging
import os
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest

from tests.helpers import wait_until
from tests.images.files import many_scans, slow
from tests.serve.serving import picture, served
from tests.serve.test_app import raw, status_of
from tests.serve.test_process import IMAGE, process
from tvm_na.serve.observability import LineFormatter, RateLimit

LIMITS = '{"decode_timeout": 1, "timeout": 8, "max_queue": 8}'


def serving(pause: float, limits: str, before: str) -> str:
    """A command that serves as tests.serve.serving does, after something else."""
    run = "runpy.run_module('tests.serve.serving', run_name='__main__')"
    return f"import runpy, sys; {before}sys.argv[1:] = ['{pause}', '{limits}']; {run}"


@pytest.fixture(scope="module")
def server():
    with served(names=["photos.example"]) as server:
        yield server


# --- headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "192.168.0.1"}, 421),
        ({"Host": "LocalHost:1"}, 200),
        ({"Host": "Photos.example:443"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Content-Length": "5", "Transfer-Encoding": "chunked"}, 400),
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/"])
def test_requests_for_others_or_of_two_lengths(server, headers, status, path):
    text = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **headers}.items())
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n{text}\r\n0\r\n\r\n".encode())
        answer = connection.makefile("rb").readline()
    assert int(answer.split()[1]) == status


def test_a_server_for_others_goes_by_any_name():
    with served() as server:
        assert server.http.get("/healthz", headers={"Host": "photos.example"}).status_code == 200


@pytest.mark.parametrize("charset", ["utf-16", "hex", "idna", "undefined", "unicode_escape", "no-such", '"'])
def test_a_strange_charset(server, charset):
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + picture(9) + b"\r\n--b--\r\n"
    post = {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}}
    response = server.http.post("/classify", **post)
    assert response.status_code == 400 and "content-type: required a charset" in response.json()["error"]
    post["headers"]["Content-Type"] = "multipart/form-data; boundary=b; charset=UTF8"
    assert server.http.post("/classify", **post).json()["predictions"][0]["index"] == 9


def test_what_a_client_says_is_repeated_shortly(server):
    for path, headers in (("/" + "x" * 9000, {}), ("/classify", {"Content-Type": "x" * 9000})):
        response = server.http.post(path, headers=headers)
        assert 400 <= response.status_code < 500 and len(response.content) < 1000
    response = server.http.post("/overlay", params={"row": "x" * 9000}, files={"image": picture(1)})
    assert response.status_code == 400 and len(response.content) < 1000


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("slowly", [b"", b"GET / HTTP/1.1\r\nX: "])
def test_a_connection_without_a_request_is_closed(first, slowly):
    with served(timeout=0.5) as server:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=4) as connection:
            connection.sendall(first)
            if first:
                assert b"200 OK" in connection.recv(1000)
            connection.sendall(slowly)
            with suppress(ConnectionError):
                while connection.recv(1000):  # until it is closed
                    pass
        assert time.monotonic() - start < 4


# --- uploads


def test_slow_uploads_do_not_take_the_places_of_computing():
    with served(max_queue=3, timeout=15) as server, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(raw(server, ["Content-Length: 1000"], b"\x89PNG"))
        wait_until(lambda: server.service.inside == 3, "three are arriving")
        assert server.service.gate.inside == 0
        wait_until(lambda: server.classify(picture(9)).status_code == 200, "one has made room", 5)
        assert server.outcomes()["timeout"] == 1  # with 408
        assert [server.classify(picture(i)).status_code for i in range(5)] == [200] * 5
        assert server.service.inside == 2


def test_the_slowest_makes_room():
    with served(max_queue=2, timeout=15) as server, ExitStack() as stack:
        slowest = stack.enter_context(raw(server, ["Content-Length: 100000"], b"\x89PNG"))
        faster = stack.enter_context(raw(server, [f"Content-Length: {len(picture(5)) + 50_000}"], bytes(50_000)))
        wait_until(lambda: server.service.inside == 2, "both are arriving")
        wait_until(lambda: server.classify(picture(9)).status_code == 200, "one has made room", 5)
        assert status_of(slowest) == 408
        faster.sendall(picture(5))
        assert status_of(faster) == 415  # whole, and no image


def test_a_form_that_takes_long_to_read_holds_nobody_up():
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + b"\r\n--bx" * 1_000_000
    post = {"content": body + b"\r\n--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}
    with served() as server, ThreadPoolExecutor(1) as pool:
        start = last = time.monotonic()
        posted, pauses = pool.submit(server.http.post, "/classify", **post), []
        while not posted.done():
            assert httpx.get(f"http://127.0.0.1:{server.port}/healthz").status_code == 200
            pauses.append(time.monotonic() - last)
            last = time.monotonic()
        assert posted.result().status_code == 415
        assert max(pauses) < (last - start) / 2


# --- images


def test_images_that_take_long_hold_nobody_up_and_do_not_keep_the_server():
    with process("tests.serve.serving", 0, LIMITS) as server, ExitStack() as stack:
        scans, long = many_scans(4000), slow()
        assert status_of(raw(server, [f"Content-Length: {len(scans)}"], scans)) == 413
        for _ in range(4):
            stack.enter_context(raw(server, [f"Content-Length: {len(long)}"], long))
        start = time.monotonic()
        connection = server.connect()
        connection.request("POST", "/classify", picture(9), IMAGE)
        assert connection.getresponse().status == 200
        assert time.monotonic() - start < 5
        connection.close()
        stack.enter_context(raw(server, ["Content-Length: 1000"], b"\x89PNG"))  # never whole
        for _ in range(2):
            stack.enter_context(raw(server, [f"Content-Length: {len(long)}"], long))
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 9
        assert server.logged("stopped")[0]["cut_off"] == "0"


@pytest.mark.parametrize("thread", ["daemon", "no daemon"])
def test_what_never_returns_does_not_keep_the_server(thread):
    """A model in our thread, or a thread of a library, which Python waits for when it ends."""
    before = "import tvm_na.serve.app; tvm_na.serve.app._GRACE = 0.5; "
    if thread == "no daemon":
        before += "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); "
    with process(command=serving(1000 if thread == "daemon" else 0, '{"timeout": 1}', before)) as server:
        expected = 504 if thread == "daemon" else 200
        assert status_of(raw(server, [f"Content-Length: {len(picture(1))}"], picture(1))) == expected
        start = time.monotonic()
        assert server.stop() == 1
        assert time.monotonic() - start < 6


def test_a_server_without_decoders_says_so_and_recovers(monkeypatch):
    def refuse(arguments):
        raise OSError(24, "Too many open files")

    with served() as server, monkeypatch.context() as patch:
        assert server.http.get("/healthz").json()["decoders"] == server.service.decoders.state()
        patch.setattr("tvm_na.serve.decoders.DecoderProcess", refuse)
        for pid in server.service.decoders.pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not server.service.decoders.pids(), "they have ended")
        health, answer = server.http.get("/healthz"), server.classify(picture(9))
        assert (health.status_code, health.json()["reason"]) == (503, "no decoder is alive")
        assert health.json()["decoders"]["alive"] == 0
        assert answer.status_code == 503 and "required a decoder, got none" in answer.json()["error"]
        patch.undo()
        assert server.http.get("/healthz").status_code == 200
        assert server.classify(picture(9)).status_code == 200


# --- the log


def test_too_many_sockets_are_few_lines():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard})); "
    with process(command=serving(0, LIMITS, few)) as server, ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=15))
        time.sleep(2.5)
        assert server.popen.poll() is None
        errors = [line for line in server.lines if "Too many open files" in line]
        assert 1 <= len(errors) <= 5 and max(map(len, errors)) < 1000
        stack.close()
        connection = server.connect()
        connection.request("POST", "/classify", picture(9), IMAGE)
        assert connection.getresponse().status == 200
        connection.close()
        connection.request("GET", "/healthz", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 421
        connection.close()
        assert server.stop(signal.SIGINT) == 0


def test_lines_that_are_alike_are_few_and_short():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    handler.addFilter(RateLimit(most=2, seconds=0.2))
    logger = logging.Logger("some.library")
    logger.addHandler(handler)

    def complain(count):
        for i in range(count):
            try:
                raise OSError(24, "Too many open files" + "!" * 5000)
            except OSError:
                logger.exception("cannot accept\nsocket %d", i)
            logger.warning("odd \x1b[2J %s", "thing" * 1000)
            logger.info("told")

    complain(50)
    time.sleep(0.25)
    complain(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 + 2 + 50 + 1 + 1 + 1
    assert max(map(len, lines)) < 1200
    assert "Traceback" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert 'error="OSError: [Errno 24] Too many' in lines[0]
    assert ["left_out=48" in line for line in lines[-3:]] == [True, True, False]
