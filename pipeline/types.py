"""The words of the project as frozen values, and the ids that their content gives them.

base prompt -> detailed prompts -> proposals -> verdicts -> records. A value is made once and
passed on; an id is a hash of the content that determines the thing, so that work done twice
lands on the same key. Nothing here knows of queues, stores or models.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    computed_field,
)

RunName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Becomes a part of keys and paths: at most 64 of a-z, 0-9, '.', '_' and '-', no leading dot."""

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Score = Annotated[float, Field(ge=0.0, le=1.0)]
Opinion = Annotated[float, Field(allow_inf_nan=False)]
"""Another model's score, on that model's own scale."""


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def digest(content: Any) -> str:
    """128 bits of SHA-256 over canonical JSON, as 32 hexadecimal digits."""
    return hashlib.sha256(_canonical(content).encode()).hexdigest()[:32]


class Frozen(BaseModel):
    """A value: no field changes after it is made, and no unknown field gets in."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BasePrompt(Frozen):
    """One line from the user: "a hand holding a mug"."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=2000)]

    @cached_property
    def id(self) -> str:
        return digest({"base": self.text})


class Reading(Frozen):
    """How a model reads a prompt: in how many tokens, special ones included, and of how many."""

    tokens: Annotated[int, Field(ge=0)]
    limit: Annotated[int, Field(ge=1)]  # what its text encoder takes at once

    @property
    def unread(self) -> int:
        """Tokens beyond the limit."""
        return max(0, self.tokens - self.limit)


class DetailedPrompt(Frozen):
    """What the prompter makes of a base prompt: a full description, its category and attributes."""

    id: Id
    base: str
    index: Annotated[int, Field(ge=0)]  # which of the base prompt's k detailed prompts
    text: Annotated[str, StringConstraints(min_length=1)]
    category: str  # a hand-pose category of the run's taxonomy
    attributes: dict[str, str] = {}  # what the text says, by name: {"object": "mug", ...}
    readings: dict[str, Reading] = {}  # by stage: {"proposer": ..., "verifier": ...}
    cut: str = ""  # the end of what the prompter wrote, where no shorter wording fit the budget
    repeats: bool = False  # nearly a text that the run has already, and nothing newer was found

    @staticmethod
    def id_of(prompter: str, base: str, index: int) -> str:
        """prompter: the digest of the prompter's configuration."""
        return digest({"prompter": prompter, "base": base, "index": index})


class Usage(Frozen):
    """What a language model was paid for; no price is known where usd is None."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        known = self.usd is not None and other.usd is not None
        return Usage(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            usd=(self.usd or 0.0) + (other.usd or 0.0) if known else None,
        )


class Answer(Frozen):
    """What a language model said to one request, usable or not: it was paid for, so it is kept."""

    content: str | None
    refusal: str | None = None
    finish_reason: str | None = None  # stop, length, content_filter; None: there was no choice
    model: str = ""  # as the endpoint names what answered
    usage: Usage = Usage(requests=1)
    run: str = ""  # the run that paid


class Expansion(Frozen):
    """What became of one base prompt: its detailed prompts, and what they took to make."""

    prompts: Annotated[tuple[DetailedPrompt, ...], Field(min_length=1)]
    usage: Usage = Usage()  # what this run paid for; answers from the cache cost nothing
    dropped: tuple[str, ...] = ()  # texts that nearly repeated others, and were replaced
    shortfall: str = ""  # why there are fewer prompts than asked for, if there are
    answers: tuple[Id, ...] = ()  # those that could not be used


class PrompterRef(Frozen):
    """What wrote a prompt, and the hashes of the files that told it how."""

    name: str  # "grammar", or "openai" and its model
    taxonomy: Id
    instructions: Id


BASE = "base"
"""The label of a base pipeline that draws alone; no adapter has this name."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Becomes a part of keys and paths, like a run's name."""

Scheduler = Literal["own", "ddim", "dpmpp_2m", "euler", "euler_ancestral", "unipc"]
"""Samplers, by the names that people know them by."""


def version_of(weights: str) -> str:
    """The version under which weights are kept: the first 12 digits of their hash."""
    return weights.removeprefix("sha256:")[:12]


class ModelRef(Frozen):
    """A model by name and by what its weights are.

    name: a folder or a hub id. weights: "sha256:..." over a folder's files, or "hub:..." with the
    commit of a hub id.
    """

    name: str
    weights: str


