"""Verdicts of a run: which operating point judged, which opinions were heard, what failed alone."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bench.provider import Provider
from pipeline.config import VISION_SCORES, VerifierConfig
from pipeline.errors import ModelError
from pipeline.models import fingerprint
from pipeline.types import ClauseScore, Record, Thresholds, Verdict
from pipeline.verifier.operating_point import FILE, operating_point
from storage.progress import failures, records
from tests.place import Place
from tests.tiny import save_tiny_clip, save_tiny_pipeline, save_tiny_verifier, save_weights

POINT = {"fidelity": 0.61, "alignment": 0.7, "chosen_by": "precision of at least 0.95"}


def point_of(folder: Path, **config: object) -> Thresholds:
    wanted = VerifierConfig.model_validate({"model": str(folder), **config})
    return operating_point(wanted, fingerprint(str(folder), "verifier"))


def test_a_verifier_brings_its_operating_point_and_configuration_wins(tmp_path: Path) -> None:
    folder = save_weights(tmp_path / "verifier")
    assert point_of(folder) == Thresholds(chosen_by="default")
    (folder / FILE).write_text(json.dumps(POINT))
    assert point_of(folder) == Thresholds.model_validate(POINT)
    both = {"fidelity": 0.2, "alignment": 0.3}
    assert point_of(folder, thresholds=both) == Thresholds(**both, chosen_by="configuration")
    one = point_of(folder, thresholds={"fidelity": 0.2})
    assert one == Thresholds(fidelity=0.2, alignment=0.7, chosen_by="configuration")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"fidelity": 2, "alignment": 0.5}', '{"fidelty": 0.5}']
)
def test_a_broken_operating_point_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    folder = save_weights(tmp_path / "verifier")
    (folder / FILE).write_text(content)
    with pytest.raises(ModelError, match="is no operating point") as caught:
        point_of(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_the_clause_that_fails_is_named() -> None:
    texts = {"a hand.": 0.9, "a red mug.": 0.2, "grey ground.": 0.4}
    clauses = tuple(ClauseScore(text=t, fidelity=0.9, alignment=a) for t, a in texts.items())
    low = Verdict(fidelity=0.9, alignment=0.2, clauses=clauses, thresholds=Thresholds())
    assert low.failing_clause == "a red mug."
    assert json.loads(low.model_dump_json())["failing_clause"] == "a red mug."
    assert low.model_copy(update={"alignment": 0.9}).failing_clause is None
    assert low.model_copy(update={"clauses": clauses[1:2]}).failing_clause is None


# In a run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_pipeline(folder / "base", text_length=200)
    save_tiny_verifier(folder / "verifier")
    save_tiny_clip(folder / "clip")
    return folder


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def place(tmp_path: Path, models: Path) -> Iterator[Place]:
    place = Place(tmp_path, models, ["a red mug", "a blue key"])
    yield place
    place.clear()


def test_a_run_keeps_opinions_and_accepts_by_the_rule(
    place: Place, models: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    (place.folder / "prices.yaml").write_text("models: {sees: {input: 1000, output: 1000}}\n")
    with (place.folder / "ppv.toml").open("a") as toml:
        toml.write(
            f'[verifier.opinions]\npreference = "{models / "clip"}"\n'
            f'vision = "sees"\nvision_base_url = "{provider.url}"\n'
            '[verifier.accept_if]\nvision_alignment = 0.5\n[endpoint]\nprices = "prices.yaml"\n'
        )
    provider.control(next=["429", "refusal"])
    ended = place.ppv("run", "bases.txt", "--run", "heard", "--out", "out")
    assert ended.code == 0, ended.err
    folder = place.run_folder("heard")
    run, found = folder.read(), list(records(folder))
    assert run.opinion_refs["preference"].weights.startswith("sha256:")
    assert run.thresholds.chosen_by == "configuration"
    assert {each.verdict.thresholds.chosen_by for each in found} == {"configuration"}
    unheard = [each for each in found if each.verdict.unheard]
    assert len(unheard) == 1 and not unheard[0].verdict.accepted
    for each in found:
        scores = each.verdict.opinions
        assert "preference" in scores
        if each not in unheard:
            assert set(VISION_SCORES) < set(scores)
            assert each.verdict.accepted == (scores["vision_alignment"] >= 0.5)
    assert {each.verdict.accepted for each in found} == {True, False}
    usd = sum(each.usage.usd or 0 for each in found)
    assert usd > 0 and all(each.usage.requests == 1 for each in found)
    status = place.status("heard")
    assert status["accepted"] == sum(each.verdict.accepted for each in found)
    page = (place.folder / "out" / "report.html").read_text()
    for said in ("vision_alignment below 0.5", "Paid for opinions", "refused: I cannot", "sees"):
        assert said in page
    again = place.ppv(
        "run", "bases.txt", "--run", "heard", "--set", "verifier.accept_if.preference=0"
    )
    assert again.code == 2 and "verifier.accept_if.preference" in again.err


def test_broken_pictures_fail_alone_and_odd_ones_are_judged(place: Place) -> None:
    first = place.ppv("run", "bases.txt", "--run", "odd")
    assert first.code == 0, first.err
    folder = place.run_folder("odd")
    ids = sorted(each.id for each in records(folder))
    for batch in list(folder.record_batches()):
        folder.store.delete(f"runs/odd/records/{batch}.jsonl")
    odd = {
        "grey": png(Image.new("L", (40, 33), 90)),
        "alpha": png(Image.new("RGBA", (32, 32), (9, 90, 9, 120))),
        "narrow": png(Image.new("RGB", (1, 64))),
        "truncated": png(Image.new("RGB", (32, 32)))[:-30],
        "empty": b"",
    }
    named = dict(zip(odd, ids, strict=False))
    for name, data in odd.items():
        folder.write_image(named[name], data)
    resumed = place.ppv("resume", "odd")
    assert resumed.code == 1, resumed.err
    failed = {each.id: each.error for each in failures(folder)}
    assert set(failed) == {named[name] for name in ("narrow", "truncated", "empty")}
    assert "1 x 64 pixels is too narrow" in failed[named["narrow"]]
    assert "cannot be read" in failed[named["truncated"]]
    judged = {each.id for each in records(folder)}
    assert judged == set(ids) - set(failed)


def test_a_record_of_before_opinions_is_read(place: Place) -> None:
    assert place.ppv("run", "bases.txt", "--run", "old").code == 0
    folder = place.run_folder("old")
    record = next(records(folder))
    old = json.loads(record.model_dump_json(exclude={"usage": True}))
    for name in ("opinions", "unheard", "accept_if", "failing_clause"):
        del old["verdict"][name]
    del old["verdict"]["thresholds"]["chosen_by"]
    read = Record.model_validate(old)
    assert read.verdict.accepted == record.verdict.accepted
    run = json.loads(folder.read().model_dump_json())
    for name in ("opinions", "accept_if", "compile"):
        del run["verifier"][name]
    del run["verifier"]["thresholds"]["chosen_by"], run["opinion_refs"], run["vision_price"]
    folder.store.put("runs/old/run.json", json.dumps(run).encode())
    again = place.ppv("run", "bases.txt", "--run", "old", "--out", "out")
    assert again.code == 0, again.err


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
