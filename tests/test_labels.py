"""Labels: their order, how they are kept, what is read from files, and how far people agree."""

import json
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, ServiceError
from pipeline.evaluation.agreement import agreement, disagreements
from pipeline.labels import REASONS, Label, Said, last_said
from pipeline.types import digest
from storage.folder import FolderStore
from storage.labels import LabelSets
from storage.runs import RunFolder
from storage.said import as_lines, merged
from tests.labelling import a_run_to_label, journal, ppv_label
from workers.labelling.desk import LabelDesk
from workers.labelling.queue import Picture, Place, in_order
from workers.labelling.work import Work
from workers.people.journal import Journal
from workers.people.keeper import Keeper
from workers.people.names import annotator_of


def a_label(
    number: int = 0,
    *,
    fidelity: bool | None = True,
    alignment: bool | None = True,
    annotator: str = "ann",
    second: int = 0,
    **others: Any,
) -> Label:
    return Label(
        id=digest(number),
        image=f"runs/demo/images/{digest(number)}.png",
        prompt="a hand holding a mug",
        base="a mug",
        fidelity=fidelity,
        alignment=alignment,
        annotator=annotator,
        at=f"2026-11-24T00:00:{second:02}.000000+00:00",
        **others,
    )


def some_pictures(count: int) -> list[Picture]:
    """The n-th is n times as far from its threshold as the first."""
    return [
        Picture(digest(n), f"prompt {n}", "base", "power", distance=n / count) for n in range(count)
    ]


def placed(count: int) -> list[Place]:
    return [Place(picture, "unsure") for picture in some_pictures(count)]


def ids(places: Iterable[Place]) -> list[str]:
    return [place.picture.id for place in places]


# Agreement


def test_kappa_is_what_one_works_out_by_hand() -> None:
    # Of 50: both yes 20, only she 5, only he 10, both no 15. They agree on 35, which is .7; by
    # chance on .5 * .6 + .5 * .4 = .5; so kappa is (.7 - .5) / (1 - .5) = .4.
    answers = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10
    answers += [(False, False)] * 15
    she = {digest(n): Said(fidelity=hers) for n, (hers, _) in enumerate(answers)}
    he = {digest(n): Said(fidelity=his) for n, (_, his) in enumerate(answers)}

    found = agreement(she, he, "fidelity")

    assert (found.n, found.agreed) == (50, 35)
    assert found.kappa == pytest.approx(0.4)


def test_only_what_both_answered_is_compared() -> None:
    she = {"a": Said(True, True), "b": Said(False, None), "c": Said(True, True)}
    he = {"a": Said(True, False), "b": Said(True, False), "d": Said(True, True)}

    assert agreement(she, he, "fidelity").n == 2
    assert agreement(she, he, "alignment").n == 1
    assert set(disagreements(she, he)) == {"a", "b"}


def test_no_common_picture_and_one_same_answer_have_no_kappa() -> None:
    assert agreement({}, {}, "fidelity").kappa is None
    assert agreement({"a": Said(True)}, {"a": Said(True)}, "fidelity").kappa is None


# The order


def test_the_order_is_the_same_however_the_records_came() -> None:
    pictures = some_pictures(200)
    orders = []
    for seed in (1, 2):
        random.Random(seed).shuffle(pictures)
        orders.append(in_order(pictures, set(), seed="s", random_share=0.3, overlap=0.2))

    assert orders[0] == orders[1]
    assert sorted(ids(orders[0])) == sorted(picture.id for picture in pictures)
    other = in_order(pictures, set(), seed="t", random_share=0.3, overlap=0.2)
    assert ids(other) != ids(orders[0])


