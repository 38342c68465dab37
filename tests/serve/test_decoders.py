"""Decoder processes: their answers, their ends and their limits."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import run_python, wait_until
from tests.images.files import bytes_of, slow
from tests.serve.serving import PREPROCESSING, picture
from tvm_na.serve import decoder_process
from tvm_na.serve.decoders import Decoders
from tvm_na.serve.errors import HttpError
from tvm_na.serve.limits import Limits

PIXELS = 64  # of the model's input


def run(work, count=1, **limits):
    """What ``work`` gives, called with decoders that are ready, in an event loop."""

    async def whole():
        decoders = Decoders(PREPROCESSING, Limits(**limits), count)
        try:
            await decoders.start()
            return await work(decoders)
        finally:
            decoders.close()

    return asyncio.run(whole())


async def status_of(decoding):
    with pytest.raises(HttpError) as caught:
        await decoding
    return caught.value.status, str(caught.value)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_images_and_refusals():
    async def work(decoders):
        decoded = await decoders.decode(picture(200))
        assert (decoded.size, decoded.pixels) == ((12, 10), bytes((200, 55, 77)) * PIXELS)
        assert (await status_of(decoders.decode(b"hello")))[0] == 415
        assert (await status_of(decoders.decode(picture(1)[:50])))[0] == 400
        status, message = await status_of(decoders.decode(picture(1, size=(40, 30))))
        assert (status, message) == (413, "image: required at most 1000 pixels, got 40x30")
        assert (await decoders.decode(picture(3))).pixels[0] == 3
        assert decoders.state() == {"count": 1, "alive": 1, "busy": 0, "replaced": 0}

    run(work, max_pixels=1000)


def test_many_at_once_are_not_mixed_up():
    async def work(decoders):
        answers = await asyncio.gather(*(decoders.decode(picture(red)) for red in range(100)))
        assert [answer.pixels[0] for answer in answers] == list(range(100))

    run(work, count=2)


def test_one_that_takes_too_long_is_ended_and_holds_nobody_up():
    async def work(decoders):
        start = time.monotonic()
        too_long = asyncio.ensure_future(status_of(decoders.decode(slow())))
        await asyncio.sleep(0.05)
        assert decoders.state()["busy"] == 1
        (busy, _), others = decoders.pids(), await asyncio.gather(*(decoders.decode(picture(i)) for i in range(8)))
        assert [other.pixels[0] for other in others] == list(range(8))
        assert not too_long.done()
        assert await too_long == (413, "image: required one that is decoded within 1 s, got one that takes longer")
        assert 1 <= time.monotonic() - start < 3
        assert decoders.state() == {"count": 2, "alive": 2, "busy": 0, "replaced": 1}
        assert busy not in decoders.pids()
        assert (await decoders.decode(picture(7))).pixels[0] == 7

    run(work, count=2, decode_timeout=1)


def test_nobody_waits_for_it_any_more():
    async def work(decoders):
        (pid,) = decoders.pids()
        decoding = asyncio.ensure_future(decoders.decode(slow()))
        await asyncio.sleep(0.05)
        decoding.cancel()
        assert (await decoders.decode(picture(7))).pixels[0] == 7
        assert pid not in decoders.pids()

    run(work)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_one_that_crashes_is_replaced(number):
    async def work(decoders):
        decoding = asyncio.ensure_future(status_of(decoders.decode(slow())))
        await asyncio.sleep(0.05)
        os.kill(decoders.pids()[0], number)
        status, message = await decoding
        assert (status, message.split(": ")[-1]) == (400, number.name)
        assert (await decoders.decode(picture(7))).pixels[0] == 7
        os.kill(decoders.pids()[0], number)  # idle
        wait_until(lambda: not decoders.pids(), "it has ended")
        decoders.heal()
        assert decoders.state()["alive"] == 1
        assert (await decoders.decode(picture(8))).pixels[0] == 8

    run(work)


def test_processes_end_with_the_server():
    code = """
        import asyncio, dataclasses, json, os
        from tests.images.files import slow
        from tvm_na.images.preprocessing import Preprocessing
        from tvm_na.serve.decoder_process import DecoderProcess
        settings = [dataclasses.asdict(Preprocessing()), 1000, 10**8, 0.5]
        async def main():
            processes = [DecoderProcess(list(map(json.dumps, settings))) for _ in range(2)]
            for process in processes:
                await process.ready()
            print(*(process.pid for process in processes), flush=True)
            asyncio.ensure_future(processes[0].exchange(slow(), 0))
            await asyncio.sleep(0.1)
            os._exit(0)
        asyncio.run(main())
    """
    pids = run_python(code).split()
    assert len(pids) == 2
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "both have ended", 5)


def test_what_a_codec_may_do():
    code = """
        import tempfile
        from tvm_na.serve.decoder import _confine
        file = tempfile.TemporaryFile("wb", buffering=0)
        _confine(300 * 2**20)
        many = lambda: [open("/dev/null") for _ in range(99)]
        for act in (lambda: bytearray(400 * 2**20), lambda: file.write(b"x"), many):
            try:
                act()
            except (MemoryError, OSError) as error:
                print(type(error).__name__, getattr(error, "errno", ""))
    """
    assert run_python(code).splitlines() == ["MemoryError ", f"OSError {errno.EFBIG}", f"OSError {errno.EMFILE}"]


def test_what_it_prints_is_bounded(monkeypatch, caplog):
    """As libtiff does: a file of 2 kB made it write 11.5 MB."""
    printing = """
