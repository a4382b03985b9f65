"""The words of the project as frozen values, and the ids that their content gives them.

base prompt -> detailed prompts -> proposals -> verdicts -> records. A value is made once and
passed on; an id is a hash of the content that determines the thing, so that work done twice
lands on the same key. Nothing here knows of queues, stores or models.
"""

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, computed_field

RunName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Becomes a part of keys and paths: at most 64 of a-z, 0-9, '.', '_' and '-', no leading dot."""

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Score = Annotated[float, Field(ge=0.0, le=1.0)]


def digest(content: Any) -> str:
    """128 bits of SHA-256 over canonical JSON, as 32 hexadecimal digits."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


class Frozen(BaseModel):
    """A value: no field changes after it is made, and no unknown field gets in."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BasePrompt(Frozen):
    """One line from the user: "a hand holding a mug"."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=2000)]

    @cached_property
    def id(self) -> str:
        return digest({"base": self.text})


class DetailedPrompt(Frozen):
    """What the prompter makes of a base prompt: a full description, its category and attributes."""

    id: Id
    base: str
    index: Annotated[int, Field(ge=0)]  # which of the base prompt's k detailed prompts
    text: Annotated[str, StringConstraints(min_length=1)]
    category: str  # a hand-pose category of the run's taxonomy
    attributes: dict[str, str] = {}  # what the text says, by name: {"object": "mug", ...}

    @staticmethod
    def id_of(prompter: str, base: str, index: int) -> str:
        """prompter: the digest of the prompter's configuration."""
        return digest({"prompter": prompter, "base": base, "index": index})


class ModelRef(Frozen):
    """A model by name and by what its weights are.

    name: a folder or a hub id. weights: "sha256:..." over a folder's files, or "hub:..." with the
    commit of a hub id.
    """

    name: str
    weights: str


class Sampler(Frozen):
    """How a proposer draws; every field reaches the diffusers pipeline by this name.

    The defaults suit the miniature; SDXL wants about 30 steps and a guidance of 5 to 7.
    """

    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 16
    guidance_scale: Annotated[float, Field(ge=0.0, le=50.0)] = 2.0
    negative_prompt: str = ""
    height: Annotated[int, Field(ge=8, le=8192)] | None = None  # pixels; None: the model's own
    width: Annotated[int, Field(ge=8, le=8192)] | None = None


class Proposal(Frozen):
    """One image to be: a detailed prompt, a proposer, a seed and sampler settings."""

    prompt: DetailedPrompt
    proposer: ModelRef
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    sampler: Sampler

    @cached_property
    def id(self) -> str:
        return digest(
            {
                "text": self.prompt.text,
                "proposer": self.proposer.model_dump(),
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
    """A proposal's own part within a batch: what its neighbours do not share."""

    prompt: DetailedPrompt
    seed: int


class ProposalBatch(Frozen):
    """What one message carries to the proposer and on to the verifier: ids and text, no pixels.

    All draws share proposer and sampler, so that a worker takes them in one forward pass.
    """

    run: RunName
    proposer: ModelRef
    sampler: Sampler
    draws: Annotated[tuple[Draw, ...], Field(min_length=1)]

    @cached_property
    def proposals(self) -> tuple[Proposal, ...]:
        return tuple(
            Proposal(
                prompt=draw.prompt, proposer=self.proposer, seed=draw.seed, sampler=self.sampler
            )
            for draw in self.draws
        )

    @cached_property
    def id(self) -> str:
        return digest([proposal.id for proposal in self.proposals])


class PromptBatch(Frozen):
    """What one message carries to the prompter: base prompts of one run."""

    run: RunName
    bases: Annotated[tuple[BasePrompt, ...], Field(min_length=1)]

    @cached_property
    def id(self) -> str:
        return digest([base.id for base in self.bases])


class Thresholds(Frozen):
    """The verifier's operating point: a proposal is accepted when both scores reach theirs."""

    fidelity: Score = 0.5
    alignment: Score = 0.5


class ClauseScore(Frozen):
    """The verifier's reading of one clause of a prompt."""

    text: str
    fidelity: Score
    alignment: Score


class Verdict(Frozen):
    """The verifier's scores of one proposal, both in [0, 1], clause by clause.

    fidelity: is the hand right? alignment: does the picture show what the prompt says?
    A prompt that the verifier can read at once has one clause.
    """

    model_config = ConfigDict(extra="ignore")  # `accepted` is derived, and ignored when read back

    fidelity: Score
    alignment: Score
    clauses: Annotated[tuple[ClauseScore, ...], Field(min_length=1)]
    thresholds: Thresholds

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accepted(self) -> bool:
        return (
            self.fidelity >= self.thresholds.fidelity
            and self.alignment >= self.thresholds.alignment
        )


class Record(Frozen):
    """Everything known of one proposal, accepted or not: enough to draw its image again."""

    id: Id
    run: RunName
    proposal: Proposal
    image: str  # the picture's key in the store, below the run
    image_sha256: str
    verifier: ModelRef
    verdict: Verdict
    unread_tokens: int = 0  # tokens of the prompt that the proposer's text encoders could not take


class Failure(Frozen):
    """What was given up: a base prompt that has no detailed prompts, or a proposal."""

    id: Id
    stage: str  # prompt, propose or verify
    subject: str  # the text that failed
    error: str
    tries: Annotated[int, Field(ge=1)]
