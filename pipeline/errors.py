"""What can go wrong, and who has to act on it.

PpvError
├── InputError        the input or the configuration is wrong: exit code 2, one line
│   ├── TaxonomyError     a taxonomy file that cannot be read, or names that do not fit it
│   └── ModelError        a model folder that is missing, holds a pickle, or is of the wrong kind
├── ServiceError      broker, store or endpoint cannot be reached: exit code 3, names its address
├── RunStalled        a run does not end: exit code 1
└── ItemError         one item cannot be done: recorded as a failure, the rest goes on
    └── PromptFailed      the prompter has no detailed prompt for a base prompt
"""


class PpvError(Exception):
    """Every error that this project raises on purpose."""


class InputError(PpvError):
    """The input or the configuration was wrong; the message says what would have been right."""


class TaxonomyError(InputError):
    """A taxonomy file that cannot be read, or a name that it does not hold."""


class ModelError(InputError):
    """A model that cannot be loaded: missing, of the wrong kind, or not safetensors."""


class ServiceError(PpvError):
    """A service that cannot be reached; the message names its address, never a secret."""


class RunStalled(PpvError):
    """What a run misses does not come, though it was sent again and again."""


class ItemError(PpvError):
    """One item cannot be done, and trying again will not help."""


class PromptFailed(ItemError):
    """The prompter has no detailed prompt for this base prompt."""