class Adapter(Frozen):
    """A specialist's weights for a base: low-rank ones, or all of its denoiser's.

    They lie in the store under models/<name>/<version>/.
    """

    name: ModelName
    weights: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    category: str = ""  # the hand-pose category that it is for; "": none
    token: str = ""  # the rare word that it answers to, put before each prompt; "": none
    scale: float = 1.0  # of low-rank weights

    @property
    def version(self) -> str:
        return version_of(self.weights)


class ProposerRef(ModelRef):
    """What draws: a base pipeline, alone or with one adapter."""

    adapter: Adapter | None = None

    @classmethod
    def of(cls, base: ModelRef, adapter: Adapter | None = None) -> "ProposerRef":
        return cls(name=base.name, weights=base.weights, adapter=adapter)

    @property
    def base(self) -> ModelRef:
        return ModelRef(name=self.name, weights=self.weights)

    @property
    def label(self) -> str:
        """What people call it: the adapter's name, or "base"."""
        return self.adapter.name if self.adapter else BASE

    @property
    def title(self) -> str:
        """Its whole name: "miniature", or "miniature + pinch@0123456789ab"."""
        own = self.adapter
        return f"{self.name} + {own.name}@{own.version}" if own else self.name

    @property
    def hashes(self) -> str:
        """Of all weights that drew: the base's, and the adapter's after it."""
        return f"{self.weights} + {self.adapter.weights}" if self.adapter else self.weights


class Sampler(Frozen):
    """How a proposer draws; every field but the scheduler reaches the pipeline by this name.

    The defaults suit the miniature; SDXL wants about 30 steps and a guidance of 5 to 7.
    """

    scheduler: Scheduler = "own"  # the one that comes with the model
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 16
    guidance_scale: Annotated[float, Field(ge=0.0, le=50.0)] = 2.0
    negative_prompt: str = ""
    height: Annotated[int, Field(ge=8, le=8192)] | None = None  # pixels; None: the model's own
    width: Annotated[int, Field(ge=8, le=8192)] | None = None


class Proposal(Frozen):
    """One image to be: a detailed prompt, a proposer, a seed and sampler settings."""

    prompt: DetailedPrompt
    proposer: ProposerRef
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    sampler: Sampler

    @cached_property
    def id(self) -> str:
        return digest(
            {
                "text": self.prompt.text,
                "proposer": self.proposer.model_dump(exclude_none=True),
                "seed": self.seed,
                "sampler": self.sampler.model_dump(),
            }
        )


def seed_of(prompt: DetailedPrompt, image: int) -> int:
    """The seed of a detailed prompt's n-th image, in [0, 2**63).

    It does not depend on the proposer, so that proposers can be compared on the same noise.
    """
    return int(digest({"prompt": prompt.id, "image": image})[:16], 16) >> 1


class Draw(Frozen):
    """The part of a batch that one detailed prompt has: its images, by their seeds."""

    prompt: DetailedPrompt
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]


MESSAGE_FORMAT = 1
"""Of the batches below. It goes up when workers that know the last one could no longer read them;
who knows a newer one also reads what older senders left in the queues."""

MessageFormat = Annotated[int, Field(ge=1, le=MESSAGE_FORMAT)]


class ProposalBatch(Frozen):
    """What one message carries to the proposer and on to the verifier: ids and text, no pixels.

    All draws share proposer and sampler, so that a worker takes them in one forward pass. A prompt
    stands there once for all its images: messages are most of what a base prompt costs.
    """

    format: MessageFormat = MESSAGE_FORMAT
    run: RunName
    proposer: ProposerRef
    sampler: Sampler
    draws: Annotated[tuple[Draw, ...], Field(min_length=1)]
    again: bool = False  # it may have been sent before: some of its pictures may be there

    @classmethod
    def of(
        cls,
        run: str,
        proposer: ProposerRef,
        sampler: Sampler,
        images: Iterable[tuple[DetailedPrompt, int]],
        *,
        again: bool = False,
    ) -> "ProposalBatch":
        """images: the prompt and the seed of each; at least one."""
        seeds: dict[str, list[int]] = {}
        prompts: dict[str, DetailedPrompt] = {}
        for prompt, seed in images:
            prompts[prompt.id] = prompt
            seeds.setdefault(prompt.id, []).append(seed)
        draws = tuple(Draw(prompt=prompts[id], seeds=tuple(some)) for id, some in seeds.items())
        return cls(run=run, proposer=proposer, sampler=sampler, draws=draws, again=again)

    @cached_property
    def proposals(self) -> tuple[Proposal, ...]:
        return tuple(
            Proposal(prompt=draw.prompt, proposer=self.proposer, seed=seed, sampler=self.sampler)
            for draw in self.draws
            for seed in draw.seeds
        )

    @cached_property
    def id(self) -> str:
        return digest([proposal.id for proposal in self.proposals])


