"""A server in a process of its own: under load, at SIGTERM, and as the command."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serve.serving import color_classifier, picture
from tvm_na.serve.app import run_server
from tvm_na.serve.limits import Limits
from tvm_na.serve.service import Service

ROOT = Path(__file__).parents[2]
THREADS = 16
IMAGE = {"Content-Type": "image/png"}


class Process:
    """A server's process, its log, and where it listens."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen, self.lines = popen, []
        for line in popen.stderr:
            self.lines.append(line)
            if found := re.search(r"event=listening url=http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            pytest.fail(f"the server did not start: {''.join(self.lines)}")
        self.reader = threading.Thread(target=lambda: self.lines.extend(popen.stderr))
        self.reader.start()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal; the log is whole then."""
        self.popen.send_signal(number)
        code = self.popen.wait(40)
        self.reader.join(10)
        return code

    def logged(self, event: str) -> list[dict[str, str]]:
        """The details of each line of an event."""
        lines = [line for line in self.lines if f" event={event}" in line]
        return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in lines]


@contextmanager
def process(*module: object, command: str = "") -> Iterator[Process]:
    """A server that a module runs, with arguments, or a command of Python."""
    line = [sys.executable, "-c", command] if command else [sys.executable, "-m", *map(str, module)]
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
        try:
            yield Process(popen)
        finally:
            popen.kill()


def test_2000_requests_of_16_threads_get_their_own_answers():
    with process("tests.serve.serving", 0) as server:
        images = [picture(red) for red in range(256)]

        def ask(thread: int) -> list[tuple[int, int, int]]:
            connection, found = server.connect(), []
            for i in range(2000 // THREADS):
                red = (thread * 101 + i * 37) % 256
                connection.request("POST", "/classify", images[red], IMAGE)
                response = connection.getresponse()
                answer = json.loads(response.read())
                found.append((red, response.status, answer["predictions"][0]["index"]))
            connection.close()
            return found

        start = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            answers = [answer for part in pool.map(ask, range(THREADS)) for answer in part]
        print(f"{time.monotonic() - start:.1f} s")
        metrics = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
        assert len(answers) == 2000
        assert [a for a in answers if a != (a[0], 200, a[0])] == []
        assert 'tvm_na_requests_total{endpoint="classify",outcome="ok"} 2000.0\n' in metrics
        assert "tvm_na_batch_size_sum 2000.0\n" in metrics
        assert float(re.search(r"tvm_na_batch_size_count (\S+)", metrics)[1]) < 2000, "nothing was computed together"
        assert "tvm_na_queue_length 0.0\n" in metrics
        assert server.stop() == 0
        assert server.logged("stopped")[0] | {"requests": "2000", "answered": "2000"} == server.logged("stopped")[0]


def test_sigterm_under_load_loses_nothing_that_was_accepted():
    with process("tests.serve.serving", 0.05) as server:
        begun = threading.Event()

        def ask(thread: int) -> tuple[int, list[object]]:
            """How many answers were right, and what else came, until the server is gone."""
            connection, right, other = server.connect(), 0, []
            for i in range(10_000):
                red = (thread * 16 + i) % 256
                try:
                    connection.request("POST", "/classify", picture(red), IMAGE)
                    response = connection.getresponse()
                    answer = json.loads(response.read())
                except (ConnectionError, http.client.HTTPException) as error:
                    return right, [*other, error]  # no part of an answer came: it was not accepted
                if response.status == 200 and answer["predictions"][0]["index"] == red:
                    right += 1
                else:
                    other.append((response.status, answer))
                begun.set()
            return right, other

        with ThreadPoolExecutor(THREADS) as pool:
            asked = [pool.submit(ask, thread) for thread in range(THREADS)]
            assert begun.wait(20)
            time.sleep(0.5)
            assert server.stop() == 0
            results = [future.result() for future in asked]
        right = sum(count for count, _ in results)
        assert right > THREADS
        assert [other for _, other in results if len(other) != 1 or not isinstance(other[0], Exception)] == []
        # Every request that the server saw was answered, and every answer arrived.
        stopped = server.logged("stopped")[0]
        assert (stopped["requests"], stopped["answered"], stopped["cut_off"]) == (str(right), str(right), "0")
        assert [line["outcome"] for line in server.logged("request")] == ["ok"] * right


def test_where_it_cannot_listen():
    """Refused before anything is set up: signals and logging stay as they are."""
    with socket.create_server(("127.0.0.1", 0)) as taken, ExitStack() as stack:
        service = Service(color_classifier(), Limits())
        stack.callback(service.close, 10)
        port = taken.getsockname()[1]
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(ValueError, match=f"host, port: required an address .*, got 127.0.0.1 port {port}"):
            run_server(service, "127.0.0.1", port)
        with pytest.raises(ValueError, match="host, port: required an address .*, got no.such.host.invalid port 0"):
            run_server(service, "no.such.host.invalid", 0)
        assert signal.getsignal(signal.SIGTERM) == before


def test_the_command_serves_a_model(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\nfox\n", encoding="utf-8")
    options = ["--backend", "reference", "--input-size", "32", "--max-batch", "2", "--port", "0"]
    with process("tvm_na", "serve", "nat_mini", *options, "--labels", tmp_path / "labels.txt") as server:
        assert "RANDOM" in server.lines[0]
        url, image = f"http://127.0.0.1:{server.port}", {"content": picture(3), "headers": IMAGE}
        answer = httpx.post(f"{url}/classify", **image, timeout=30).json()
        assert sorted(found["label"] for found in answer["predictions"]) == ["cat", "dog", "fox"]
        assert sum(found["probability"] for found in answer["predictions"]) == pytest.approx(1)
        assert answer["random_weights"] is True
        response = httpx.post(f"{url}/overlay?row=3&column=30", **image, timeout=30)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
        assert response.content.startswith(b"\x89PNG")
        assert server.stop(signal.SIGINT) == 0
