"""What a run is made of: the settings of each stage, frozen into run.json.

Plain values without secrets; who reads them from the environment is workers.settings.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from pipeline.prompter.instructions import Instructions
from pipeline.prompter.prices import Price
from pipeline.shipped import nearest
from pipeline.taxonomy import Taxonomy
from pipeline.types import (
    Frozen,
    Id,
    ModelRef,
    Opinion,
    PrompterRef,
    ProposerRef,
    RunName,
    Sampler,
    Thresholds,
    Usage,
    digest,
)

MINIATURE = "miniature"
"""The model name that stands for the weights which come with the project."""

BaseUrl = Annotated[str, Field(pattern=r"^(https?://[^@?#\s]+)?$")]
"""Of an OpenAI-compatible endpoint, without a key; "": OPENAI_BASE_URL's."""

Priority = Literal["low", "normal", "high"]
"""How large a run's share of the fleet is beside others': each step counts four times the last."""

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class PrompterConfig(Frozen):
    """How a base prompt becomes detailed prompts: whatever shapes their text."""

    kind: Literal["grammar", "openai", "verbatim"] = "grammar"
    """verbatim: base prompts are drawn as they are written, with prompts_per_base 1."""
    taxonomy: str = MINIATURE  # a name of pipeline/taxonomies, or a YAML file
    prompts_per_base: Annotated[int, Field(ge=1, le=256)] = 4
    fit: Literal["both", "proposer"] = "both"
    """Whose text encoders must take a prompt whole. The verifier's is usually the narrower one:
    with "proposer", prompts may be longer, and it judges them clause by clause."""
    near_duplicate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """The Jaccard similarity of word trigrams from which two texts count as one."""

    # openai only
    instructions: str = "default"  # a name of pipeline/prompter/prompts, or a YAML file
    model: str = "gpt-4o-mini"
    base_url: BaseUrl = ""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    structure: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What the endpoint is asked to hold its answers to; older models know less. Whatever comes
    is validated all the same."""
    seed: int | None = None  # for servers that sample by it
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None  # of one answer
    tries: Annotated[int, Field(ge=1, le=20)] = 3  # requests until a base prompt is given up

    @model_validator(mode="after")
    def _verbatim_is_one(self) -> Self:
        if self.kind == "verbatim" and self.prompts_per_base != 1:
            reason = (
                f"prompts_per_base: {self.prompts_per_base}, and kind verbatim makes one prompt of "
                "each base prompt: set prompter.prompts_per_base=1"
            )
            raise PydanticCustomError("verbatim", "{reason}", {"reason": reason})
        return self


class EndpointConfig(Frozen):
    """How a run may use the prompter's endpoint. None of it shapes a prompt; it can change."""

    timeout_s: Annotated[float, Field(gt=0)] = 60.0  # per request
    patience_s: Annotated[float, Field(ge=0)] = 600.0  # with an endpoint that is away or busy
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64  # requests of a run under way at once
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None  # of all workers together
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    spend_limit_usd: Annotated[float, Field(gt=0)] | None = None
    prices: str = "default"  # a name of pipeline/prompter/prices, or a YAML file
    batch_requests: Annotated[int, Field(ge=1)] = 50_000  # of one file, with --batch
    batch_bytes: Annotated[int, Field(ge=1024)] = 200_000_000
    batch_poll_s: Annotated[float, Field(gt=0)] = 30.0


class ProposerConfig(Frozen):
    """Which pipeline and which of its specialists draw, where, and how."""

    model: str = MINIATURE  # "miniature", a folder, or a hub id
    adapter: str = ""
    """What the base itself draws with: NAME or NAME@VERSION of the store's models, such as one that
    `ppv train finetune` made."""
    route: Literal["base", "specialist", "all"] | dict[str, Annotated[float, Field(ge=0)]] = "base"
    """Who draws a detailed prompt: the base; the specialist of its category; all of them, each
    images_per_prompt pictures; or shares of its pictures, such as {"base": 1, "specialist": 3},
    where a category's name stands for that category's specialist."""
    specialists: dict[str, str] = {}
    """The adapter of each category, as NAME or NAME@VERSION of the store's models, or "base" for
    none. A category that is not named here has the adapter of its own name."""
    device: Device = "auto"
    dtype: Dtype = "auto"  # auto: bfloat16 on a GPU that has it, else float32
    images_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 2
    images_per_message: Annotated[int, Field(ge=1, le=1024)] = 64  # that a worker takes at once
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Images drawn in one pass. auto: on a GPU a message's if they fit, else the most that do,
    found once and remembered; on a CPU 32. What does not fit is halved in any case."""
    sampler: Sampler = Sampler()
    compile: bool = False  # the denoiser, by torch.compile, when a worker first draws
    channels_last: bool | Literal["auto"] = "auto"  # memory format of UNet and autoencoder
    vae_slices: bool | Literal["auto"] = (
        "auto"  # decode picture by picture; auto: above 1 megapixel
    )
    text_cache: Annotated[int, Field(ge=1)] = 256  # prompts whose encoding a worker keeps


class OpinionsConfig(Frozen):
    """Other models that score what the verifier judges; each is off unless it is named."""

    clip_score: str = ""  # a CLIP, as a folder or hub id: the cosine of picture and prompt
    preference: str = ""  # a CLIP tuned on people's preferences, such as yuvalkirstain/PickScore_v1
    image_reward: str = ""  # a folder that `python -m pipeline.verifier.image_reward` wrote
    vision: str = ""  # a language model that sees, at an OpenAI-compatible endpoint
    vision_base_url: BaseUrl = ""

    @property
    def models(self) -> dict[str, str]:
        """Those whose weights are loaded, by opinion."""
        return {name: model for name in LOADED if (model := getattr(self, name))}

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores that they give."""
        return (*self.models, *(VISION_SCORES if self.vision else ()))


