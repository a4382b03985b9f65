"""Second opinions: what they score, what they refuse, and that a rule over them decides."""

import base64
import io
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.provider import Provider
from pipeline.config import VISION_SCORES, OpinionsConfig, PrompterConfig, VerifierConfig
from pipeline.errors import EndpointAway, InputError, ModelError, PromptRejected
from pipeline.prompter.dialogue import PICTURE_TOKENS, Request
from pipeline.prompter.endpoint import Endpoint
from pipeline.types import Answer, ClauseScore, Thresholds, Usage, Verdict
from pipeline.verifier.opinions import ClipOpinion, freeze, hear_all, load_models, with_opinions
from pipeline.verifier.vision import LONGEST_PX, VisionOpinion, read, request_of
from tests.tiny import save_tiny_clip
from workers.settings import load_settings

PROMPTS = ["a hand", "a red mug", "a hand"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3))


def config(**opinions: str) -> VerifierConfig:
    return VerifierConfig(device="cpu", opinions=OpinionsConfig(**opinions))


def heard(clip: Path, name: str, prompts: Sequence[str], images: Sequence[Image.Image]) -> Any:
    (opinion,) = load_models(config(**{name: str(clip)}), {})
    return [each.scores[name] for each in opinion.hear(images, prompts)]


def verdict(fidelity: float = 0.9) -> Verdict:
    clause = ClauseScore(text="a hand", fidelity=fidelity, alignment=0.9)
    return Verdict(fidelity=fidelity, alignment=0.9, clauses=(clause,), thresholds=Thresholds())


def test_clip_score_is_the_cosine_that_transformers_gives(clip: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    models: Any = (CLIPModel, CLIPProcessor)
    model, processor = (each.from_pretrained(clip) for each in models)
    images = [noise(n) for n in range(3)]
    inputs = processor(images=images, text=PROMPTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits_per_text.diagonal()
        scale = model.logit_scale.exp().item()
    cosines = [each / scale for each in logits.tolist()]
    assert heard(clip, "clip_score", PROMPTS, images) == pytest.approx(
        [max(0.0, each) for each in cosines], abs=1e-5
    )
    assert heard(clip, "preference", PROMPTS, images) == pytest.approx(logits.tolist(), abs=1e-4)


def test_a_text_is_encoded_once_for_all_its_pictures(clip: Path) -> None:
    (opinion,) = load_models(config(clip_score=str(clip)), {})
    assert isinstance(opinion, ClipOpinion)
    texts: list[str] = []
    tokenizer = opinion._tokenizer

    def counted(given: Any, **options: Any) -> Any:
        texts.extend(given if isinstance(given, list) else [])
        return tokenizer(given, **options)

    opinion._tokenizer = counted
    first = opinion.hear([noise(n) for n in range(3)], PROMPTS)
    assert opinion.hear([noise(0)], PROMPTS[:1])[0].scores == pytest.approx(first[0].scores)
    assert sorted(texts) == ["a hand", "a red mug"]


def test_a_prompt_beyond_what_clip_reads_is_read_to_its_end(clip: Path) -> None:
    long = "a red hand, " * 20
    same, other = heard(clip, "preference", [long + "a mug", long + "a key"], [noise(1)] * 2)
    assert same != pytest.approx(other, abs=1e-6)


def test_a_model_of_another_kind_is_refused_before_a_run_begins(clip: Path, tmp_path: Path) -> None:
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert list(freeze(OpinionsConfig(clip_score=str(tmp_path)))) == ["clip_score"]
    (tmp_path / "config.json").write_text('{"model_type": "vilt"}')
    with pytest.raises(ModelError, match=r"clip_score.*of type 'vilt': give a CLIP"):
        freeze(OpinionsConfig(clip_score=str(tmp_path)))
    with pytest.raises(ModelError, match="no model at"):
        freeze(OpinionsConfig(preference=str(tmp_path / "nowhere")))


def test_a_run_is_not_judged_by_other_weights_than_it_was_made_for(
    clip: Path, tmp_path: Path
) -> None:
    named = config(clip_score=str(tmp_path))
    save_tiny_clip(tmp_path, seed=1)
    refs = freeze(named.opinions)
    elsewhere = {"clip_score": refs["clip_score"].model_copy(update={"name": str(clip)})}
    load_models(named, refs)
    with pytest.raises(ModelError, match="the run was made with"):
        load_models(named, elsewhere)


# The rule


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            "[verifier.accept_if]\nclip_scor = 0.2",
            "no score 'clip_scor'; did you mean 'clip_score'",
        ),
        ("[verifier.accept_if]\nclip_score = 0.2", "needs a model in verifier.opinions.clip_score"),
        ("[verifier.accept_if]\nvision_fidelity = 1", "needs a model in verifier.opinions.vision"),
        ("[verifier.opinions]\nclipscore = 'x'", "did you mean 'verifier.opinions.clip_score'"),
        ("[verifier.accept_if]\nclip_score = 'high'", "verifier.accept_if.clip_score"),
    ],
)
def test_a_rule_that_names_no_score_is_refused_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ppv.toml").write_text(toml)
    with pytest.raises(InputError, match=said) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_opinions_decide_only_as_the_rule_says() -> None:
    from pipeline.verifier.opinions import Heard

    low = Heard({"clip_score": 0.1})
    assert with_opinions(verdict(), low, {}).accepted
    judged = with_opinions(verdict(), low, {"clip_score": 0.2})
    assert not judged.accepted
    assert judged.objections == ("clip_score",)
    assert with_opinions(verdict(), low, {"clip_score": 0.1}).accepted
    assert not with_opinions(verdict(0.1), Heard({"clip_score": 9.0}), {"clip_score": 0.2}).accepted
    unheard = Heard(unheard={"vision": "refused"})
    assert not with_opinions(verdict(), unheard, {"vision_fidelity": 0.0}).accepted
    assert Verdict.model_validate_json(judged.model_dump_json()) == judged


