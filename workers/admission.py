"""Requests to a paid endpoint, let through one by one for all prompt workers of a run.

    ppv:admission:<run>           what the run spent, its window, its pause, its rates
    ppv:admission:<run>:claims    which requests are under way, and until when that is believed
    ppv:admission:<run>:records   what they reserved, and for whom

Every decision is one call of admission.lua, so that no two workers decide on the same state, and
its clock is Redis' own. The window of requests under way follows the endpoint: a busy answer
halves it, at most once a second, and each success widens it by 1/window (AIMD: Chiu and Jain 1989).
Rates are leaky buckets that hold two seconds' worth (GCRA: ITU-T I.371).
"""

import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from weakref import WeakMethod

import redis

from pipeline.config import EndpointConfig
from pipeline.errors import ServiceError
from pipeline.types import Frozen
from workers.broker import CANCELLED, explained

CLAIM_S = 15.0  # after which the requests of a killed worker count no more

_TTL_S = 24 * 3600
_BILLION = 1_000_000_000  # dollars are counted in billionths, whose sums are exact
_CROWD_S = (0.05, 0.2)  # until someone asks again whether the window has room
_LATE_S = 1.0  # at most, so that not all who wait for a rate ask in the same moment


class Kind(Enum):
    """What became of a request to be let through."""

    GO = "go"  # send it, then settle or release it
    TAKEN = "taken"  # another holder is sending the same one: look for its answer after wait_s
    WAIT = "wait"  # ask again after wait_s, and not two seconds later
    CANCELLED = "cancelled"  # nothing of the run is to be sent any more
    BROKE = "broke"  # the run would spend more than it may


class Decision(Frozen):
    """An answer of Admission.admit."""

    kind: Kind
    wait_s: float = 0.0


class Claim(NamedTuple):
    """A request under way, and who is sending it."""

    key: str
    holder: str