import ctypes, tvm_na.serve.decoder as decoder
real = decoder.decode_image
def decode_image(*arguments):
    for _ in range(20000): ctypes.CDLL(None).perror(b"TIFFReadDirectory: " + b"warning " * 60)
    return real(*arguments)
decoder.decode_image = decode_image
"""
    program = decoder_process._PROGRAM.replace("; from", f"\nexec({printing!r})\nfrom", 1)
    monkeypatch.setattr(decoder_process, "_PROGRAM", program)

    async def work(decoders):
        assert (await decoders.decode(picture(7))).pixels[0] == 7

    run(work)
    (record,) = caplog.records
    assert "TIFFReadDirectory: warning" in record.fields["said"]
    assert len(record.fields["said"]) <= 65_536


@pytest.mark.parametrize("answer", ["print(1)", "server(b'\\0' * 7 + b'\\x02{}')", "server(b'\\xff' * 8)"])
def test_an_answer_is_not_taken_on_trust(monkeypatch, answer):
    program = (
        "import socket, sys\ns = socket.socket(fileno=0)\ns.sendall(b'+')\ns.recv(8)\n"
        f"server = s.sendall\n{answer}\ns.recv(1000)"
    )
    monkeypatch.setattr(decoder_process, "_PROGRAM", program)

    async def work(decoders):
        assert (await status_of(decoders.decode(b"x")))[0] in (400, 413)
        assert decoders.replaced == 1

    run(work, decode_timeout=0.5)


def test_one_that_does_not_start(monkeypatch, caplog):
    monkeypatch.setattr(decoder_process, "_PROGRAM", "raise SystemExit('no Pillow here')")
    with pytest.raises(RuntimeError, match="required a decoder, got one that does not start"):
        run(None)
    assert caplog.records[0].fields == {"start": "exit code 1", "said": "no Pillow here\n"}


def test_memory_comes_back():
    large = bytes_of(Image.new("RGB", (4000, 3000)), "PNG", compress_level=1)

    async def work(decoders):
        (pid,) = decoders.pids()
        await decoders.decode(picture(1))
        before = resident(pid)
        await decoders.decode(large)
        await asyncio.sleep(2.2)
        end = time.monotonic() + 5
        while resident(pid) > before + 2**24 and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert resident(pid) <= before + 2**24
        assert decoders.pids() == [pid]

    run(work)
