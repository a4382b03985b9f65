"""What tests of the prompters share: a budget that counts words, and answers given in place."""

from collections.abc import Callable, Sequence

from pipeline.config import PrompterConfig, Run
from pipeline.prompter import load_prompter
from pipeline.prompter.budget import Budget, Reader
from pipeline.prompter.dialogue import Request, converse
from pipeline.prompter.near import MemoryNeighbours, Neighbours
from pipeline.taxonomy import Taxonomy
from pipeline.types import Answer, BasePrompt, Expansion
from tests.tiny import a_run

ADDRESS = "http://127.0.0.1:1/v1"


def words(proposer: int = 77, verifier: int = 40) -> Budget:
    """A budget whose tokens are words, and one at each end."""

    def count(text: str) -> int:
        return len(text.split()) + 2

    readers = {"proposer": (Reader(count, proposer),), "verifier": (Reader(count, verifier),)}
    return Budget(readers, ("proposer", "verifier"))


def nobody(request: Request) -> Answer:
    raise AssertionError("the grammar asks nobody")


def expand(
    text: str,
    count: int = 4,
    *,
    taxonomy: Taxonomy | None = None,
    run: Run | None = None,
    ask: Callable[[Request], Answer] = nobody,
    budget: Budget | None = None,
    neighbours: Neighbours | None = None,
) -> Expansion:
    """What a prompter makes of a base prompt, in this process."""
    run = run or a_run(PrompterConfig(prompts_per_base=count), taxonomy)
    prompter = load_prompter(
        run,
        budget or words(),
        neighbours or MemoryNeighbours(run.prompter.near_duplicate),
        ADDRESS,
    )
    return converse(prompter.expand(BasePrompt(text=text)), ask)


class Script:
    """Answers given one after the other, the last one for ever; keeps what was asked."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self._left: Sequence[Answer | Exception] = answers
        self.asked: list[Request] = []

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request)
        answer = self._left[0]
        if len(self._left) > 1:
            self._left = self._left[1:]
        if isinstance(answer, Exception):
            raise answer
        return answer