VISION_SCORES = ("vision_fidelity", "vision_alignment")
LOADED = ("clip_score", "preference", "image_reward")
OPINIONS = (*LOADED, *VISION_SCORES)


class VerifierConfig(Frozen):
    """Which model judges, where, and from which scores on it accepts."""

    model: str = MINIATURE  # "miniature", a folder, or a hub id
    device: Device = "auto"
    dtype: Dtype = "auto"  # auto: bfloat16 on a GPU that has it, else float32
    compile: bool = False  # by torch.compile, when a worker first judges
    thresholds: Thresholds | None = None
    """None: the operating point that comes with the model, 0.5 and 0.5 where none does."""
    opinions: OpinionsConfig = OpinionsConfig()
    accept_if: dict[str, Opinion] = {}
    """What second opinions must reach, by the names of their scores, for a picture to be accepted.
    The verifier's own thresholds count in any case; an opinion that is not named is only kept."""

    @model_validator(mode="after")
    def _accept_if_names_opinions(self) -> Self:
        for name in self.accept_if:
            if name not in OPINIONS:
                reason = f"accept_if: no score {name!r}; {nearest(name, OPINIONS)}"
            elif name not in self.opinions.scores:
                needed = "vision" if name in VISION_SCORES else name
                reason = f"accept_if: {name!r} needs a model in verifier.opinions.{needed}"
            else:
                continue
            raise PydanticCustomError("accept_if", "{reason}", {"reason": reason})
        return self


class Run(Frozen):
    """One batch of base prompts under one frozen configuration; what run.json holds.

    A run is what its configuration, taxonomy and weights are: a second `ppv run` under the same
    name with other ones is refused. Secrets are no part of it.
    """

    name: RunName
    prompter: PrompterConfig
    taxonomy: Taxonomy
    instructions: Instructions
    endpoint: EndpointConfig = EndpointConfig()
    price: Price | None = None  # of the prompter's model, where one is known
    vision_price: Price | None = None  # of the model that gives a second opinion
    proposer: ProposerConfig
    proposers: Annotated[tuple[ProposerRef, ...], Field(min_length=1)]  # all that draw in it
    verifier: VerifierConfig
    verifier_ref: ModelRef
    opinion_refs: dict[str, ModelRef] = {}  # the weights behind verifier.opinions, by opinion
    versions: dict[str, str]  # of the libraries that shape the pixels and the scores
    created_at: str  # ISO 8601, UTC
    priority: Priority = "normal"
    base_prompts: int | None = None  # how many there are, once all have been enqueued
    retried: int = 0  # how often failures were forgotten, to be tried again
    spent_before: Usage = Usage()  # on those
    written_off: tuple[Id, ...] = ()  # keys of answers in spent_before that are being deleted

    @property
    def prompter_digest(self) -> str:
        """What determines the detailed prompts of a base prompt."""
        return digest(
            {
                "config": self.prompter.model_dump(mode="json"),
                "taxonomy": self.taxonomy.model_dump(),
                "instructions": self.instructions.model_dump(),
            }
        )

    @property
    def prompter_ref(self) -> PrompterRef:
        kind = self.prompter.kind
        return PrompterRef(
            name=f"openai {self.prompter.model}" if kind == "openai" else kind,
            taxonomy=digest(self.taxonomy.model_dump()),
            instructions=digest(self.instructions.model_dump()),
        )

    @property
    def thresholds(self) -> Thresholds:
        """The verifier's operating point; frozen with the run, whether configured or its own."""
        return self.verifier.thresholds or Thresholds()

    @property
    def asks_endpoint(self) -> bool:
        """Whether a language model is paid for anything of it."""
        return self.prompter.kind == "openai" or bool(self.verifier.opinions.vision)

    @property
    def proposals_per_prompt(self) -> int:
        """The same for every prompt, whatever its category."""
        every = len(self.proposers) if self.proposer.route == "all" else 1
        return self.proposer.images_per_prompt * every

    @property
    def proposals_per_base(self) -> int:
        return self.prompter.prompts_per_base * self.proposals_per_prompt

    @property
    def identity(self) -> dict[str, object]:
        """What two calls under one name must agree on."""
        mutable: set[str] = {
            "versions",
            "created_at",
            "priority",
            "base_prompts",
            "retried",
            "spent_before",
            "written_off",
            "endpoint",
            "price",
            "vision_price",
        }
        same = self.model_dump(mode="json", exclude=mutable)
        same["verifier"]["thresholds"] = self.thresholds.model_dump(exclude={"chosen_by"})
        return same
