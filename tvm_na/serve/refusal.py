"""Why a request gets no answer of the model's, as HTTP says it."""

from __future__ import annotations

from fastapi.responses import JSONResponse


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status.
        outcome: One of ``metrics.OUTCOMES``.
        message: What was required and what came, for whoever asked.
        headers: Of the response.
    """

    def __init__(self, status: int, outcome: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.outcome, self.message, self.headers = status, outcome, message, headers or {}

    def response(self) -> JSONResponse:
        """``{"error": message}`` with the status."""
        return JSONResponse({"error": self.message}, self.status, self.headers)
