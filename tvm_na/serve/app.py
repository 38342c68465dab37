"""The server: its routes, where it listens, and how it stops."""

from __future__ import annotations

import asyncio
import faulthandler
import math
import signal
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from tvm_na import __version__
from tvm_na.serve.errors import error_response
from tvm_na.serve.guard import Guard, is_loopback
from tvm_na.serve.observability import CONTENT_TYPE, log, log_to, warn
from tvm_na.serve.protocol import patient_for
from tvm_na.serve.service import Service
from tvm_na.serve.uploads import FIELD

_GRACE = 5.0  # seconds for each step of stopping that has no time-out of its own
_BACKLOG = 512

PAGE = Path(__file__).with_name("page.html")
# The page is one file: its script may talk to this server alone, whatever text a label holds.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_BINARY = {"type": "string", "format": "binary"}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _BINARY}},
            },
        },
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "No image in the form, or a damaged image, or a strange request"},
    408: {"description": "The body did not arrive in time"},
    413: {"description": "Too many bytes or pixels, or an image that takes too long to decode"},
    415: {"description": "Not an image of a known format"},
    421: {"description": "A server that listens on this machine alone was asked by another name"},
    500: {"description": "The model failed"},
    503: {"description": "Too many requests at once; Retry-After says when to try again"},
    504: {"description": "No answer in time"},
}
_NO_OVERLAY: dict[int | str, dict[str, Any]] = {501: {"description": "This server has no eager model"}}

_Pixel = Annotated[int | None, Query(description="Of the pixel of the model's input that attends; the center if none")]


def create_app(service: Service, names: Collection[str] | None) -> FastAPI:
    """The ASGI application of a service, which waits for its decoders and closes it when it is shut down.

    ``names`` are as for :class:`Guard`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.decoders.start()
        yield
        if not await anyio.to_thread.run_sync(service.close, _GRACE):
            warn("threads did not end")

    # The interactive documentation would load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="tvm-na serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, names=names)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_query)
    page = PAGE.read_text(encoding="utf-8")

    @app.post("/classify", openapi_extra=_UPLOAD, responses=_ERRORS)
    async def classify(request: Request) -> Response:
        """The five best classes of an image."""
        return await service.classify(request)

    @app.post("/overlay", openapi_extra=_UPLOAD, responses={**_ERRORS, **_NO_OVERLAY})
    async def overlay(request: Request, row: _Pixel = None, column: _Pixel = None) -> Response:
        """A PNG of what a pixel attends to in the last layer of each stage."""
        return await service.overlay(request, row, column)

    @app.get("/info")
    async def info() -> JSONResponse:
        """What is served, and its limits."""
        return JSONResponse(service.info())

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether images are answered: 200, or 503 with a reason."""
        reason = service.why_not_ready()
        health = {"ready": reason is None, "reason": reason, "decoders": service.decoders.state()}
        return JSONResponse(health, 200 if reason is None else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page."""
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses (no such path or method), in the form of our own errors."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _invalid_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return error_response(400, f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}")


def server_config(service: Service, names: Collection[str] | None = None) -> uvicorn.Config:
    """How a service is served; ``names`` are as for :class:`Guard`."""
    return uvicorn.Config(
        create_app(service, names),
        http=patient_for(service.limits.timeout),
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


class _Server(uvicorn.Server):
    """A server that ends some time after it is told to, whatever runs."""

    def __init__(self, config: uvicorn.Config, service: Service, most_seconds: float) -> None:
        super().__init__(config)
        self._service, self._most_seconds = service, most_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, at a signal."""
        # A thread that needs neither Python nor its lock, should a model keep both.
        faulthandler.dump_traceback_later(self._most_seconds, exit=True)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has arrived, and for a moment what is arriving."""
        asyncio.get_running_loop().call_later(_GRACE, self._service.arrivals.end)
        await super().shutdown(sockets)


def run_server(service: Service, host: str, port: int, names: Collection[str] = ()) -> int:
    """Serve until SIGTERM or SIGINT; must be called in the main thread, as the last thing that a process does.

    At the signal nothing more is accepted, what was accepted is answered, and the threads end. The process ends no
    later than the time-out and 20 s after it, whatever runs. Port 0 is one that is free.
    A server that listens on this machine alone answers to its name, its addresses and ``names``.

    Returns:
        The exit code: 0, or 1 if requests were cut off or a thread did not end.

    Raises:
        ValueError: ``host`` and ``port`` cannot be listened on.
    """
    listening = _listen(host, port)
    log_to()
    is_local = is_loopback(listening.getsockname()[0])
    config = server_config(service, [name.lower() for name in names] if is_local else None)
    server = _Server(config, service, service.limits.timeout + 4 * _GRACE)
    # uvicorn handles signals while it serves, and raises them again afterwards: then they shall not end the process
    # with another code. Before it serves they must not get lost.
    previous = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with listening:
            log("listening", url=_url(listening), model=service.classifier.name)
            server.run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    stopped, cut_off = service.close(0), service.requests - service.answered
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
