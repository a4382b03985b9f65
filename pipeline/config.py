"""What a run is made of: the settings of each stage, frozen into run.json.

Plain values without secrets; who reads them from the environment is workers.settings.
"""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.taxonomy import Taxonomy
from pipeline.types import Frozen, ModelRef, RunName, Sampler, Thresholds, digest

MINIATURE = "miniature"
"""The model name that stands for the weights which come with the project."""

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class PrompterConfig(Frozen):
    """How a base prompt becomes detailed prompts."""

    kind: Literal["grammar", "openai"] = "grammar"
    taxonomy: str = MINIATURE  # a name of pipeline/taxonomies, or a YAML file
    prompts_per_base: Annotated[int, Field(ge=1, le=256)] = 4
    model: str = "gpt-4o-mini"  # openai only
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0  # openai only
    timeout_s: Annotated[float, Field(gt=0)] = 60.0  # openai only, per request


class ProposerConfig(Frozen):
    """Which pipeline draws, where, and how."""

    model: str = MINIATURE  # "miniature", a folder, or a hub id
    device: Device = "auto"
    dtype: Dtype = "auto"  # auto: bfloat16 on a GPU that has it, else float32
    images_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 2
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32  # images drawn in one pass
    sampler: Sampler = Sampler()


class VerifierConfig(Frozen):
    """Which model judges, where, and from which scores on it accepts."""

    model: str = MINIATURE  # "miniature", a folder, or a hub id
    device: Device = "auto"
    dtype: Dtype = "auto"
    thresholds: Thresholds = Thresholds()


class Run(Frozen):
    """One batch of base prompts under one frozen configuration; what run.json holds.

    A run is what its configuration, taxonomy and weights are: a second `ppv run` under the same
    name with other ones is refused. Secrets are no part of it.
    """

    name: RunName
    prompter: PrompterConfig
    taxonomy: Taxonomy
    proposer: ProposerConfig
    proposers: Annotated[tuple[ModelRef, ...], Field(min_length=1)]
    verifier: VerifierConfig
    verifier_ref: ModelRef
    versions: dict[str, str]  # of the libraries that shape the pixels and the scores
    created_at: str  # ISO 8601, UTC
    base_prompts: int | None = None  # how many there are, once all have been enqueued

    @property
    def prompter_digest(self) -> str:
        """What determines the detailed prompts of a base prompt."""
        return digest(
            {"config": self.prompter.model_dump(), "taxonomy": self.taxonomy.model_dump()}
        )

    @property
    def proposals_per_base(self) -> int:
        return (
            self.prompter.prompts_per_base * self.proposer.images_per_prompt * len(self.proposers)
        )

    @property
    def identity(self) -> dict[str, object]:
        """What two calls under one name must agree on."""
        return self.model_dump(exclude={"versions", "created_at", "base_prompts"})