class PromptBatch(Frozen):
    """What one message carries to the prompter: base prompts of one run."""

    format: MessageFormat = MESSAGE_FORMAT
    run: RunName
    bases: Annotated[tuple[BasePrompt, ...], Field(min_length=1)]
    again: bool = False  # as of a ProposalBatch

    @cached_property
    def id(self) -> str:
        return digest([base.id for base in self.bases])


Batch = PromptBatch | ProposalBatch
BATCH: TypeAdapter[Batch] = TypeAdapter(Batch)


class Thresholds(Frozen):
    """The verifier's operating point: a proposal is accepted when both scores reach theirs."""

    fidelity: Score = 0.5
    alignment: Score = 0.5
    chosen_by: str = ""
    """Which operating point this is: what its verifier's training chose it by, "configuration", or
    "default" for a verifier that comes with none. "": not known."""


class ClauseScore(Frozen):
    """The verifier's reading of one clause of a prompt."""

    text: str
    fidelity: Score
    alignment: Score


class Verdict(Frozen):
    """The verifier's scores of one proposal, both in [0, 1], clause by clause.

    fidelity: is the hand right? alignment: does the picture show what the prompt says?
    A prompt that the verifier can read at once has one clause. opinions: the scores of other
    models, by name, each on its own scale; unheard: those that gave none, and why. accept_if: the
    opinions that count, and what each must reach; one that is unheard reaches nothing.
    """

    model_config = ConfigDict(extra="ignore")  # what is derived is ignored when read back

    fidelity: Score
    alignment: Score
    clauses: Annotated[tuple[ClauseScore, ...], Field(min_length=1)]
    thresholds: Thresholds
    opinions: dict[str, Opinion] = {}
    unheard: dict[str, str] = {}
    accept_if: dict[str, Opinion] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accepted(self) -> bool:
        return (
            self.fidelity >= self.thresholds.fidelity
            and self.alignment >= self.thresholds.alignment
            and not self.objections
        )

    @property
    def objections(self) -> tuple[str, ...]:
        """The opinions that do not reach what they must."""
        return tuple(
            name
            for name, least in self.accept_if.items()
            if name not in self.opinions or self.opinions[name] < least
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def failing_clause(self) -> str | None:
        """Of a prompt in several clauses that the picture does not show, the one it shows least."""
        if len(self.clauses) == 1 or self.alignment >= self.thresholds.alignment:
            return None
        return min(self.clauses, key=lambda clause: clause.alignment).text


class Record(Frozen):
    """Everything known of one proposal, accepted or not: enough to draw its image again."""

    id: Id
    run: RunName
    proposal: Proposal
    image: str  # the picture's key in the store, below the run
    image_sha256: str
    prompter: PrompterRef
    verifier: ModelRef
    verdict: Verdict
    unread_tokens: int = 0  # tokens of the prompt that the proposer's text encoders could not take
    upcast: bool = False  # decoded again in float32, since half precision gave no picture
    usage: Usage = Usage()  # what its second opinions were paid for

    @property
    def outcome(self) -> "Outcome":
        return Outcome(
            id=self.id,
            base=self.proposal.prompt.base,
            category=self.proposal.prompt.category,
            accepted=self.verdict.accepted,
        )


class Outcome(BaseModel):
    """What counting a record takes, read from its JSON without building the rest."""

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    id: Id
    base: Annotated[str, Field(validation_alias=AliasPath("proposal", "prompt", "base"))]
    category: Annotated[str, Field(validation_alias=AliasPath("proposal", "prompt", "category"))]
    accepted: Annotated[bool, Field(validation_alias=AliasPath("verdict", "accepted"))]


class Failure(Frozen):
    """What was given up: a base prompt that has no detailed prompts, or a proposal."""

    id: Id
    stage: str  # prompt, propose or verify
    subject: str  # the text that failed
    error: str
    tries: Annotated[int, Field(ge=1)]
    proposals: int = 1  # how many are lost with it
    usage: Usage = Usage()  # what was paid for in vain
    answers: tuple[Id, ...] = ()  # those that could not be used: asked for anew when tried again
