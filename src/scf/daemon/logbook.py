"""The daemon's log: JSON lines under `home/logs`, rotated by size, run and attempt ids in each.

A log that cannot be written is no reason to stop: the states are in `runs.db`, the history in the
audit log.
"""

import logging
import logging.handlers
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

LOG_NAME = "daemon.ndjson"
SIZE_MAX_BYTES = 10_000_000
FILES_KEPT = 5


def _with_ids(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Every line has `run` and `attempt`, null where it is about neither: one filter finds all."""
    line.setdefault("run", None)
    line.setdefault("attempt", None)
    return line


class _QuietHandler(logging.handlers.RotatingFileHandler):
    """Drops what cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        del record


class Logbook:
    """The log of one home's daemon.

    Attributes:
        log: A structlog logger: `log.info("run.moved", run=...)`.
    """

    def __init__(self, home: Path) -> None:
        folder = home / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self._handler = _QuietHandler(
            folder / LOG_NAME, maxBytes=SIZE_MAX_BYTES, backupCount=FILES_KEPT - 1, delay=True
        )
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        sink = logging.Logger(f"scf.daemon.{home}", logging.INFO)
        sink.addHandler(self._handler)
        self.log: Any = structlog.wrap_logger(
            sink,
            processors=[
                _with_ids,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str, sort_keys=True),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            cache_logger_on_first_use=True,
        )

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        self._handler.close()
