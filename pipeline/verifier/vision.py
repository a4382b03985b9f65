"""A language model that sees gives a second opinion, through an OpenAI-compatible endpoint.

A request holds one picture, its prompt and a schema; the answer grades fidelity and alignment.
Whoever asks decides how: from a cache, within a budget, again while the endpoint is away.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from pipeline.config import VISION_SCORES
from pipeline.errors import EndpointAway, PpvError, PromptFailed, ServiceError, SpendingLimit
from pipeline.prompter.dialogue import Request
from pipeline.types import Answer, Usage
from pipeline.verifier.opinions import Heard

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_PX = 512  # of a picture's longer side as it is sent: more costs more and shows no more
BEST = 10  # the highest grade
AT_ONCE = 64  # requests of one message under way

INSTRUCTIONS = f"""\
You check pictures that were drawn by a program. Grade each from 0 to {BEST} twice.
fidelity: is every hand right? {BEST}: five fingers of the right lengths, all joined to the hand,
bent as joints bend. 0: fingers are missing, added, fused, or float in the air.
alignment: does the picture show what its prompt says? {BEST}: every word of it. 0: another thing,
another colour, another grasp, the other hand, or the hand does not hold the thing.
Grade what you see, not what is likely. Answer with nothing but JSON:
{{"fidelity": 0 to {BEST}, "alignment": 0 to {BEST}}}"""


class Grades(BaseModel):
    """What an answer has to hold."""

    fidelity: Annotated[int, Field(ge=0, le=BEST)]
    alignment: Annotated[int, Field(ge=0, le=BEST)]


_GRADE = {"type": "integer", "enum": list(range(BEST + 1))}  # bounds are unknown to some servers
_SCHEMA = {
    "type": "object",
    "properties": {"fidelity": _GRADE, "alignment": _GRADE},
    "required": ["fidelity", "alignment"],
    "additionalProperties": False,
}


class VisionOpinion:
    """Fidelity and alignment, each in [0, 1], as a language model sees them."""

    def __init__(
        self, model: str, address: str, ask: Callable[[Request], Answer], run: str = ""
    ) -> None:
        """address: of the endpoint, which is a part of what a request is. ask: thread-safe.

        run: which pays; an answer that another one paid for costs nothing.
        """
        self._model, self._address, self._ask, self._run = model, address, ask, run

    def hear(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Heard]:
        """An answer that cannot be used is on record as unheard.

        Raises ServiceError where what `ask` needs, other than the endpoint, is away.
        """
        requests = [
            request_of(image, prompt, self._model, self._address)
            for image, prompt in zip(images, prompts, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=max(1, min(AT_ONCE, len(requests)))) as threads:
            return list(threads.map(self._hear, requests))

    def _hear(self, request: Request) -> Heard:
        try:
            answer = self._ask(request)
            return read(answer, answer.usage if answer.run == self._run else Usage())
        except ServiceError:
            raise
        except (EndpointAway, SpendingLimit) as error:  # time or money may heal that
            return Heard(error=error)
        except PromptFailed as error:
            return Heard(unheard={"vision": error.named}, usage=error.usage)
        except PpvError as error:
            return Heard(error=error)


def request_of(image: Image, prompt: str, model: str, address: str) -> Request:
    """One question about one picture."""
    seen = image.convert("RGB")
    seen.thumbnail((LONGEST_PX, LONGEST_PX))
    png = io.BytesIO()
    seen.save(png, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": INSTRUCTIONS},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"Prompt: {prompt}"},
                    {"type": "image_url", "image_url": {"url": url}},
                ],
            },
        ],
        "temperature": 0.0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "grades", "strict": True, "schema": _SCHEMA},
        },
    }
    return Request(address=address, body=body)


def read(answer: Answer, usage: Usage) -> Heard:
    """What an answer says. A refusal, or what holds no grades, gives no score, and says why."""
    if answer.refusal:
        return _unheard(f"refused: {' '.join(answer.refusal.split())[:200]}", usage)
    if answer.finish_reason == "content_filter":
        return _unheard("the provider's content filter stopped the answer", usage)
    try:
        grades = Grades.model_validate(from_json(answer.content or ""))
    except (ValueError, ValidationError):
        said = " ".join((answer.content or "nothing").split())[:80]
        return _unheard(f"no grades from 0 to {BEST} in its answer: {said!r}", usage)
    scores = (grades.fidelity / BEST, grades.alignment / BEST)
    return Heard(dict(zip(VISION_SCORES, scores, strict=True)), usage=usage)


def _unheard(reason: str, usage: Usage) -> Heard:
    return Heard(unheard={"vision": reason}, usage=usage)
