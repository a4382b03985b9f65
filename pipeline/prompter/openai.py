"""The prompter on a language model: asks for descriptions by the plan, and again for what is amiss.

An answer is taken apart entry by entry: what can be used is kept, and only the rest is asked for
again, with the reason. A text over the token budget is asked for shorter, one that nearly repeats
another is asked for with another scene. What is still amiss after the last try is cut or kept as it
is, on record, if there is a text at all; else the base prompt is short of a detailed prompt.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
)
from pydantic_core import from_json

from pipeline.config import Run
from pipeline.errors import (
    PromptFailed,
    PromptFiltered,
    PromptRefused,
    PromptTruncated,
    PromptUnusable,
)
from pipeline.prompter.budget import Budget, still_said
from pipeline.prompter.dialogue import Dialogue, Request
from pipeline.prompter.endpoint import TOO_LARGE
from pipeline.prompter.instructions import fill
from pipeline.prompter.near import Neighbours
from pipeline.prompter.plan import Brief, Plan
from pipeline.taxonomy import Example, Taxonomy
from pipeline.types import Answer, BasePrompt, DetailedPrompt, Expansion, Reading, Usage

DESCRIPTIONS_PER_REQUEST = 8  # longer lists run into the length limit and repeat themselves
MAX_CHARACTERS = 2000  # of one description; what is asked for is far shorter
ASKED_CHARACTERS = 400


@dataclass
class Slot:
    """One detailed prompt in the making."""

    index: int
    brief: Brief
    again: str = ""  # what was amiss, for the next request
    taken: BaseModel | None = None
    spare: BaseModel | None = None  # over budget or a repetition, but a text
    repeats: bool = False
    readings: dict[str, Reading] = field(default_factory=dict)
    short: str = ""  # the text, where it had to be cut
    cut: str = ""
    trouble: PromptFailed | None = None
    closed: bool = False  # asking again would not help


class OpenAIPrompter:
    """Detailed prompts from a language model behind an OpenAI-compatible endpoint."""

    def __init__(self, run: Run, address: str, budget: Budget, neighbours: Neighbours) -> None:
        """address: of the endpoint, which is a part of what a request is."""
        self._run, self._address = run, address
        self._budget, self._neighbours = budget, neighbours
        self._digest = run.prompter_digest

    def expand(self, base: BasePrompt) -> Dialogue:
        """Raises PromptFailed, with what was paid, if not a single detailed prompt came of it."""
        config = self._run.prompter
        plan = Plan(self._run.taxonomy, config.prompts_per_base, base.text)
        briefs = plan.briefs()
        slots = [Slot(i, brief) for i, brief in enumerate(islice(briefs, config.prompts_per_base))]
        account = _Account(self._run.name)
        for attempt in range(1, config.tries + 1):
            wanted = [slot for slot in slots if not slot.taken and not slot.closed]
            if not wanted:
                break
            groups = [
                wanted[start : start + DESCRIPTIONS_PER_REQUEST]
                for start in range(0, len(wanted), DESCRIPTIONS_PER_REQUEST)
            ]
            requests = tuple(self._request(base, group, attempt) for group in groups)
            replies = yield requests
            for request, group, reply in zip(requests, groups, replies, strict=True):
                if isinstance(reply, PromptFailed):
                    for slot in group:
                        slot.trouble, slot.closed = reply, True
                else:
                    account.enter(request, reply, useful=self._read(reply, group))
            self._weigh(base, slots, briefs, account)
        return self._conclude(base, slots, account)

    def _request(self, base: BasePrompt, group: list[Slot], attempt: int) -> Request:
        config = self._run.prompter
        messages = [{"role": "system", "content": self._system}]
        for example in self._run.taxonomy.examples:
            messages += _shown(example)
        wanted: dict[str, Any] = {
            "base_prompt": base.text,
            "descriptions": [_wanted(slot.brief, slot.again) for slot in group],
        }
        if attempt > 1:
            wanted["attempt"] = attempt  # so that an answer from the cache does not come twice
        messages.append({"role": "user", "content": json.dumps(wanted, ensure_ascii=False)})
        body: dict[str, Any] = {
            "model": config.model,
            "messages": messages,
            "temperature": config.temperature,
        }
        if config.structure == "json_schema":
            schema = {"name": "descriptions", "strict": True, "schema": self._schema(len(group))}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif config.structure == "json_object":
            body["response_format"] = {"type": "json_object"}
        if config.seed is not None:
            body["seed"] = config.seed
        if config.max_completion_tokens is not None:
            body["max_completion_tokens"] = config.max_completion_tokens
        return Request(address=self._address, body=body, descriptions=len(group))

    def _read(self, answer: Answer, group: list[Slot]) -> bool:
        """Put what the answer holds into the slots it was asked for; say whether it was useful."""
        reason, kind, final = _outcome(answer)
        entries, flaw = _entries(answer.content)
        useful = False
        for slot, entry in zip(group, entries, strict=False):
            try:
                slot.spare = self.description.model_validate(entry)
                slot.again, slot.trouble, slot.repeats, useful = "", None, False, True
            except ValidationError as error:
                self._amiss(slot, PromptUnusable(_one_line(error)))
        for slot in group[len(entries) :]:
            if reason:
                self._amiss(slot, kind(reason))
                slot.closed = final
            else:
                short = f"{len(entries)} descriptions came, {len(group)} were asked for"
                self._amiss(slot, PromptUnusable(flaw or short))
        return useful

    def _amiss(self, slot: Slot, trouble: PromptFailed) -> None:
        slot.trouble = trouble
        slot.again = fill(self._run.instructions.invalid, reason=trouble)

    def _weigh(
        self, base: BasePrompt, slots: list[Slot], briefs: Iterator[Brief], account: "_Account"
    ) -> None:
        """Take the new texts that fit the budget and repeat nothing; say what others lack."""
        fitting = []
        for slot in slots:
            if slot.taken or not slot.spare or slot.again:
                continue
            slot.readings = self._budget.measure(_text(slot.spare))
            over = self._budget.excess(slot.readings)
            if over:
                told = {"tokens": over.tokens, "limit": over.limit}
                slot.again = fill(self._run.instructions.shorter, **told)
            else:
                fitting.append(slot)
        for slot, new in zip(fitting, self._claim(base, fitting), strict=True):
            if new:
                slot.taken, slot.repeats = slot.spare, False
            else:
                account.dropped.append(_text(slot.spare))
                slot.repeats, slot.brief = True, next(briefs)
                slot.again = self._run.instructions.different

    def _conclude(self, base: BasePrompt, slots: list[Slot], account: "_Account") -> Expansion:
        """What was taken, what could only be cut or repeated, and what is missing."""
        self._cut(base, slots)
        prompts = tuple(
            self._prompt(base, slot, entry) for slot in slots if (entry := slot.taken or slot.spare)
        )
        for slot in slots:
            if slot.repeats and not slot.taken:
                account.dropped.remove(_text(slot.spare))  # the last one is kept after all
        troubles = [slot.trouble for slot in slots if slot.trouble and not slot.spare]
        if not prompts:
            trouble = troubles[-1]
            raise type(trouble)(str(trouble), account.usage, tuple(account.useless))
        return Expansion(
            prompts=prompts,
            usage=account.usage,
            dropped=tuple(account.dropped),
            shortfall=troubles[-1].named if troubles else "",
            answers=tuple(account.useless),
        )

    def _cut(self, base: BasePrompt, slots: list[Slot]) -> None:
        """Cut what stayed over budget; what is left may repeat another text."""
        over = [slot for slot in slots if slot.spare and not slot.taken and not slot.repeats]
        for slot in over:
            slot.short, slot.cut = self._budget.cut(_text(slot.spare))
            slot.readings = self._budget.measure(slot.short)
        items = [(self._id(base, slot.index), slot.short) for slot in over]
        for slot, new in zip(over, self._neighbours.claim(items), strict=True):
            slot.taken, slot.repeats = slot.spare, not new

    def _prompt(self, base: BasePrompt, slot: Slot, entry: BaseModel) -> DetailedPrompt:
        said = entry.model_dump(exclude={"text"})
        return DetailedPrompt(
            id=self._id(base, slot.index),
            base=base.text,
            index=slot.index,
            text=slot.short or _text(entry),
            category=said.pop("category"),
            attributes=still_said(said, slot.cut),
            readings=slot.readings,
            cut=slot.cut,
            repeats=slot.repeats,
        )

    def _claim(self, base: BasePrompt, slots: list[Slot]) -> list[bool]:
        items = [(self._id(base, slot.index), _text(slot.spare)) for slot in slots]
        return self._neighbours.claim(items) if items else []

    def _id(self, base: BasePrompt, index: int) -> str:
        return DetailedPrompt.id_of(self._digest, base.text, index)

    @cached_property
    def _system(self) -> str:
        lines = [
            f"- {name}: {category.note or category.action}; such as {', '.join(category.objects)}"
            for name, category in self._run.taxonomy.categories.items()
        ]
        told = {"categories": "\n".join(lines), "words": self._budget.words}
        system = fill(self._run.instructions.system, **told)
        if self._run.prompter.structure == "json_schema":
            return system
        entry = json.dumps(self.description.model_json_schema())
        return f'{system}\nAnswer with nothing but JSON. Each entry of "prompts" fits: {entry}'

    @cached_property
    def description(self) -> type[BaseModel]:
        """What an entry of an answer has to be."""
        return _description(self._run.taxonomy)

    @lru_cache(maxsize=DESCRIPTIONS_PER_REQUEST)  # noqa: B019 - a prompter lives as long as its run
    def _schema(self, count: int) -> dict[str, Any]:
        """Exactly so many descriptions: a server that decodes by the schema ends by its bounds."""
        entry = self.description.model_json_schema()
        prompts = {"type": "array", "minItems": count, "maxItems": count, "items": entry}
        return {
            "type": "object",
            "properties": {"prompts": prompts},
            "required": ["prompts"],
            "additionalProperties": False,
        }


@dataclass
class _Account:
    """What a dialogue took. Only answers that this run paid for count."""

    run: str

    def __post_init__(self) -> None:
        self.usage = Usage()
        self.useless: list[str] = []
        self.dropped: list[str] = []

    def enter(self, request: Request, answer: Answer, *, useful: bool) -> None:
        if answer.run == self.run:
            self.usage += answer.usage
        if not useful:
            self.useless.append(request.key)


def _description(taxonomy: Taxonomy) -> type[BaseModel]:
    """One entry of an answer: a text, and what it shows in the taxonomy's words.

    The patterns are for servers that decode by the schema: strict schemas of OpenAI's own take no
    maxLength, and llama.cpp writes what a pattern allows without escaping it, hence no quotes and
    no control characters. Of what comes from elsewhere only the size is checked: it stays text.
    """
    fields: dict[str, Any] = {
        "text": (_words(ASKED_CHARACTERS, MAX_CHARACTERS), ...),
        "category": (Literal[tuple(taxonomy.categories)], ...),
        "object": (_words(40, 200), ...),
    }
    for name, values in taxonomy.attributes.items():
        fields[name] = (Literal[tuple(values)], ...)
    closed = ConfigDict(json_schema_extra={"additionalProperties": False})
    return create_model("Description", __config__=closed, **fields)


def _words(asked: int, allowed: int) -> Any:
    pattern = {"pattern": rf'^[^"\\\x00-\x1f]{{1,{asked}}}$'}
    size = StringConstraints(strip_whitespace=True, min_length=1, max_length=allowed)
    return Annotated[str, size, Field(json_schema_extra=_only(pattern))]


def _only(keys: dict[str, str]) -> Any:
    """Leaves these keys and the type in a field's schema."""

    def change(schema: dict[str, Any]) -> None:
        kept = {"type": schema["type"], **keys}
        schema.clear()
        schema.update(kept)

    return change


