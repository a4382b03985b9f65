"""Asking an endpoint on behalf of a run: never what is answered already, never faster or dearer
than the run may, and again while the endpoint is away."""

import random
import time
from uuid import uuid4

from pipeline.config import Run
from pipeline.errors import EndpointAway, PpvError, SpendingLimit
from pipeline.prompter.dialogue import Request
from pipeline.prompter.endpoint import Busy, Endpoint
from pipeline.types import Answer, Usage, digest
from storage.answers import Answers
from workers import metrics
from workers.admission import Admission, Kind

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # after an endpoint failed without saying until when
_CHECK_S = 1.0  # a wait is not slept through: the run may be cancelled meanwhile


class RunCancelled(PpvError):
    """The run was cancelled while it waited for its endpoint."""


class Asker:
    """Answers for one run's requests, from the cache or the endpoint. Safe between threads."""

    def __init__(
        self,
        run: Run,
        endpoint: Endpoint,
        answers: Answers,
        admission: Admission,
    ) -> None:
        self._run, self._endpoint, self._answers = run, endpoint, answers
        self._admission = admission

    def ask(self, request: Request) -> Answer:
        """An answer is in the cache before it is given back.

        Raises SpendingLimit, EndpointAway after the run's patience, RunCancelled, and whatever
        else Endpoint.ask raises.
        """
        answer = self._answers.get(request.key)
        if answer is not None:
            return answer
        holder, failures, away_since = uuid4().hex, 0, 0.0
        while True:
            self._wait_for_admission(request, holder)
            try:
                answer, paid = self._send(request, look_first=failures == 0)
            except Busy as error:
                self._admission.release(
                    request.key,
                    holder,
                    busy=True,
                    overloaded=error.overloaded,
                    retry_after_s=error.retry_after_s,
                )
                failures, away_since = failures + 1, away_since or time.monotonic()
                if time.monotonic() - away_since > self._run.endpoint.patience_s:
                    raise EndpointAway(f"asked {failures} times: {error}") from None
                if error.retry_after_s is None:
                    time.sleep(random.uniform(0.5, 1) * _pause_s(failures))
            except BaseException:
                self._admission.release(request.key, holder)
                raise
            else:
                tokens = paid.input_tokens + paid.output_tokens
                self._admission.settle(request.key, holder, paid.usd or 0.0, tokens)
                metrics.count_dollars(self._run.name, self._endpoint.model, paid.usd or 0.0)
                return answer

    def _send(self, request: Request, *, look_first: bool) -> tuple[Answer, Usage]:
        """An answer, and what is to be paid for it now.

        look_first: whoever held the request before us may have been answered.
        """
        if look_first and (answer := self._answers.get(request.key)):
            return answer, Usage()
        run = self._run
        once = digest([request.key, run.name, run.retried])
        answer = self._endpoint.ask(request, run.price, run.name, once)
        self._answers.put(request.key, answer)
        return answer, answer.usage

    def _wait_for_admission(self, request: Request, holder: str) -> None:
        limits, price = self._run.endpoint, self._run.price
        expected = request.expected_tokens
        usd = price.of(*expected) if price else 0.0
        while True:
            decision = self._admission.admit(request.key, holder, limits, sum(expected), usd)
            if decision.kind is Kind.GO:
                return
            if decision.kind is Kind.BROKE:
                raise SpendingLimit.of(limits.spend_limit_usd or 0.0)
            if decision.kind is Kind.CANCELLED:
                raise RunCancelled(f"run {self._run.name!r} was cancelled")
            time.sleep(min(decision.wait_s, _CHECK_S))


def _pause_s(failures: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures, 10))
