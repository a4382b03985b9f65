"""What a run paid for: it stays on its account, once, when failures are forgotten."""

from itertools import count, product
from pathlib import Path

import pytest

from pipeline.config import PrompterConfig
from pipeline.types import (
    Answer,
    BasePrompt,
    DetailedPrompt,
    Expansion,
    Failure,
    PromptBatch,
    Usage,
    digest,
)
from storage.answers import Answers
from storage.folder import FolderStore
from storage.progress import failures
from storage.runs import RunFolder
from storage.spending import spending
from tests.tiny import a_run
from workers import dispatch

RUN = a_run(PrompterConfig(kind="openai", model="some", prompts_per_base=2))
WHOLE, SHORT, FAILED = (BasePrompt(text=text) for text in ("a mug", "a key", "a pen"))
# Of SHORT, FAILED and both: could not be used. ELSEWHERE: nor could this; another run paid for it.
KEPT, OF_SHORT, OF_FAILED, OF_BOTH, ELSEWHERE = (digest(name) for name in "abcde")


class Killed(Exception):
    """Somebody pulled the plug."""


class Fragile(FolderStore):
    """A folder store that dies instead of its n-th change."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.changes_left = -1  # for ever

    def put(self, key: str, data: bytes) -> None:
        self._change()
        super().put(key, data)

    def delete(self, key: str) -> None:
        self._change()
        super().delete(key)

    def _change(self) -> None:
        if self.changes_left == 0:
            raise Killed
        self.changes_left -= 1


def cost(requests: int) -> Usage:
    return Usage(requests=requests, input_tokens=requests, usd=0.25 * requests)  # exact in binary


def expansion(base: BasePrompt, prompts: int, requests: int, useless: tuple[str, ...]) -> Expansion:
    return Expansion(
        prompts=tuple(
            DetailedPrompt(
                id=digest([base.text, n]), base=base.text, index=n, text=base.text, category="pinch"
            )
            for n in range(prompts)
        ),
        usage=cost(requests),
        shortfall="refused" if prompts < 2 else "",
        answers=useless,
    )


def a_place(folder: Path) -> RunFolder:
    """A run with a base prompt of each kind; their answers cost 1, 2, 4 and 8 requests."""
    place = RunFolder(Fragile(folder), RUN.name)
    place.write(RUN)
    place.write_input(PromptBatch(run=RUN.name, bases=(WHOLE, SHORT, FAILED)))
    answers = Answers(place.store)
    for n, key in enumerate((KEPT, OF_SHORT, OF_FAILED, OF_BOTH)):
        answers.put(key, Answer(content="?", usage=cost(2**n), run=RUN.name))
    answers.put(ELSEWHERE, Answer(content="?", usage=cost(100), run="other"))
    place.write_expansion(WHOLE, expansion(WHOLE, 2, 1, ()))
    place.write_expansion(SHORT, expansion(SHORT, 1, 2, (OF_SHORT, OF_BOTH)))
    for base, requests, useless in (
        (SHORT, 0, (OF_SHORT, OF_BOTH)),
        (FAILED, 12, (OF_FAILED, OF_BOTH, ELSEWHERE)),
    ):
        place.write_failure(
            Failure(
                id=base.id, stage="prompt", subject=base.text, error="refused", tries=3,
                usage=cost(requests), answers=useless,
            )
        )  # fmt: skip
    return place


def check_all_forgotten(place: RunFolder) -> None:
    answers = Answers(place.store)
    assert place.read().spent_before == cost(2 + 4 + 8)
    assert spending(place) == cost(1 + 2 + 4 + 8)
    assert place.read().written_off == ()
    assert list(place.failed_ids()) == []
    assert list(place.prompted_ids()) == [WHOLE.id]
    gone = [answers.get(key) is None for key in (KEPT, OF_SHORT, OF_FAILED, OF_BOTH)]
    assert gone == [False, True, True, True]


def test_spending_is_of_all_that_was_asked_in_this_run(tmp_path: Path) -> None:
    assert spending(a_place(tmp_path)) == cost(1 + 2 + 12)


def test_spending_shows_every_expansion_on_the_way(tmp_path: Path) -> None:
    seen: list[str] = []
    spending(a_place(tmp_path), lambda expansion: seen.append(expansion.prompts[0].base))
    assert sorted(seen) == ["a key", "a mug"]


@pytest.mark.parametrize("at_once", [1, 256])
def test_what_forgotten_failures_cost_stays_on_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(dispatch, "WRITTEN_OFF", at_once)
    place = a_place(tmp_path)
    assert dispatch.forget_failures(place) == 2
    check_all_forgotten(place)
    assert place.read().retried == 1
    assert dispatch.forget_failures(place) == 0
    check_all_forgotten(place)


@pytest.mark.parametrize("at_once", [1, 256])
def test_wherever_forgetting_is_cut_off_the_cost_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(dispatch, "WRITTEN_OFF", at_once)

    def dies(place: RunFolder, changes: int) -> bool:
        """Whether forgetting dies after so many changes of the store."""
        assert isinstance(place.store, Fragile)
        place.store.changes_left = changes
        try:
            dispatch.forget_failures(place)
        except Killed:
            return True
        finally:
            place.store.changes_left = -1
        return False

    changes = next(n for n in count() if not dies(a_place(tmp_path / str(n)), n))
    assert changes > 8
    for first, second in product(range(changes), range(0, changes, 3)):
        place = a_place(tmp_path / f"{first}-{second}")
        assert dies(place, first)
        on_record = {key for failure in failures(place) for key in failure.answers}
        assert on_record.issuperset(place.read().written_off)  # nobody pays for these meanwhile
        dies(place, second)
        dispatch.forget_failures(place)
        check_all_forgotten(place)