def test_unsure_pictures_come_first_beside_a_random_share() -> None:
    pictures = some_pictures(1000)
    places = in_order(pictures, set(), seed="s", random_share=0.3, overlap=0.2)

    first = places[:100]
    unsure = [place.picture.distance for place in first if place.chosen == "unsure"]
    assert sum(place.chosen == "random" for place in first) == 30
    assert unsure == sorted(unsure)
    assert unsure[-1] < 0.08  # 70 of the 71 or so least sure ones
    by_chance = [place.picture.distance for place in first if place.chosen == "random"]
    assert 0.3 < sum(by_chance) / 30 < 0.7


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_can_be_all_or_nothing(share: float) -> None:
    places = in_order(some_pictures(50), set(), seed="s", random_share=share, overlap=0.2)

    assert len(places) == 50
    assert {place.chosen for place in places} == {"random" if share else "unsure"}


def test_a_share_of_what_others_labelled_comes_early() -> None:
    pictures = some_pictures(400)
    others = {picture.id for picture in pictures[:100]}
    places = in_order(pictures, others, seed="s", random_share=0.3, overlap=0.2)

    twice = [i for i, place in enumerate(places) if place.picture.id in others]
    assert len(places) == 320  # the other 80 are left to those who did them
    assert len(twice) == 20
    assert twice[-1] == 99  # one in five
    assert all(places[i].chosen == "overlap" for i in twice)


# The desk


def a_desk(
    count: int = 5, earlier: Iterable[Label] = (), **others: Any
) -> tuple[LabelDesk, list[Label]]:
    """And where it keeps its labels."""
    kept: list[Label] = list(earlier)
    desk = LabelDesk(
        placed(count),
        list(kept),
        others,
        annotator="ann",
        image_key=lambda id: f"runs/demo/images/{id}.png",
        append=kept.extend,
    )
    return desk, kept


def test_each_answer_is_kept_and_both_lead_on() -> None:
    desk, kept = a_desk()
    first, second = digest(0), digest(1)

    desk.answer(first, "fidelity", False)
    assert desk.view().picture == desk.picture(first)
    desk.answer(first, "alignment", True)

    assert [(label.fidelity, label.alignment) for label in kept] == [(False, None), (False, True)]
    assert desk.view().picture == desk.picture(second)
    assert desk.view().progress.whole == 1


def test_a_reason_answers_its_question_with_no() -> None:
    desk, kept = a_desk()

    desk.reason(digest(0), "extra_finger")
    desk.reason(digest(0), "fused_fingers")
    desk.reason(digest(0), "extra_finger")
    desk.rest(digest(0))

    assert kept[-1].said == Said(False, True, ("fused_fingers",))
    desk.answer(digest(0), "fidelity", True)
    assert kept[-1].said == Said(True, True)
    with pytest.raises(InputError, match=r"reason 'boredom': known are extra_finger"):
        desk.reason(digest(0), "boredom")


def test_every_step_can_be_taken_back() -> None:
    desk, kept = a_desk()
    desk.answer(digest(0), "fidelity", True)
    desk.rest(digest(0))
    desk.skip(digest(1))
    desk.sweep([digest(2), digest(3)])

    assert desk.undo() == [digest(2), digest(3)]
    assert desk.undo() == [digest(1)]
    assert desk.view().picture == desk.picture(digest(1))
    assert desk.undo() == [digest(0)]
    assert desk.said(digest(0)) == Said(fidelity=True)
    assert desk.undo() == [digest(0)]
    assert desk.undo() == []
    assert last_said(kept) == {}
    assert desk.view().progress.whole == desk.view().progress.begun == 0


def test_after_a_restart_it_goes_on_and_back() -> None:
    desk, kept = a_desk()
    desk.rest(digest(0))
    desk.answer(digest(1), "fidelity", False)
    desk.answer(digest(1), "alignment", True)
    desk.undo()

    again, _ = a_desk(earlier=kept)

    view = again.view()
    assert view.picture == again.picture(digest(1))
    assert view.said == Said(fidelity=False)
    assert again.undo() == [digest(1)]
    assert again.said(digest(1)) == Said()
    assert again.undo() == [digest(0)]


