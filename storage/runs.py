"""The layout of a run in the store. The only place that spells a key.

    runs/<run>/run.json                      the frozen configuration
    runs/<run>/inputs/<prompt-batch-id>.jsonl  base prompts as they were enqueued
    runs/<run>/prompts/<base-id>.json        the detailed prompts of one base prompt, their cost
    runs/<run>/images/<proposal-id>.png      the picture, lossless
    runs/<run>/records/<batch-id>.jsonl      the records of one verified batch
    runs/<run>/failures/<id>.json            what was given up
    runs/<run>/scores/<metric>/<id>.json     what `ppv evaluate models` measured of some pictures
    runs/<run>/batches/<chunk-id>.json       what was sent to the provider's batches endpoint

    entrusted/<run>                          a run that nobody waits for: the fleet is to finish it

Inputs are kept so that a run can be finished from the store alone, whatever became of the queue.
"""

import json
from collections.abc import Iterable, Iterator, Mapping

import tenacity
from pydantic import TypeAdapter, ValidationError

from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.types import (
    BasePrompt,
    Expansion,
    Failure,
    Frozen,
    Id,
    Outcome,
    PromptBatch,
    ProposalBatch,
    Record,
    RunName,
)
from storage.ahead import ahead
from storage.objects import ObjectNotFound, ObjectStore

_RUN_NAME = TypeAdapter(RunName)
_SCORES = TypeAdapter(dict[str, float])


def check_run_name(name: str) -> str:
    """The name itself. Raises InputError if it cannot become a part of a key."""
    try:
        return _RUN_NAME.validate_python(name)
    except ValidationError:
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        raise InputError(
            f"run name {shown!r}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or a digit"
        ) from None


def run_names(store: ObjectStore) -> list[str]:
    """The runs that the store holds, sorted."""
    return sorted(name for name in store.folders("runs") if store.exists(f"runs/{name}/run.json"))


def entrusted(store: ObjectStore) -> list[str]:
    """The runs that the fleet is to see through to their end, sorted."""
    return sorted(key.rpartition("/")[2] for key in store.list("entrusted/"))


class SentBatch(Frozen):
    """Requests that went to the provider's batches endpoint as one file."""

    chunk: Id  # our name for the file, in the batch's metadata
    address: str  # of the endpoint
    batch: str  # the provider's ids
    input_file: str
    requests: int
    done: bool = False  # its answers are in the cache


