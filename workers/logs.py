"""What workers log: a line of JSON each, with the run and the batch at hand; text on a terminal.

Nothing that a prompt says is logged, and no return value of a task: Flower shows how a message
begins, and the store has the rest.
"""

import json
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from celery import signals

from workers import traces

FIELDS = (
    "task",
    "id",
    "run",
    "batch",
    "base",
    "proposal",
    "stage",
)  # of a line, where they are known

# They log each request that they make, and at DEBUG its body.
_CHATTY = ("httpcore", "httpcore2", "httpx", "httpx2", "openai", "urllib3")
_NO_RESULT = ": , ..."  # how Celery ends a line on a task that it may not show the result of
_NOBODY: dict[str, str] = {}
_at_hand: ContextVar[dict[str, str]] = ContextVar("at_hand", default=_NOBODY)


def connect() -> None:
    """Have Celery leave its logging to us."""
    signals.setup_logging.connect(_set_up)
    signals.task_prerun.connect(_begin)
    signals.task_postrun.connect(_end)


def about(run: str, batch: str) -> None:
    """What the rest of this task's lines are about, and its trace."""
    _at_hand.set(_at_hand.get() | {"run": run, "batch": batch})
    traces.about(run, batch)


def fields_of(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    data = getattr(record, "data", None)  # what Celery's own lines say of their task
    celerys = {"task": data.get("name"), "id": data.get("id")} if isinstance(data, dict) else {}
    for field in FIELDS:
        value = getattr(record, field, None) or celerys.get(field) or _at_hand.get().get(field)
        if value:
            yield field, str(value)


class Lines(logging.Formatter):
    """For programs."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage().removesuffix(_NO_RESULT),
            "logger": record.name,
            "process": record.process,
            **dict(fields_of(record)),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Text(logging.Formatter):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s%(about)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        about = " ".join(
            f"{name}={value}" for name, value in fields_of(record) if name not in ("task", "id")
        )
        record.about = f"  [{about}]" if about else ""
        return super().format(record).replace(_NO_RESULT, "")


def _set_up(loglevel: int, logfile: str | None, **_: object) -> None:
    handler: logging.Handler = (
        logging.handlers.WatchedFileHandler(logfile, encoding="utf-8")
        if logfile
        else logging.StreamHandler()
    )
    handler.setFormatter(Text() if not logfile and sys.stderr.isatty() else Lines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(loglevel)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _begin(task: Any, task_id: str, **_: object) -> None:
    _at_hand.set({"task": task.name, "id": task_id})


def _end(**_: object) -> None:
    _at_hand.set(_NOBODY)