def test_a_sweep_says_nothing_of_marked_labelled_or_lost_pictures() -> None:
    desk, _ = a_desk(6)
    everything = [picture.id for picture in desk.to_sweep()]
    desk.mark(digest(0), bad=True)
    desk.mark(digest(1), bad=True)
    desk.mark(digest(1), bad=False)
    desk.answer(digest(2), "fidelity", False)
    desk.gone(digest(3), "is gone")

    assert desk.sweep(everything) == 3
    assert [desk.said(digest(n)).fidelity for n in range(6)] == [
        False, True, False, None, True, True
    ]  # fmt: skip
    assert desk.said(digest(1)).alignment is None
    assert desk.to_sweep() == []


def test_what_cannot_be_kept_is_not_said() -> None:
    def full(_: list[Label]) -> None:
        raise ServiceError("no room")

    desk = LabelDesk(placed(2), [], {}, annotator="ann", image_key=str, append=full)
    with pytest.raises(ServiceError):
        desk.rest(digest(0))

    assert desk.view().progress.whole == 0
    assert not desk.view().can_undo


def test_nobody_is_told_what_another_said_before_they_said_it_too() -> None:
    theirs = {digest(0): Said(False, True), digest(1): Said(True, True)}
    desk, _ = a_desk(bo=theirs)

    assert desk.disputed(10) == []
    assert desk.view().agreements["bo"]["fidelity"].n == 0
    desk.rest(digest(0))

    ((picture, opinions),) = desk.disputed(10)
    assert picture.id == digest(0)
    assert opinions == {"ann": Said(True, True), "bo": Said(False, True)}


def test_a_label_of_a_picture_that_is_gone_stays() -> None:
    desk, kept = a_desk(2, earlier=[a_label(99)])
    desk.rest(digest(0))
    desk.gone(digest(0), "is gone")
    desk.gone(digest(1), "is broken")

    view = desk.view()
    assert view.picture is None
    assert view.progress.gone == 2
    assert view.note == f"Passed over: picture {digest(0)}, which is gone, and 1 more."
    assert desk.view().note == ""
    assert [label.id for label in last_said(kept).values()] == [digest(99), digest(0)]


# The journal and the store


def test_a_torn_last_line_is_dropped_and_said(tmp_path: Path) -> None:
    path = tmp_path / "demo.ann.jsonl"
    path.write_bytes(as_lines([a_label(0), a_label(1)]) + b'{"id": "0')

    with Journal(path, Label) as it:
        assert it.torn
        it.append([a_label(2)])
        assert [label.id for label in it.lines()] == [digest(0), digest(1), digest(2)]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "demo.ann.jsonl"
    path.write_bytes(as_lines([a_label(0)]) + b"{broken\n" + as_lines([a_label(1)]))

    with (
        Journal(path, Label) as it,
        pytest.raises(InputError, match=r"demo\.ann\.jsonl, line 2 is no"),
    ):
        list(it.lines())


def test_a_journal_has_one_owner(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "demo.ann.jsonl", Label),
        pytest.raises(InputError, match="is in use: end the other"),
    ):
        Journal(tmp_path / "demo.ann.jsonl", Label)
    Journal(tmp_path / "demo.ann.jsonl", Label).close()


def test_lines_for_which_there_is_no_room_are_not_there_by_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "demo.ann.jsonl", Label) as it:
        it.append([a_label(0)])
        with monkeypatch.context() as broken:
            broken.setattr("workers.people.journal.os.fsync", full)
            with pytest.raises(ServiceError, match="No space left"):
                it.append([a_label(1), a_label(2)])
        it.append([a_label(3)])
        assert [label.id for label in it.lines()] == [digest(0), digest(3)]


