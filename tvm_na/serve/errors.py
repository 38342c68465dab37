"""Requests that are answered with an error, and texts of clients, of which no more is repeated than a line holds."""

from __future__ import annotations

from fastapi.responses import JSONResponse

_MOST = 400  # characters

_OUTCOMES = {
    400: "invalid",
    408: "timeout",
    413: "too_large",
    415: "invalid",
    501: "not_offered",
    503: "full",
    504: "timeout",
}


def shorten(text: str, most: int = _MOST) -> str:
    """A text, or its beginning and its end if it has more than ``most`` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """``{"error": message}``, shortened, with the status."""
    return JSONResponse({"error": shorten(message)}, status, headers)


class HttpError(Exception):
    """A request that is answered with an error; ``outcome`` is what metrics call it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.outcome, self.headers = status, _OUTCOMES[status], headers or {}

    def response(self) -> JSONResponse:
        """The answer."""
        return error_response(self.status, str(self), self.headers)
