"""The server over real connections: answers, limits, failures, and that the numbers say what happened."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from tests.helpers import wait_until
from tests.serve.serving import CLASSES, attention, color_classifier, color_logits, picture, served
from tvm_na.serve.limits import MOST_PIXELS, Limits
from tvm_na.serve.observability import log, log_to
from tvm_na.serve.overlay import GAP


class Held:
    """Logits of colors that are held back until they are let go."""

    def __init__(self):
        self.free, self.calls = threading.Event(), []

    def __call__(self, images):
        self.calls.append(len(images))
        assert self.free.wait(15)
        return color_logits(images)


@pytest.fixture
def held():
    held = Held()
    yield held
    held.free.set()


@pytest.fixture(scope="module")
def server():
    """One for the tests that leave no trace."""
    with served(max_request_mb=0.1, max_pixels=1_000_000, timeout=5) as server:
        yield server


# --- answers


def test_an_image_as_a_form(server):
    response = server.http.post("/classify", files={"image": ("ä b.png", picture(200), "image/png")}, data={"x": "y"})
    body = response.json()
    assert body["image"] == {"width": 12, "height": 10}
    assert (body["model"], body["random_weights"]) == ("colors", False)
    probabilities = [found["probability"] for found in body["predictions"]]
    assert body["predictions"][0]["index"] == 200
    assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
    expected = color_logits(torch.full((1, 3, 8, 8), 200 / 255)).softmax(-1).topk(5).values[0]
    assert probabilities == pytest.approx(expected.tolist(), abs=1e-3)
    assert body["predictions"][0]["label"] is None


def test_labels():
    with served(color_classifier(labels=tuple(f"<b>{i}</b>" for i in range(CLASSES)))) as server:
        assert server.classify(picture(9)).json()["predictions"][0]["label"] == "<b>9</b>"
        assert server.http.get("/info").json()["labels"] is True
    with pytest.raises(ValueError, match="labels: required 256, one per class, got 1"):
        color_classifier(labels=("one",))


def test_a_model_of_two_classes_has_two():
    classifier = color_classifier(logits=lambda images: color_logits(images)[:, :2], classes=2)
    with served(classifier) as server:
        assert len(server.classify(picture(0)).json()["predictions"]) == 2


def test_info_and_openapi(server):
    info = server.http.get("/info").json()
    assert (info["max_bytes"], info["max_pixels"], info["overlay"]) == (100_000, 1_000_000, False)
    paths = server.http.get("/openapi.json").json()["paths"]
    assert set(paths["/classify"]["post"]["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert "501" in paths["/overlay"]["post"]["responses"]
    assert server.http.get("/classify").json() == {"error": "GET /classify: Method Not Allowed"}


# --- overlays


def test_an_overlay_is_refused_without_an_eager_model(server):
    response = server.http.post("/overlay", files={"image": picture(1)})
    assert response.status_code == 501
    assert response.json() == {"error": "overlay: not offered by this server: it only knows colors"}
    assert server.outcomes("overlay")["not_offered"] == 1


def test_an_overlay_has_a_panel_per_stage():
    asked = []
    classifier = color_classifier(attention=lambda x, pixel: asked.append(pixel) or attention(x, pixel))
    with served(classifier) as server:
        assert server.http.get("/info").json()["overlay"] is True
        response = server.http.post("/overlay?row=0&column=7", files={"image": picture(40)})
        assert response.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(response.content))
        assert image.size == (4 * 8 + 3 * GAP, 8)
        server.http.post("/overlay", files={"image": picture(40)})
        assert asked == [(0, 7), (4, 4)]
        outside = server.http.post("/overlay?row=8", files={"image": picture(40)})
        assert (outside.status_code, outside.json()["error"]) == (400, "row: required 0 to 7, got 8")
        no_number = server.http.post("/overlay?row=x", files={"image": picture(40)})
        assert no_number.status_code == 400 and no_number.json()["error"].startswith("row: ")
        broken = server.http.post("/overlay", files={"image": picture(40)[:50]})
        assert broken.status_code in (400, 415)


# --- what is no image


def test_what_is_no_image(server):
    cases = [
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "content-type: required multipart/form"),
        ({"content": picture(1)}, 415, "got none"),
        ({"content": b"<svg/>", "headers": {"Content-Type": "image/svg+xml"}}, 415, "image: required JPEG"),
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, 415, "got nothing"),
        ({"content": picture(1)[:50], "headers": {"Content-Type": "image/png"}}, 400, "required a whole PNG file"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "cannot be read"),
        ({"content": b"--b\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "got nothing"),
        ({"files": {"photo": picture(1)}}, 400, "form: required one file named 'image', got 'photo'"),
        ({"files": [("image", picture(1)), ("image", picture(2))]}, 400, "Too many files"),
        ({"files": {"other": picture(1)}, "data": {"image": "text"}}, 400, "got text"),
    ]
    before = server.outcomes().get("invalid", 0)
    for request, status, message in cases:
        response = server.http.post("/classify", **request)
        assert response.status_code == status and message in response.json()["error"], response.text
    assert server.outcomes()["invalid"] == before + len(cases)


# --- limits


def test_too_many_pixels(server):
    response = server.classify(picture(1, size=(1100, 1000)))
    assert response.status_code == 413
    assert response.json()["error"] == "image: required at most 1000000 pixels, got 1100x1000"


@pytest.mark.parametrize("size", [100_001, 150_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_too_many_bytes(server, size, chunked):
    content = (bytes(1000) for _ in range(size // 1000 + 1)) if chunked else bytes(size)
    response = server.classify(content)
    assert response.status_code == 413
    assert response.json()["error"] == "body: required at most 100000 bytes, got more"
    assert server.classify(picture(3)).status_code == 200


def test_as_many_bytes_as_allowed(server):
    padded = picture(3) + bytes(100_000 - len(picture(3)))  # Pillow does not look behind the image
    assert server.classify(padded).json()["predictions"][0]["index"] == 3


def raw(server, head, body=b""):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=15)
    lines = ["POST /classify HTTP/1.1", "Host: localhost", "Content-Type: image/png", *head]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def status_of(connection):
    with connection:
        return int(connection.makefile("rb").readline().split()[1])


def test_a_large_length_is_refused_before_the_body(server):
    assert status_of(raw(server, ["Content-Length: 99999999999"])) == 413
    assert status_of(raw(server, ["Content-Length: 100001", "Expect: 100-continue"])) == 413


def test_a_body_without_an_end_is_cut_off(server):
    """However the client goes on, the server answers and closes, having read little more than twice the limit."""
    connection, sent, closed = raw(server, ["Transfer-Encoding: chunked"]), 0, False
    with connection:
        try:
            while sent < 1e9:
                connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
                sent += 10_000
        except (ConnectionResetError, BrokenPipeError):
            closed = True
    assert closed
    assert 200_000 <= sent < 50_000_000  # what the kernel holds between the two included


def test_a_slow_upload():
    with served(timeout=0.3) as server:
        connection = raw(server, ["Content-Length: 1000"], b"\x89PNG")
        assert status_of(connection) == 408
        assert server.outcomes() == {"timeout": 1}
        assert server.service.gate.inside == 0


def test_a_slow_model(held):
    with served(color_classifier(logits=held), timeout=1, max_batch=1) as server:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(server.classify, [picture(i) for i in range(3)]))
        assert [r.status_code for r in answers] == [504] * 3
        assert "required an answer within 1 s" in answers[0].json()["error"]
        assert server.outcomes() == {"timeout": 3}
        assert server.metric("tvm_na_queue_length") == 0  # those that waited have left
        # It began to compute the first after it had decoded it.
        wait_until(lambda: server.http.get("/healthz").status_code == 503, "it has computed for longer than it may")
        assert "has computed for" in server.http.get("/healthz").json()["reason"]
        held.free.set()
        wait_until(lambda: server.http.get("/healthz").status_code == 200, "it is ready again")
        assert server.classify(picture(8)).json()["predictions"][0]["index"] == 8
        assert held.calls == [1, 1]


def test_a_full_server(held):
    with served(color_classifier(logits=held), max_queue=3, max_batch=1) as server, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.classify, picture(i)) for i in (10, 20, 30)]
        wait_until(lambda: server.metric("tvm_na_queue_length") == 2, "two wait, one is computed")
        assert server.metric("tvm_na_requests_in_progress") == 3
        refused = server.classify(picture(40))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "required fewer than 3 requests at once" in refused.json()["error"]
        held.free.set()
        assert [f.result().json()["predictions"][0]["index"] for f in waiting] == [10, 20, 30]
        assert server.classify(picture(40)).status_code == 200
        assert server.outcomes() == {"ok": 4, "full": 1}


def test_limits_are_checked():
    cases = [
        ({"max_batch": 0}, ValueError, "max_batch: required an integer > 0, got 0"),
        ({"max_batch": 1.5}, TypeError, "max_batch: required an integer, got float 1.5"),
        ({"max_batch": True}, TypeError, "max_batch: required an integer, got bool True"),
        ({"max_delay_ms": -1}, ValueError, "max_delay_ms: required a number >= 0, got -1"),
        ({"max_queue": -3}, ValueError, "max_queue: required an integer > 0"),
        ({"max_request_mb": float("inf")}, ValueError, "max_request_mb: required a number > 0, got inf"),
        ({"max_pixels": MOST_PIXELS + 1}, ValueError, "max_pixels: required at most 89478485, Pillow's limit"),
        ({"timeout": 0.0}, ValueError, "timeout: required a number > 0, got 0.0"),
        ({"timeout": float("nan")}, ValueError, "timeout: required a number > 0, got nan"),
        ({"timeout": "9"}, TypeError, "timeout: required a number, got str '9'"),
    ]
    for limits, kind, message in cases:
        with pytest.raises(kind, match=message):
            Limits(**limits)
    assert Limits(max_delay_ms=0).max_bytes == 20_000_000


# --- failures


def picky_logits(images):
    """Raises for a batch with class 13, gives NaN for class 14."""
    logits = color_logits(images)
    best = logits.argmax(1)
    if (best == 13).any():
        raise ArithmeticError("thirteen")
    logits[best == 14] = torch.nan
    return logits


def test_a_failing_image_fails_alone():
    with served(color_classifier(logits=picky_logits), max_delay_ms=100, max_batch=6) as server:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(server.classify, [picture(i) for i in (11, 12, 13, 14, 15, 16)]))
        assert [r.status_code for r in answers] == [200, 200, 500, 500, 200, 200]
        assert [r.json()["predictions"][0]["index"] for r in answers if r.status_code == 200] == [11, 12, 15, 16]
        assert answers[2].json() == {"error": "server: the model failed; see the server's log"}
        assert server.outcomes() == {"ok": 4, "failed": 2}
        health = server.http.get("/healthz").json()
        assert (health["ready"], health["reason"]) == (True, None)


def test_logits_of_another_shape_are_an_error():
    with served(color_classifier(logits=lambda images: color_logits(images)[:, :9])) as server:
        assert server.classify(picture(1)).status_code == 500


def test_a_client_that_leaves_is_not_computed(held):
    with served(color_classifier(logits=held), max_batch=1) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.classify, picture(1))
        wait_until(lambda: held.calls == [1], "the first is computed")
        connection = raw(server, [f"Content-Length: {len(picture(2))}"], picture(2))
        wait_until(lambda: server.metric("tvm_na_queue_length") == 1, "the second waits")
        connection.close()
        wait_until(lambda: server.outcomes().get("disconnected") == 1, "the server notices")
        assert server.metric("tvm_na_queue_length") == 0
        held.free.set()
        assert first.result().status_code == 200
        assert server.classify(picture(3)).status_code == 200
        assert held.calls == [1, 1]


def test_a_client_that_leaves_while_it_uploads(server):
    before = server.outcomes().get("disconnected", 0)
    raw(server, ["Content-Length: 1000"], b"\x89PNG").close()
    wait_until(lambda: server.outcomes().get("disconnected", 0) == before + 1, "the server notices")
    assert server.service.gate.inside == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_not_ready():
    def deadly(images):
        raise SystemExit

    with served(color_classifier(logits=deadly), timeout=0.5) as server:
        assert server.http.get("/healthz").status_code == 200
        assert server.classify(picture(1)).status_code == 504
        health = server.http.get("/healthz")
        assert health.status_code == 503 and health.json()["reason"] == "the thread 'classify' has ended"


# --- numbers


def test_metrics_count_what_happened(held):
    with served(color_classifier(logits=held), max_batch=4) as server:
        with ThreadPoolExecutor(5) as pool:
            first = pool.submit(server.classify, picture(0))
            wait_until(lambda: held.calls == [1], "the first is computed")
            others = [pool.submit(server.classify, picture(i)) for i in range(1, 5)]
            wait_until(lambda: server.metric("tvm_na_queue_length") == 4, "four wait")
            time.sleep(0.3)
            held.free.set()
            assert [f.result().json()["predictions"][0]["index"] for f in [first, *others]] == [0, 1, 2, 3, 4]
        server.http.post("/classify", content=b"?", headers={"Content-Type": "image/png"})
        assert held.calls == [1, 4]
        assert server.metric("tvm_na_batch_size_count") == 2
        assert server.metric("tvm_na_batch_size_sum") == 5
        assert server.metric("tvm_na_batch_size_bucket", le="2.0") == 1
        assert server.metric("tvm_na_request_seconds_count", endpoint="classify") == 6
        for seconds, count in (("0.25", 1), ("10.0", 6)):  # the one without an image was quick
            assert server.metric("tvm_na_request_seconds_bucket", endpoint="classify", le=seconds) == count
        assert server.metric("tvm_na_batch_seconds_count") == 2
        assert server.outcomes() == {"ok": 5, "invalid": 1}
        assert server.http.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_log_lines(monkeypatch):
    stream, root = io.StringIO(), logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    for logger in (root, logging.getLogger("tvm_na.serve")):
        monkeypatch.setattr(logger, "level", logger.level)  # as it was, afterwards
    log_to(stream)
    log("request", status=200, what='a "b"\n c', seconds=0.123456)
    log("failed", error=ValueError("no"))
    logging.getLogger("uvicorn.error").warning("odd thing")
    first, second, third = stream.getvalue().splitlines()
    assert first.endswith('Z level=info event=request status=200 what="a \\"b\\"\\n c" seconds=0.1235')
    assert "level=error event=failed traceback=" in second
    assert json.loads(second.split("traceback=")[1]).endswith("ValueError: no")
    assert third.endswith('level=warning event="odd thing"')