def test_journal_and_store_come_together_by_time(tmp_path: Path) -> None:
    sets = LabelSets(FolderStore(tmp_path / "store"))
    both, here, there = a_label(0, second=1), a_label(0, fidelity=False, second=3), a_label(1)
    sets.write_bytes("demo", "ann", as_lines([both, there.model_copy(update={"at": "2026"})]))
    with Journal(tmp_path / "demo.ann.jsonl", Label) as it:
        it.append([both, here])
        Keeper(it, sets, "demo", "ann").settle()

        lines = list(it.lines())
    assert [label.id for label in lines] == [digest(1), digest(0), digest(0)]
    assert lines[-1] == here
    assert list(sets.read("demo")) == lines


def test_the_keeper_puts_the_journal_in_the_store_also_after_trouble(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    away = threading.Event()
    away.set()

    class Away(FolderStore):
        def put(self, key: str, data: bytes) -> None:
            if away.is_set():
                raise ServiceError("the store is away")
            store.put(key, data)

    sets = LabelSets(Away(tmp_path / "store"))
    path = tmp_path / "demo.ann.jsonl"
    with Journal(path, Label) as it, Keeper(it, sets, "demo", "ann") as keeper:
        keeper.append([a_label(0)])
        while not keeper.trouble:
            time.sleep(0.01)
        away.clear()

    assert keeper.trouble == ""
    assert [label.id for label in sets.read("demo")] == [digest(0)]


def test_a_set_is_read_whole_and_names_its_annotators(tmp_path: Path) -> None:
    sets = LabelSets(FolderStore(tmp_path))
    sets.write_bytes("demo.v2", "ann", as_lines([a_label(0)]))
    sets.write_bytes("demo.v2", "bo", as_lines([a_label(1, annotator="bo")]))
    sets.write_bytes("demo", "bo", as_lines([a_label(2, annotator="bo")]))

    assert sets.sets() == ["demo", "demo.v2"]
    assert sets.annotators("demo.v2") == ["ann", "bo"]
    assert [label.id for label in sets.read("demo.v2")] == [digest(0), digest(1)]
    with pytest.raises(InputError, match=r"annotator 'a\.b': use 1 to 32"):
        sets.read_bytes("demo", "a.b")


def test_merging_keeps_each_line_once() -> None:
    one, two, three = (a_label(n, second=n) for n in range(3))

    assert merged([one, three], [one, two]) == [one, two, three]


# Files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a run of eight pictures lies, and the command keeps its state."""
    a_run_to_label(tmp_path / "store", 8)
    return tmp_path


def work(place: Path) -> Work:
    return Work(RunFolder(FolderStore(place / "store"), "demo"), "demo", place / "state/labels")


def proposal_ids(place: Path) -> list[str]:
    return sorted(path.stem for path in (place / "store/runs/demo/images").iterdir())


def test_labels_go_out_as_jsonl_and_come_in_again(place: Path) -> None:
    labels = [a_label(n, annotator=who, second=n) for n in range(4) for who in ("ann", "bo")]
    labels.append(a_label(0, fidelity=False, second=9, reasons=("extra_finger",)))
    (place / "in.jsonl").write_bytes(as_lines(labels))

    taken = ppv_label(place, "--import", "in.jsonl")
    sent = ppv_label(place, "--export", "out.jsonl")
    again = ppv_label(place, "--import", "out.jsonl")

    assert taken.stdout == "labels added to set demo: 5 by ann, 4 by bo\n", taken.stderr
    assert sent.stdout == "out.jsonl: 8 labels of set demo\n", sent.stderr
    assert again.stdout == "labels added to set demo: none new\n", again.stderr
    lines = (place / "out.jsonl").read_bytes().splitlines()
    out = [Label.model_validate_json(line) for line in lines]
    assert {(each.annotator, each.id): each for each in out} == last_said(labels)


def test_labels_of_pictures_that_are_gone_are_kept_and_counted(place: Path) -> None:
    one, two = proposal_ids(place)[:2]
    (place / "store/runs/demo/images" / f"{two}.png").unlink()
    labels = [a_label(n).model_copy(update={"id": id}) for n, id in enumerate((one, two))]
    (place / "in.jsonl").write_bytes(as_lines(labels))

    taken = ppv_label(place, "--import", "in.jsonl")

    assert taken.returncode == 0
    assert taken.stdout == "labels added to set demo: 2 by ann\n"
    assert taken.stderr == "ppv: of these labels, 1 have no picture in run demo\n"
    assert journal(place) == labels


def test_the_command_says_in_one_line_what_is_wrong(place: Path) -> None:
    (place / "in.jsonl").write_text("{\n")

    broken = ppv_label(place, "--import", "in.jsonl")
    absent = ppv_label(place, "--import", "absent.jsonl")
    stranger = ppv_label(place, "--annotator", "Ann Example")

    for done, start in (
        (broken, "ppv: in.jsonl, line 1 is no label: Invalid JSON"),
        (absent, "ppv: absent.jsonl cannot be read: No such file or directory"),
        (stranger, "ppv: annotator 'Ann Example': use 1 to 32 of a-z"),
    ):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(start), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "broken', "in.jsonl, line 2 is no label: Invalid JSON"),
        ("", "in.jsonl, line 3 is no label"),  # a blank line is passed over
        (
            '{"fidelty": true}',
            "in.jsonl, line 2: unknown field 'fidelty': did you mean 'fidelity'?",
        ),
        ('{"id": "00"}', "in.jsonl, line 2: field 'id' is '00': String should match"),
        ("short", "in.jsonl, line 2: the field 'image' is missing; a label has id, image"),
        ("time", "in.jsonl, line 2: the time 'noon' is not ISO 8601"),
        ("word", "in.jsonl, line 2: field 'annotator' is 'Ann Example': String should match"),
        ("empty", "in.jsonl, line 2: field 'prompt' is '': String should have at least 1"),
    ],
)
def test_a_line_that_is_no_label_is_named_and_nothing_is_imported(
    place: Path, line: str, message: str
) -> None:
    good = a_label(0).model_dump(mode="json")
    if line == '{"fidelty": true}':
        line = json.dumps({"fidelty": True} | {k: v for k, v in good.items() if k != "fidelity"})
    elif line == "time":
        line = json.dumps({**good, "at": "noon"})
    elif line == "short":
        line = json.dumps({"id": good["id"]})
    elif line == "empty":
        line = json.dumps({**good, "prompt": ""})
    elif line == "word":
        line = json.dumps({**good, "annotator": "Ann Example"})
    (place / "in.jsonl").write_text(f"{json.dumps(good)}\n{line}\n{{\n")

    with pytest.raises(InputError) as refused:
        work(place).take(place / "in.jsonl")

    assert str(refused.value).startswith(f"{place}/{message}")
    assert "\n" not in str(refused.value)
    assert not (place / "store/labels").exists()
    assert not (place / "state/labels").exists()


