"""The routes of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from tvm_na import __version__
from tvm_na.serve.body import FIELD
from tvm_na.serve.logs import log
from tvm_na.serve.metrics import CONTENT_TYPE
from tvm_na.serve.service import Service

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
    400: {"description": "No image in the form, or a damaged image"},
    408: {"description": "The body did not arrive in time"},
    413: {"description": "Too many bytes or pixels"},
    415: {"description": "Not an image of a known format"},
    500: {"description": "The model failed"},
    503: {"description": "Too many requests at once; Retry-After says when to try again"},
    504: {"description": "No answer in time"},
}
_NO_OVERLAY: dict[int | str, dict[str, Any]] = {501: {"description": "This server has no eager model"}}

_Pixel = Annotated[int | None, Query(description="Of the pixel of the model's input that attends; the center if none")]


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service, which it closes when it is shut down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if not await anyio.to_thread.run_sync(service.close, service.limits.timeout):
            log("threads did not end")

    # The interactive documentation would load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="tvm-na serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
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
        return JSONResponse({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

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
    return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)


async def _invalid_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}"}, 400)
