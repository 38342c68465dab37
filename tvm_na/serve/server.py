"""The server's process: where it listens, and how it stops."""

from __future__ import annotations

import math
import signal
import socket
from types import FrameType

import uvicorn

from tvm_na.serve.app import create_app
from tvm_na.serve.logs import log, log_to
from tvm_na.serve.service import Service

_GRACE = 5.0
_BACKLOG = 512


def run_server(service: Service, host: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT; must be called in the main thread.

    At the signal nothing more is accepted, what was accepted is answered, and the threads end.

    Args:
        service: What is served.
        host: Address or name to listen on.
        port: TCP port; 0 for one that is free.

    Returns:
        The exit code: 0, or 1 if requests were cut off or a thread did not end.

    Raises:
        ValueError: ``host`` and ``port`` cannot be listened on.
    """
    listening = _listen(host, port)
    log_to()
    config = uvicorn.Config(
        create_app(service),
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        # No request takes longer than its time-out, unless its client does not read the answer.
        timeout_graceful_shutdown=math.ceil(service.limits.timeout + _GRACE),
    )
    server = uvicorn.Server(config)

    # uvicorn handles signals while it serves, and raises them again afterwards: then they shall not end the process
    # with another code. Before it serves they must not get lost.
    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with listening:
            log("listening", url=_url(listening), model=service.classifier.name)
            server.run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    stopped, cut_off = service.close(_GRACE), service.requests - service.answered
    log("stopped", requests=service.requests, answered=service.answered, cut_off=cut_off)
    return 0 if stopped and not cut_off else 1


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        wanted = "host, port: required an address that can be listened on"
        raise ValueError(f"{wanted}, got {host} port {port}: {error}") from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
