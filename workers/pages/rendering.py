"""What a page is made with: the templates of this folder, and the policy that lets nothing load."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workers.pages.wording import count, dollars, score, shorten, visible

FOLDER = Path(__file__).parent


def environment(prompt_characters: int) -> Environment:
    """Templates that escape all they are given, and fail on what they are not.

    prompt_characters: of each text from elsewhere, in the filter `prompt`.
    """
    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "count": count,
        "dollars": dollars,
        "score": score,
        "visible": visible,
        "prompt": lambda text: shorten(visible(text), prompt_characters),
    }
    return templates


def inlined(*files: str) -> str:
    """The text of style sheets or scripts of this folder, one after the other."""
    return "".join((FOLDER / file).read_text("utf-8") for file in files)


def content_security_policy(style: str, script: str = "") -> str:
    """Nothing may load or run but data: pictures and exactly this style and this script."""
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    for kind, text in (("style", style), ("script", script)):
        if text:
            policy += f"; {kind}-src {_source(text)}"
    return policy


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