def _wanted(brief: Brief, again: str = "") -> dict[str, str]:
    wanted = {"category": brief.category}
    if brief.object:
        wanted["object"] = brief.object
    wanted |= brief.attributes
    return wanted | {"again": again} if again else wanted


def _shown(example: Example) -> list[dict[str, str]]:
    """A few-shot example as a request and its answer."""
    brief = Brief(example.category, example.object, example.attributes)
    request = {"base_prompt": example.base, "descriptions": [_wanted(brief)]}
    said = {"text": example.text, "category": example.category, "object": example.object}
    answer = {"prompts": [said | example.attributes]}
    return [
        {"role": "user", "content": json.dumps(request, ensure_ascii=False)},
        {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)},
    ]


def _outcome(answer: Answer) -> tuple[str, type[PromptFailed], bool]:
    """Why an answer may hold less than asked for, "" for no reason; what failure that is; and
    whether asking again is in vain."""
    if answer.refusal:
        return f"refused: {_folded(answer.refusal)}", PromptRefused, True
    if answer.finish_reason == "content_filter":
        return "the provider's content filter stopped the answer", PromptFiltered, True
    if answer.finish_reason == "length":
        return "the answer was cut off by the length limit", PromptTruncated, False
    if answer.finish_reason == TOO_LARGE:
        return "the answer was far too long", PromptTruncated, False
    if answer.finish_reason is None and answer.content is None:
        return "the answer held no choices", PromptUnusable, False
    return "", PromptUnusable, False


def _entries(content: str | None) -> tuple[list[Any], str]:
    """The entries of an answer, whole ones of a broken answer too, and what is wrong with it."""
    if not content or not content.strip():
        return [], "the answer held no text"
    fenced = re.search(r"```(?:json)?\s*(\{.*)", content, re.DOTALL)
    try:
        value = from_json(fenced[1].partition("```")[0] if fenced else content, allow_partial=True)
    except ValueError as error:
        return [], f"the answer held no JSON: {_folded(str(error))}"
    entries = value.get("prompts") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        return [], 'the answer held no object with a list "prompts"'
    return entries, ""


def _text(entry: BaseModel | None) -> str:
    text: str = entry.text  # type: ignore[union-attr]
    return text


def _one_line(error: ValidationError) -> str:
    """What is wrong with an entry, without repeating what it holds at length."""
    flaws = [
        f"{'.'.join(map(str, flaw['loc'])) or 'the entry'}: {flaw['msg']}"
        for flaw in error.errors(include_input=False)
    ]
    return _folded("; ".join(flaws))


def _folded(text: str) -> str:
    return " ".join(text.split())[:300]