class Admission:
    """One run's way to its endpoint.

    address: the broker's, for messages. Every verb raises ServiceError where Redis is away.
    claim_s: how long a claim outlives its process; tests make it short.
    """

    def __init__(
        self, client: redis.Redis, run: str, address: str, claim_s: float = CLAIM_S
    ) -> None:
        self._redis, self._address = client, address
        self._state = f"ppv:admission:{run}"
        self._run = run
        self._keys = [self._state, f"{self._state}:claims", f"{self._state}:records", CANCELLED]
        self._life_us = round(claim_s * 1e6)
        self._script = client.register_script(_source())
        self._keeper = Keeper(self.renew, claim_s / 3)

    def admit(
        self, key: str, holder: str, limits: EndpointConfig, tokens: int, usd: float
    ) -> Decision:
        """Whether a request may be sent now.

        key: the hash of the whole request. holder: unique to the caller. tokens and usd: the most
        that is expected of it; they are taken from the rates and reserved from the spending limit.
        Every GO has to end in `settle` or `release`: until then its claim is renewed in the
        background, for as long as this process lives.
        """
        limit = limits.spend_limit_usd
        code, wait_us = self._call(
            "admit",
            key,
            holder,
            limits.concurrency,
            limits.requests_per_minute or 0,
            limits.tokens_per_minute or 0,
            -1 if limit is None else round(limit * _BILLION),
            tokens,
            round(usd * _BILLION),
            self._run,
        )
        match code:
            case 0:
                self._keeper.hold(Claim(key, holder))
                return Decision(kind=Kind.GO)
            case 1:
                return Decision(kind=Kind.TAKEN, wait_s=random.uniform(*_CROWD_S))
            case 2:
                wait_s = wait_us / 1e6
                late_s = random.uniform(0, min(wait_s / 2, _LATE_S))
                return Decision(kind=Kind.WAIT, wait_s=wait_s + late_s)
            case 3:
                return Decision(kind=Kind.WAIT, wait_s=random.uniform(*_CROWD_S))
            case 5:
                return Decision(kind=Kind.CANCELLED)
            case _:
                return Decision(kind=Kind.BROKE)

    def settle(self, key: str, holder: str, usd: float, tokens: int) -> None:
        """The request was answered, and took this much.

        Dollars count even where the claim has expired meanwhile: they were paid. So they count
        twice where Redis did this, and its reply was lost: the limit errs to the safe side.
        """
        self._keeper.drop(Claim(key, holder))
        self._call("settle", key, holder, round(usd * _BILLION), tokens)

    def release(
        self,
        key: str,
        holder: str,
        *,
        busy: bool = False,
        overloaded: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        """The request failed, and cost nothing.

        busy: it will be sent again. overloaded: because the endpoint is asked too much, so that the
        window is to shrink. retry_after_s: for how long nobody of the run may ask, at most ten
        minutes; the longest that anyone was told holds.
        """
        self._keeper.drop(Claim(key, holder))
        pause_us = round((retry_after_s or 0) * 1e6)
        self._call("release", key, holder, 2 if overloaded else int(busy), pause_us)

    def renew(self, *held: Claim) -> None:
        """Prolong those claims that are still their holders'."""
        self._call("renew", *(part for claim in held for part in claim))

    def under_way(self) -> int:
        """Requests of the run that some living worker is sending."""
        with explained(self._address):
            return int(self._script(keys=self._keys, args=["count", self._life_us]))

    def is_busy(self) -> bool:
        """Whether somebody is sending a request of the run, or waits to send one."""
        with explained(self._address):
            awaited = self._script(keys=self._keys, args=["awaited", self._life_us])
        return bool(awaited) or self.under_way() > 0

    def window(self) -> float | None:
        """How many requests may be under way; None: as many as the configuration says."""
        with explained(self._address):
            window = self._redis.hget(self._state, "window")
        return None if window is None else float(window)

    def spent(self) -> float | None:
        """US dollars that the run has spent; None until `restore` has said what the store knows.

        So it is None for a new run, and after Redis was wiped.
        """
        with explained(self._address):
            restored, spent = self._redis.hmget(self._state, ["restored", "spent"])
        return None if restored is None else (int(restored) + int(spent or 0)) / _BILLION

    def restore(self, usd: float) -> None:
        """What the run had spent by the store's records; ignored where that is known.

        What was settled since Redis was wiped is added: some of it may count twice.
        """
        with explained(self._address), self._redis.pipeline() as pipe:
            pipe.hsetnx(self._state, "restored", str(round(usd * _BILLION)))
            pipe.expire(self._state, _TTL_S)
            pipe.execute()

    def forget(self) -> None:
        """What was spent is asked of the store again. For when nothing is under way."""
        with explained(self._address):
            self._redis.delete(*self._keys[:3])

    def _call(self, verb: str, *arguments: str | int) -> tuple[int, int]:
        with explained(self._address):
            code, wait_us = self._script(keys=self._keys, args=[verb, self._life_us, *arguments])
        return code, wait_us


class Keeper:
    """Renews the claims of this process in the background, for as long as there are any."""

    def __init__(self, renew: Callable[..., None], every_s: float) -> None:
        self._renew = renew
        self._every_s = every_s
        self._lock = threading.Lock()
        self._held: set[Claim] = set()
        self._thread: threading.Thread | None = None
        forget = WeakMethod(self._forget)  # what is registered here stays for ever
        os.register_at_fork(after_in_child=lambda: (child := forget()) and child())

    def hold(self, claim: Claim) -> None:
        with self._lock:
            self._held.add(claim)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
                self._thread.start()

    def drop(self, claim: Claim) -> None:
        with self._lock:
            self._held.discard(claim)

    def _forget(self) -> None:
        """A forked child has none of its parent's claims, nor its threads; a lock may be stuck."""
        self._lock, self._held, self._thread = threading.Lock(), set(), None

    def _run(self) -> None:
        stop = threading.Event()
        while True:
            stop.wait(self._every_s)
            with self._lock:
                if not self._held:
                    self._thread = None
                    return
                held = tuple(self._held)
            with suppress(ServiceError):  # next time, or the claims expire
                self._renew(*held)


@lru_cache(maxsize=1)
def _source() -> str:
    return Path(__file__).with_name("admission.lua").read_text()
