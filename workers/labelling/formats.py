"""Labels from files: ours (JSONL), Label Studio's JSON export, and Argilla's records as JSON.

A file is read whole and checked whole before any of it counts. What the other two call a picture is
found by its id: Label Studio's task has it in its data, as "id" or at the end of "image"
(.../<id>.png); Argilla's record has it as its id or in its metadata, as "id". Their questions are
called fidelity and alignment, their answers yes and no; "reasons" may be a third.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.labels import QUESTIONS, Label, now
from storage.said import parse_line
from workers.people.names import annotator_of

_MOST_LINE_BYTES = 64 * 1024
_ID = re.compile(r"(?:^|/)([0-9a-f]{32})(?:\.[a-z]+)?(?:\?.*)?$")
_YES = ("yes", "true", "right", "good", "1")
_NO = ("no", "false", "wrong", "bad", "0")

Complete = Callable[[dict[str, Any]], Label]
"""Makes a label of what such a file says (id, fidelity, alignment, reasons, annotator, at) and what
the run knows of the picture. Raises InputError if it does not know it."""


def read_labels(path: Path, complete: Complete) -> list[Label]:
    """Raises InputError that names the file and the line, or the task or record, at fault."""
    try:
        with path.open("rb") as file:
            begin = file.read(4096).lstrip()
            file.seek(0)
            if begin.startswith(b"["):
                return list(_exported(file.read(), str(path), complete))
            labels = []
            number = 0
            while line := file.readline(_MOST_LINE_BYTES):
                number += 1
                where = f"{path}, line {number}"
                if len(line) == _MOST_LINE_BYTES:
                    raise InputError(f"{where} is longer than {_MOST_LINE_BYTES:,} bytes")
                if line.strip():
                    label = parse_line(line, where, Label)
                    at = _check_time(label.at, where)
                    labels.append(label.model_copy(update={"at": at}))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not labels:
        raise InputError(f"{path} holds no label: write one JSON object a line")
    return labels


def _exported(data: bytes, name: str, complete: Complete) -> Iterator[Label]:
    try:
        items = json.loads(data)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {error.lineno} is no JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8") from None
    read: Callable[[dict[str, Any], str], Iterator[dict[str, Any]]]
    for number, item in enumerate(items, 1):
        keys = item.keys() if isinstance(item, dict) else set()
        if {"data", "annotations"} <= keys:
            where, read = f"{name}, task {number}", _label_studio
        elif {"fields", "responses"} <= keys:
            where, read = f"{name}, record {number}", _argilla
        else:
            raise InputError(
                f'{name}, item {number}: neither a task of Label Studio ("data", "annotations") '
                'nor a record of Argilla ("fields", "responses")'
            )
        try:
            for said in read(item, where):
                yield complete(said)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where} is not as its program exports it: {error!r}") from None
        except InputError as error:
            named = str(error)
            raise InputError(named if named.startswith(name) else f"{where}: {named}") from None


def _label_studio(task: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    id = _id_of([task["data"].get("id"), task["data"].get("image")], where, 'its data\'s "image"')
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):  # skipped there
            continue
        choices = {
            result["from_name"]: result["value"]["choices"]
            for result in annotation["result"]
            if result.get("type") == "choices"
        }
        by = annotation.get("completed_by")
        if isinstance(by, dict):
            by = by.get("email") or by.get("id")
        at = annotation.get("updated_at") or annotation.get("created_at")
        yield {
            "id": id,
            **{q: _answer(choices.pop(q, [None])[0], q, where) for q in QUESTIONS},
            "reasons": tuple(choices.pop("reasons", ())),
            "annotator": annotator_of(str(by if by is not None else "label-studio")),
            "at": _check_time(at, where) if at else now(),
        }
        _no_others(choices, where)


def _argilla(record: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    metadata = record.get("metadata") or {}
    id = _id_of([metadata.get("id"), record.get("id")], where, "its id")
    by_user: dict[str, dict[str, Any]] = {}
    for question, responses in record["responses"].items():
        for response in responses:
            by_user.setdefault(str(response.get("user_id")), {})[question] = response["value"]
    for user, answers in by_user.items():
        reasons = answers.pop("reasons", ()) or ()
        yield {
            "id": id,
            **{q: _answer(answers.pop(q, None), q, where) for q in QUESTIONS},
            "reasons": (reasons,) if isinstance(reasons, str) else tuple(reasons),
            "annotator": annotator_of(user.partition("-")[0] if "-" in user else user),
            "at": now(),  # its records do not say when
        }
        _no_others(answers, where)


def _id_of(places: list[Any], where: str, place: str) -> str:
    for value in places:
        if isinstance(value, str) and (found := _ID.search(value)):
            return found[1]
    raise InputError(f"{where}: {place} names no picture of ours: it ends in 32 hexadecimal digits")


def _answer(value: Any, question: str, where: str) -> bool | None:
    if value is None:
        return None
    word = str(value).strip().lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise InputError(f"{where}: {question} is {value!r}: the answers are yes and no")


def _no_others(questions: dict[str, Any], where: str) -> None:
    if questions:
        others = ", ".join(map(repr, sorted(questions)))
        raise InputError(
            f"{where}: unknown question {others}: known are fidelity, alignment and reasons"
        )


def _check_time(text: str, where: str) -> str:
    """The time as labels hold it. Raises InputError if it is none."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"{where}: the time {text!r} is not ISO 8601, such as 2026-11-23T12:00:00+00:00"
        ) from None
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC).isoformat(timespec="microseconds")
