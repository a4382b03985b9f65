"""The miniature: pictures that are what they say, and the weights that ship with the project."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from pipeline.config import MINIATURE, ProposerConfig
from pipeline.miniature.judge import load_judge
from pipeline.miniature.render import render
from pipeline.miniature.scenes import (
    CAPTION_FAULTS,
    HAND_FAULTS,
    SCENE_FAULTS,
    Example,
    is_held_out,
    sample,
    taxonomy,
    with_fault,
)
from pipeline.models import WEIGHTS, check_folder, fingerprint
from pipeline.proposer.diffusion import DiffusionProposer
from pipeline.types import Sampler

COMMITTED_MB = 40


def test_a_scene_is_always_the_same_picture() -> None:
    scenes = [example.scene for example in sample(seed=5, count=6)]
    assert [render(scene).tobytes() for scene in scenes] == [
        render(scene).tobytes() for scene in scenes
    ]
    assert {render(scene).size for scene in scenes} == {(64, 64)}
    assert len({render(scene).tobytes() for scene in scenes}) == len(scenes)


def test_truth_names_the_fault_that_was_made() -> None:
    clean = next(iter(sample(seed=6, count=1, hand_fault_rate=0, other_fault_rate=0)))
    assert clean.faults == ()
    assert clean.faithful and clean.aligned
    for fault in (*SCENE_FAULTS, *CAPTION_FAULTS):
        example = with_fault(clean.scene, fault, seed=1)
        assert example.faults == (fault,)
        assert example.faithful == (fault not in HAND_FAULTS)
        assert example.aligned == (fault in HAND_FAULTS)


def test_faults_come_as_often_as_asked_and_never_from_held_out_scenes() -> None:
    examples = list(sample(seed=7, count=2000, hand_fault_rate=0.3, other_fault_rate=0.0))
    faulty = sum(not example.faithful for example in examples) / len(examples)
    assert faulty == pytest.approx(0.3, abs=0.04)
    assert not any(is_held_out(example.scene) for example in examples)
    held_out = list(sample(seed=7, count=200, other_fault_rate=0.0, held_out=True))
    assert all(is_held_out(example.scene) for example in held_out)


def test_every_fault_changes_the_picture_plainly() -> None:
    """A fault that moves few pixels is one that neither judge nor verifier can see."""
    for example in sample(seed=8, count=6, hand_fault_rate=0, other_fault_rate=0):
        for fault in HAND_FAULTS:
            assert _share_changed(example, with_fault(example.scene, fault, seed=3)) > 0.01, fault


def test_the_judge_reads_held_out_renders() -> None:
    """At least 80% recall for each kind of fault, and few false alarms, on a fresh seed."""
    judge = load_judge(WEIGHTS / "judge")
    clean = list(sample(seed=99, count=40, hand_fault_rate=0, other_fault_rate=0, held_out=True))
    alarms = sum(bool(reading.found) for reading in judge.read([render(e.scene) for e in clean]))
    assert alarms <= 4
    found: Counter[str] = Counter()
    for fault in SCENE_FAULTS:
        faulty = [with_fault(example.scene, fault, seed=n) for n, example in enumerate(clean)]
        for reading in judge.read([render(example.scene) for example in faulty]):
            found[fault] += fault in reading.found
    assert all(found[fault] >= 0.8 * len(clean) for fault in SCENE_FAULTS), found


def test_the_base_draws_what_is_asked() -> None:
    """A smoke test of the committed weights: skin, colour and pose, by the judge."""
    wanted = [example.asked for example in sample(seed=21, count=8, held_out=True)]
    captions = [taxonomy().describe(scene.category, scene.attributes) for scene in wanted]
    proposer = DiffusionProposer.load(ProposerConfig(), fingerprint(MINIATURE, "base"))
    drawings = proposer.draw(captions, list(range(8)), Sampler())
    readings = load_judge(WEIGHTS / "judge").read([drawing.image for drawing in drawings])
    agreed = [reading.agrees(scene) for reading, scene in zip(readings, wanted, strict=True)]
    for attribute in ("category", "color"):
        assert sum(each[attribute] for each in agreed) >= 7, (attribute, agreed)
    assert [drawing.unread_tokens for drawing in drawings] == [0] * 8


def test_every_prompt_of_the_taxonomy_fits_the_text_encoder() -> None:
    config = json.loads((WEIGHTS / "base" / "tokenizer" / "tokenizer_config.json").read_text())
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "base" / "tokenizer")
    longest = max(
        len(tokenizer(taxonomy().describe(e.asked.category, e.asked.attributes, v)).input_ids)
        for e in sample(seed=1, count=300)
        for v in range(len(taxonomy().templates))
    )
    assert longest <= config["model_max_length"]


def test_committed_weights_are_small_and_hold_no_pickle() -> None:
    check_folder(WEIGHTS)
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size <= COMMITTED_MB * 10**6


def test_rendering_and_reading_the_judge_s_module_load_no_torch() -> None:
    code = (
        "import sys, pipeline.miniature.render, pipeline.miniature.judge, "
        "pipeline.miniature.__main__; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def _share_changed(before: Example, after: Example) -> float:
    """The share of pixels that differ by more than a shade, in [0, 1]."""
    a, b = render(before.scene).tobytes(), render(after.scene).tobytes()
    changed = sum(
        max(abs(x - y) for x, y in zip(a[i : i + 3], b[i : i + 3], strict=True)) > 24
        for i in range(0, len(a), 3)
    )
    return changed / (len(a) // 3)
