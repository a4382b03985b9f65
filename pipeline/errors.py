"""What can go wrong, and who has to act on it.

PpvError
├── InputError        the input or the configuration is wrong: exit code 2, one line
│   ├── TaxonomyError     a taxonomy file that cannot be read, or names that do not fit it
│   └── ModelError        a model folder that is missing, holds a pickle, or is of the wrong kind
│       └── ModelNotHere      this machine lacks the model, or what it needs: another may have it
├── ServiceError      broker, store or endpoint cannot be reached: exit code 3, names its address
├── TrainingDiverged  a loss is no number any more (pipeline/training/loop.py): exit code 1
└── ItemError         one item cannot be done: recorded as a failure, the rest goes on
    └── PromptFailed      the prompter has no detailed prompt for a base prompt
        ├── PromptRefused     the language model declined
        ├── PromptFiltered    the provider's content filter stopped request or answer
        ├── PromptTruncated   no answer came to its end before the length limit
        ├── PromptUnusable    no answer held what was asked for
        ├── PromptRejected    the endpoint calls the request itself wrong
        ├── EndpointAway      the endpoint stayed away, or busy, longer than the run is patient
        └── SpendingLimit     the run may not spend more
"""

from pipeline.types import Usage


class PpvError(Exception):
    """Every error that this project raises on purpose."""


class InputError(PpvError):
    """The input or the configuration was wrong; the message says what would have been right."""


class TaxonomyError(InputError):
    """A taxonomy file that cannot be read, or a name that it does not hold."""


class ModelError(InputError):
    """A model that cannot be loaded: missing, of the wrong kind, or not safetensors."""


class ModelNotHere(ModelError):
    """This machine lacks a model's files, its libraries or its GPU, and another may have them."""


class ServiceError(PpvError):
    """A service that cannot be reached; the message names its address, never a secret."""


class ItemError(PpvError):
    """One item cannot be done, and trying again will not help."""


class PromptFailed(ItemError):
    """The prompter has no detailed prompt for this base prompt.

    usage: what was paid all the same. answers: the keys of those that could not be used.
    """

    def __init__(self, message: str, usage: Usage = Usage(), answers: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.usage, self.answers = usage, answers

    @property
    def named(self) -> str:
        return f"{type(self).__name__}: {self}"


class PromptRefused(PromptFailed):
    """The language model declined; the message holds its words."""


class PromptFiltered(PromptFailed):
    """The provider's content filter stopped the request or its answer."""


class PromptTruncated(PromptFailed):
    """No answer came to its end before the length limit."""


class PromptUnusable(PromptFailed):
    """No answer held what was asked for."""


class PromptRejected(PromptFailed):
    """The endpoint calls the request itself wrong, and will do so again."""


class EndpointAway(PromptFailed):
    """The endpoint stayed away, or busy, longer than the run is patient."""


class SpendingLimit(PromptFailed):
    """The run has spent what it may."""

    @classmethod
    def of(cls, limit_usd: float) -> "SpendingLimit":
        return cls(
            f"the run may spend ${limit_usd:.2f}, and the next answer would go beyond that: raise "
            "endpoint.spend_limit_usd, then try again what failed"
        )
