"""Requests that are refused by their headers, whatever they ask for."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tvm_na.serve.errors import error_response


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, by its text alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Guard:
    """An ASGI application behind checks of a request's headers.

    A body has one length: with ``Content-Length`` and ``Transfer-Encoding`` a proxy may see another request than we do.
    Of a local server, which has ``names``, the ``Host`` is this machine or one of them: a web page whose name was bound
    to 127.0.0.1 (DNS rebinding) would otherwise be asked as if it were ours. Without ``names`` any will do.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        close = {"Connection": "close"}
        if "content-length" in headers and "transfer-encoding" in headers:
            return error_response(400, "body: required Content-Length or Transfer-Encoding, got both", close)
        if self._names is not None and (host := headers.get("host")) is not None:
            name = _name(host)
            if not is_loopback(name) and name not in self._names:
                wanted = "localhost, an address of it or a --server-name"
                return error_response(421, f"host: required {wanted}, got {host!r}", close)
        return None


def _name(host: str) -> str:
    """The name in a ``Host`` header, without port and brackets; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