# A language model that sees


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def seeing(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> VisionOpinion:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    endpoint = Endpoint(PrompterConfig(kind="openai", model="tiny", base_url=provider.url), 5)
    return VisionOpinion("tiny", endpoint.address, endpoint.ask)


def test_a_language_model_grades_pictures_over_http(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [noise(n) for n in range(3)]
    said = hear_all([seeing(provider, monkeypatch)], images, PROMPTS)
    assert all(set(each.scores) == set(VISION_SCORES) for each in said)
    assert all(0 <= score <= 1 for each in said for score in each.scores.values())
    assert len({tuple(each.scores.values()) for each in said}) > 1  # each picture its own
    assert all(each.usage.requests == 1 for each in said)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ("refusal", "refused: I cannot help"),
        ("truncated", "no grades from 0 to 10"),
        ("malformed", "no grades from 0 to 10"),
        ("content_filter", "content filter"),
        ("filtered_prompt", "PromptFiltered"),
        ("400", "PromptRejected"),
    ],
)
def test_a_broken_answer_is_unheard_and_the_others_are_not(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, outcome: str, reason: str
) -> None:
    opinion = seeing(provider, monkeypatch)
    provider.control(next=[outcome])
    (said,) = opinion.hear([noise(0)], ["a hand"])
    assert said.scores == {} and reason in said.unheard["vision"]
    (after,) = opinion.hear([noise(1)], ["a hand"])
    assert set(after.scores) == set(VISION_SCORES)


def test_an_endpoint_that_stays_away_is_no_verdict() -> None:
    def away(request: Request) -> Answer:
        raise EndpointAway("asked 3 times")

    (said,) = VisionOpinion("tiny", "here", away).hear([noise(0)], ["a hand"])
    assert isinstance(said.error, EndpointAway) and not said.unheard


def test_what_was_paid_in_vain_is_counted_and_what_another_run_paid_is_not() -> None:
    paid = Usage(requests=1, input_tokens=9, output_tokens=1, usd=0.5)

    def rejected(request: Request) -> Answer:
        raise PromptRejected("no pictures here", usage=paid)

    assert VisionOpinion("tiny", "", rejected).hear([noise(0)], ["a"])[0].usage == paid
    answer = Answer(content='{"fidelity": 3, "alignment": 10}', usage=paid, run="first")
    (other,) = VisionOpinion("tiny", "", lambda _: answer, run="second").hear([noise(0)], ["a"])
    assert other.usage == Usage() and other.scores == dict(
        zip(VISION_SCORES, (0.3, 1.0), strict=True)
    )


@pytest.mark.parametrize(
    "content", [None, "", "{}", '{"fidelity": 11, "alignment": 0}', '{"fidelity": "x"}', "[[["]
)
def test_grades_out_of_range_are_no_grades(content: str | None) -> None:
    said = read(Answer(content=content), Usage())
    assert said.scores == {} and "no grades" in said.unheard["vision"]


def test_a_large_picture_is_sent_small_and_costs_what_pictures_cost() -> None:
    request = request_of(noise(0, (1500, 700)), "a hand", "tiny", "here")
    (part,) = [p for p in request.body["messages"][1]["content"] if p["type"] == "image_url"]
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as sent:
        assert max(sent.size) == LONGEST_PX
        assert sent.width / sent.height == pytest.approx(1500 / 700, rel=0.01)
    tokens, _ = request.expected_tokens
    assert PICTURE_TOKENS < tokens < PICTURE_TOKENS + 600
    assert len(json.dumps(request.body)) / 4 > 50_000 and math.isfinite(tokens)
