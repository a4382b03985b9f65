"""What an annotator is called."""

import getpass
import re

from storage.said import check_annotator


def annotator_of(name: str) -> str:
    """A name that can become a part of a key, of a login, an address of mail or a number."""
    name = re.sub(r"[^a-z0-9_-]+", "-", name.partition("@")[0].lower()).lstrip("-_")[:32]
    if name.isdigit():
        name = f"user-{name}"
    return check_annotator(name or "me")


def login_name() -> str:
    """Of who runs this, as an annotator's name."""
    try:
        return annotator_of(getpass.getuser())
    except (OSError, KeyError):  # a user id that has no name
        return "me"
