"""Serving a page that asks one person, until Ctrl-C."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from storage.said import Line
    from workers.people.journal import Journal
    from workers.people.keeper import Keeper
    from workers.people.server import PageServer


def serve(
    server: "PageServer", app: "FastAPI", journal: "Journal[Line]", keeper: "Keeper[Line]"
) -> None:
    """Say where the page is, answer, and at the end say what the store lacks."""
    if journal.torn:
        note(f"{journal.path} ended in half a line, which was dropped: its key had no answer")
    if not server.loopback:
        note(f"{server.host} is open to the network: who sees this address there gets in too")
    print(f"open {server.url}", flush=True)
    print("end with Ctrl-C; each key is kept at once", flush=True)
    try:
        server.run(app)
    finally:
        keeper.stop()
        if keeper.trouble:
            note(f"it is all kept in {journal.path}, not yet in the store: {keeper.trouble}")


def note(text: str) -> None:
    print(f"ppv: {text}", file=sys.stderr)
