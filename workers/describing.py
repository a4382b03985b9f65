"""What a prompt worker does with a base prompt: have it described, and keep what comes of it."""

from typing import TYPE_CHECKING

from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.prompter import load_prompter
from pipeline.prompter.budget import budget_of
from pipeline.prompter.dialogue import Prompter, Request, converse
from pipeline.types import Answer, BasePrompt, DetailedPrompt, Expansion, Failure
from storage.answers import Answers
from storage.runs import RunFolder
from storage.spending import spending
from workers import attempts
from workers.admission import Admission
from workers.broker import Broker
from workers.neighbours import RedisNeighbours

if TYPE_CHECKING:
    from pipeline.prompter.endpoint import Endpoint


class Describer:
    """Detailed prompts for one run's base prompts, each made once. Safe between threads."""

    def __init__(self, folder: RunFolder, run: Run, broker: Broker) -> None:
        """Raises InputError without a key, ModelError without the models' tokenizers."""
        self.run, self.folder = run, folder
        self.answers = Answers(folder.store)
        self.endpoint: Endpoint | None = None
        if run.prompter.kind == "openai":
            from pipeline.prompter import endpoint
            from workers.asking import Asker

            self.endpoint = endpoint.Endpoint(run.prompter, run.endpoint.timeout_s)
            self._asker = Asker(
                run,
                self.endpoint,
                self.answers,
                admission_of(folder, run, broker),
            )
        self.prompter: Prompter = load_prompter(
            run,
            budget_of(run),
            _neighbours(folder, run, broker),
            self.endpoint.address if self.endpoint else "",
        )

    def describe(self, base: BasePrompt) -> tuple[DetailedPrompt, ...]:
        """Those in the store, else fresh ones; what is missing of them is a failure on record.

        Raises RunCancelled; InputError for what is wrong for every base prompt, such as the key;
        and ServiceError where store or broker is away.
        """
        stored = self.folder.read_expansion(base)
        if stored is not None:
            self._keep_shortfall(base, stored)
            return stored.prompts
        try:
            expansion = attempts.persist(lambda: converse(self.prompter.expand(base), self._ask))
        except attempts.GivenUp as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            self.fail(base, error)
            return ()
        self.keep(base, expansion)
        return expansion.prompts

    def keep(self, base: BasePrompt, expansion: Expansion) -> None:
        """Write what came of a base prompt, and what did not."""
        self.folder.write_expansion(base, expansion)
        self._keep_shortfall(base, expansion)

    def fail(self, base: BasePrompt, error: attempts.GivenUp) -> None:
        """Put it on record that a base prompt has no detailed prompts."""
        attempts.give_up_base(self.folder, self.run, base, error)

    def _keep_shortfall(self, base: BasePrompt, expansion: Expansion) -> None:
        if not expansion.shortfall:
            return
        wanted, came = self.run.prompter.prompts_per_base, len(expansion.prompts)
        self.folder.write_failure(
            Failure(
                id=base.id,
                stage="prompt",
                subject=base.text,
                error=f"{came} of {wanted} prompts came: {expansion.shortfall}",
                tries=self.run.prompter.tries,
                proposals=(wanted - came) * self.run.proposals_per_prompt,
                answers=expansion.answers,
            )
        )

    def _ask(self, request: Request) -> Answer:
        return self._asker.ask(request)


def admission_of(folder: RunFolder, run: Run, broker: Broker) -> Admission:
    """A run's way to its endpoints, with what it has spent so far."""
    admission = Admission(broker.client, run.name, broker.address)
    if admission.spent() is None:  # a new run, or a Redis that has forgotten
        admission.restore(spending(folder).usd or 0.0)
    return admission


def _neighbours(folder: RunFolder, run: Run, broker: Broker) -> RedisNeighbours:
    """The texts of the run, read from the store where Redis does not know them."""
    neighbours = RedisNeighbours(
        broker.client, run.name, run.prompter.near_duplicate, broker.address
    )
    if not neighbours.is_whole():
        neighbours.rebuild(
            (prompt.id, prompt.text)
            for expansion in folder.expansions()
            for prompt in expansion.prompts
        )
    return neighbours
