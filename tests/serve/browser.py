"""A headless Chromium, driven over its DevTools pipe: no package is needed but the browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The first Chromium on PATH."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """A tab. Commands and answers are JSON, each ended by a zero byte."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._id = to, back, b"", 0
        self._session: str | None = None
        self.errors: list[Any] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result; errors of the page on the way are kept."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(answer["params"])
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The value of an expression of the page."""
        result = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 15) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"not in {seconds} s: {script}; {self.errors}"
            time.sleep(0.02)
        return value

    def center(self, selector: str) -> dict[str, float]:
        """Where an element is, in the window, after scrolling to it."""
        found = f"document.querySelector({json.dumps(selector)})"
        script = f"{found}.scrollIntoView(), (({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))"
        return self.evaluate(f"{script}({found}.getBoundingClientRect())")

    def drop(self, selector: str, file: Path) -> None:
        """Drag a file over an element and let it go there."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.do("Input.dispatchDragEvent", type=kind, data=data, **self.center(selector))

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an input of files."""
        root = self.do("DOM.getDocument")["root"]["nodeId"]
        node = self.do("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.do("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def click(self, x: float, y: float) -> None:
        """Click at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = os.read(self._back, 1 << 16)
            assert block, "the browser has ended"
            self._rest += block
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


@contextmanager
def browser(executable: str, profile: Path) -> Iterator[Page]:
    """A tab of a browser that lives as long as the block. The browser reads from its descriptor 3 and writes to 4."""
    (read_3, to), (back, write_4) = os.pipe(), os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    shell = f'exec "$0" "$@" 3<&{read_3} 4>&{write_4}'
    process = subprocess.Popen(
        ["bash", "-c", shell, executable, *flags, f"--user-data-dir={profile}"],
        pass_fds=(read_3, write_4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_3)
    os.close(write_4)
    try:
        yield Page(to, back)
    finally:
        process.terminate()
        process.wait(20)
        os.close(to)
        os.close(back)
