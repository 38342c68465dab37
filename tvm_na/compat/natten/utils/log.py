"""``natten.utils.log``: loggers. Handlers and levels are the application's business."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """The logger of this name."""
    return logging.getLogger(name)
