"""Files with passwords: readable by this user alone, whole or not there at all."""

import os
import secrets
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Made if it is absent; nobody else comes in, however open the folders above it are."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def kept_password(path: Path) -> str:
    """The password in this file, a fresh one if there is none yet."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text()