def a_task(id: str, fidelity: str, by: object, **more: Any) -> dict[str, Any]:
    """As Label Studio exports it."""

    def choice(name: str, *words: str) -> dict[str, Any]:
        return {
            "from_name": name,
            "to_name": "image",
            "type": "choices",
            "origin": "manual",
            "value": {"choices": list(words)},
        }

    annotation = {
        "id": 7,
        "completed_by": by,
        "was_cancelled": False,
        "created_at": "2026-11-23T12:00:00.5Z",
        "updated_at": "2026-11-23T14:00:00+01:00",
        "result": [
            choice("fidelity", fidelity),
            choice("alignment", "No"),
            choice("reasons", "wrong_object", "wrong_pose"),
        ],
        **more,
    }
    data = {"image": f"s3://bucket/runs/demo/images/{id}.png", "prompt": "a hand"}
    return {"id": 1, "data": data, "annotations": [annotation], "predictions": []}


def test_label_studio_is_read(place: Path) -> None:
    one, two, three = proposal_ids(place)[:3]
    tasks = [
        a_task(one, "Yes", {"id": 3, "email": "Ann.Example@example.org"}),
        a_task(two, "no", 12),
        a_task(three, "no", 12, was_cancelled=True),
    ]
    (place / "studio.json").write_text(json.dumps(tasks))

    assert work(place).take(place / "studio.json").new == {"ann-example": 1, "user-12": 1}
    (hers,), (other,) = journal(place, "ann-example"), journal(place, "user-12")
    assert hers.said == Said(True, False, ("wrong_object", "wrong_pose"))
    assert (hers.id, hers.at) == (one, "2026-11-23T13:00:00.000000+00:00")
    assert hers.prompt.startswith("a hand holding mug ")
    assert hers.image == f"runs/demo/images/{one}.png"
    assert other.said.fidelity is False