class RunFolder:
    """One run in the store: what was asked, what was made of it."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.store = store
        self.name = check_run_name(name)

    def _key(self, *parts: str) -> str:
        return "/".join(("runs", self.name, *parts))

    def _ids(self, kind: str, begin: str = "") -> Iterator[str]:
        """begin: the digits with which they begin."""
        for key in self.store.list(self._key(kind, begin)):
            yield key.rpartition("/")[2].partition(".")[0]

    # The configuration

    def exists(self) -> bool:
        return self.store.exists(self._key("run.json"))

    def read(self) -> Run:
        """Raises InputError if there is no such run."""
        try:
            return Run.model_validate_json(self.store.get(self._key("run.json")))
        except ObjectNotFound:
            known = ", ".join(run_names(self.store)[:8]) or "none"
            raise InputError(
                f"no run {self.name!r} in {self.store.address} (there: {known})"
            ) from None

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(InputError),
        wait=tenacity.wait_fixed(0.3),
        stop=tenacity.stop_after_attempt(5),
        reraise=True,
    )
    def reread(self) -> Run:
        """Of a run that was there; its run.json may look absent while it is being replaced."""
        return self.read()

    def write(self, run: Run) -> None:
        self.store.put(self._key("run.json"), run.model_dump_json(indent=1).encode())

    # Who sees it through

    def entrust(self) -> None:
        """To the fleet, which sends again what gets lost: nobody waits for it here."""
        self.store.put(f"entrusted/{self.name}", self.name.encode())

    def withdraw(self) -> None:
        """Undo `entrust`; of a run that is done or cancelled."""
        self.store.delete(f"entrusted/{self.name}")

    # Base prompts

    def write_input(self, batch: PromptBatch) -> None:
        lines = (base.model_dump_json() for base in batch.bases)
        self.store.put(self._key("inputs", f"{batch.id}.jsonl"), _jsonl(lines))

    def input_ids(self, begin: str = "") -> Iterator[str]:
        return self._ids("inputs", begin)

    def read_input(self, batch_id: str) -> PromptBatch:
        lines = self.store.get(self._key("inputs", f"{batch_id}.jsonl")).splitlines()
        return PromptBatch(run=self.name, bases=tuple(map(BasePrompt.model_validate_json, lines)))

    def inputs(self) -> Iterator[PromptBatch]:
        """Every batch of base prompts that was enqueued."""
        return ahead(self.read_input, self.input_ids())

    # Detailed prompts

    def read_expansion(self, base: BasePrompt) -> Expansion | None:
        """None if the base prompt has no detailed prompts yet."""
        try:
            return self.expansion(base.id)
        except ObjectNotFound:
            return None

    def expansion(self, base_id: str) -> Expansion:
        """Raises ObjectNotFound."""
        return Expansion.model_validate_json(self.store.get(self._expansion_key(base_id)))

    def write_expansion(self, base: BasePrompt, expansion: Expansion) -> None:
        data = expansion.model_dump_json().encode()
        self.store.put(self._expansion_key(base.id), data)

    def expansions(self) -> Iterator[Expansion]:
        """Of every base prompt that has one; a stream, in no order."""
        for base_id in self.prompted_ids():
            yield self.expansion(base_id)

    def _expansion_key(self, base_id: str) -> str:
        return self._key("prompts", f"{base_id}.json")

    def prompted_ids(self, begin: str = "") -> Iterator[str]:
        return self._ids("prompts", begin)

    # Pictures

    def image_key(self, proposal_id: str) -> str:
        """Below the run, as a record names it."""
        return f"images/{proposal_id}.png"

    def has_image(self, proposal_id: str) -> bool:
        return self.store.exists(self._key(self.image_key(proposal_id)))

    def read_image(self, proposal_id: str) -> bytes:
        """Raises ObjectNotFound."""
        return self.store.get(self._key(self.image_key(proposal_id)))

    def write_image(self, proposal_id: str, png: bytes) -> None:
        self.store.put(self._key(self.image_key(proposal_id)), png)

    def image_ids(self, begin: str = "") -> Iterator[str]:
        return self._ids("images", begin)

    # Records

    def has_records(self, batch: ProposalBatch) -> bool:
        return self.store.exists(self._key("records", f"{batch.id}.jsonl"))

    def write_records(self, batch: ProposalBatch, records: Iterable[Record]) -> None:
        lines = (record.model_dump_json() for record in records)
        self.store.put(self._key("records", f"{batch.id}.jsonl"), _jsonl(lines))

    def record_batches(self, begin: str = "") -> Iterator[str]:
        """The ids of the batches that have records."""
        return self._ids("records", begin)

    def records_of(self, batch_id: str) -> list[Record]:
        lines = self.store.get(self._key("records", f"{batch_id}.jsonl")).splitlines()
        return [Record.model_validate_json(line) for line in lines]

    def outcomes_of(self, batch_id: str) -> list[Outcome]:
        """The same, as far as counting goes."""
        lines = self.store.get(self._key("records", f"{batch_id}.jsonl")).splitlines()
        return [Outcome.model_validate_json(line) for line in lines]

    # Scores

    def write_scores(self, metric: str, part: str, scores: Mapping[str, float]) -> None:
        """scores: by proposal. part: the id of these proposals together."""
        data = json.dumps(scores).encode()
        self.store.put(self._key("scores", metric, f"{part}.json"), data)

    def read_scores(self, metric: str, part: str) -> dict[str, float] | None:
        """None if nobody has measured them."""
        try:
            data = self.store.get(self._key("scores", metric, f"{part}.json"))
        except ObjectNotFound:
            return None
        return _SCORES.validate_json(data)

    # Batches at the provider

    def write_batch(self, sent: SentBatch) -> None:
        data = sent.model_dump_json(indent=1).encode()
        self.store.put(self._key("batches", f"{sent.chunk}.json"), data)

    def read_batch(self, chunk: str) -> SentBatch | None:
        """None if this chunk was never sent."""
        try:
            return SentBatch.model_validate_json(
                self.store.get(self._key("batches", f"{chunk}.json"))
            )
        except ObjectNotFound:
            return None

    def batches(self) -> Iterator[SentBatch]:
        """All that were ever sent, done or not."""
        for chunk in self._ids("batches"):
            sent = self.read_batch(chunk)
            if sent is not None:
                yield sent

    # Failures

    def write_failure(self, failure: Failure) -> None:
        data = failure.model_dump_json(indent=1).encode()
        self.store.put(self._key("failures", f"{failure.id}.json"), data)

    def failed_ids(self, begin: str = "") -> Iterator[str]:
        return self._ids("failures", begin)

    def read_failure(self, failure_id: str) -> Failure:
        return Failure.model_validate_json(
            self.store.get(self._key("failures", f"{failure_id}.json"))
        )

    def forget_failure(self, failure: Failure) -> None:
        """So that a resumed run tries it again; a base prompt, from its beginning."""
        if failure.stage == "prompt":
            self.store.delete(self._expansion_key(failure.id))
        self.store.delete(self._key("failures", f"{failure.id}.json"))


def _jsonl(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