def test_argilla_is_read(place: Path) -> None:
    one, two = proposal_ids(place)[:2]
    ann, bo = "0a1b2c3d-0000-4000-8000-000000000000", "ffffffff-0000-4000-8000-000000000000"
    records = [
        {
            "id": one,
            "fields": {"image": "data:...", "prompt": "a hand"},
            "metadata": {},
            "suggestions": {},
            "responses": {
                "fidelity": [{"value": "yes", "user_id": ann}, {"value": "no", "user_id": bo}],
                "alignment": [{"value": "yes", "user_id": ann}],
                "reasons": [{"value": ["extra_finger"], "user_id": bo}],
            },
            "vectors": {},
            "status": "completed",
            "_server_id": "e7c2",
        },
        {"id": "7", "fields": {}, "metadata": {"id": two}, "responses": {}, "status": "pending"},
    ]
    (place / "argilla.json").write_text(json.dumps(records, indent=1))

    assert work(place).take(place / "argilla.json").new == {"0a1b2c3d": 1, "ffffffff": 1}
    assert [label.said for label in journal(place, "0a1b2c3d")] == [Said(True, True)]
    assert [label.said for label in journal(place, "ffffffff")] == [
        Said(False, None, ("extra_finger",))
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"data": {}, \n "annotations": [}]', "in.json, line 2 is no JSON"),
        ('[{"text": "a"}]', "in.json, item 1: neither a task of Label Studio"),
        ('[{"data": {"image": "a.png"}, "annotations": []}]', "in.json, task 1: its data's"),
        ("maybe", "in.json, task 2: fidelity is 'maybe': the answers are yes and no"),
        ("stranger", "in.json, task 2: run 'demo' has no picture"),
        ("broken", "in.json, task 2 is not as its program exports it"),
    ],
)
def test_an_export_that_does_not_fit_is_refused_whole(place: Path, text: str, message: str) -> None:
    id = proposal_ids(place)[0]
    second = {
        "maybe": a_task(id, "maybe", 1),
        "stranger": a_task(digest("stranger"), "yes", 1),
        "broken": a_task(id, "yes", 1, result=[{"type": "choices"}]),
    }
    if text in second:
        text = json.dumps([a_task(id, "yes", 1), second[text]])
    (place / "in.json").write_text(text)

    with pytest.raises(InputError) as refused:
        work(place).take(place / "in.json")

    assert str(refused.value).startswith(f"{place}/{message}")
    assert not (place / "state/labels").exists()


def test_names_become_names_of_annotators() -> None:
    assert annotator_of("Ann.Example@example.org") == "ann-example"
    assert annotator_of("DOMAIN\\Bo Müller") == "domain-bo-m-ller"
    assert annotator_of("42") == "user-42"
    assert annotator_of("_____") == "me"
    assert len(annotator_of("x" * 99)) == 32


def test_the_miniatures_faults_are_reasons() -> None:
    from pipeline.miniature.scenes import FAULTS

    assert set(FAULTS) <= set(REASONS)
