"""The verifier: what it loads, what it refuses, how it reads, and that its scores are stable."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import MINIATURE, VerifierConfig
from pipeline.errors import ModelError
from pipeline.models import folder_of
from pipeline.types import ClauseScore, Thresholds, Verdict
from pipeline.verifier import Verifier
from pipeline.verifier.clauses import aggregate, split_clauses
from pipeline.verifier.vilt import BatchMismatch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", ",", "."]
WORDS += ["hand", "mug", "red", "blue", "holding", "on", *(f"##{c}" for c in "adeghinrtu")]
LONG = "a red hand holding a blue mug, on a red mug. " * 4


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny verifier with random weights in a public ViLT's layout, without a stem."""
    import torch

    from pipeline.verifier.network import ViltVerifier, ViltVerifierConfig

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("verifier")
    ViltVerifier(ViltVerifierConfig(**TINY)).save_pretrained(folder)
    _save_processor(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random ViLT as transformers itself saves it, as dandelin/vilt-b32-mlm is laid out."""
    from transformers import ViltConfig, ViltForMaskedLM

    folder = tmp_path_factory.mktemp("backbone")
    ViltForMaskedLM(ViltConfig(**TINY)).save_pretrained(folder)
    _save_processor(folder)
    return folder


TINY: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "patch_size": 16,
}


def test_importing_the_verifier_loads_no_torch() -> None:
    code = "import sys, pipeline.verifier, pipeline.verifier.vilt; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_scores_do_not_depend_on_the_batch(untrained: Path) -> None:
    verifier = _load(untrained)
    images = [_noise(seed, size) for seed, size in enumerate([(64, 64), (100, 64), (64, 90)] * 3)]
    prompts = [f"a {'red ' * (n + 1)}hand holding a mug" for n in range(9)]
    at_once = _scores(verifier.judge(images[:8], prompts[:8], Thresholds()))
    for size in (1, 3):
        apart: list[float] = []
        for i in range(0, 8, size):
            part = slice(i, min(i + size, 8))
            apart += _scores(verifier.judge(images[part], prompts[part], Thresholds()))
        assert apart == pytest.approx(at_once, abs=1e-5)
    assert _scores(verifier.judge(images[:8], prompts[:8], Thresholds())) == at_once


def test_pictures_and_prompts_must_be_pairs(untrained: Path) -> None:
    with pytest.raises(BatchMismatch, match="1 images for 2 prompts"):
        _load(untrained).judge([_noise(0)], ["a mug", "a hand"], Thresholds())


def test_nothing_to_judge_gives_no_verdict(untrained: Path) -> None:
    assert _load(untrained).judge([], [], Thresholds()) == []


def test_long_prompt_is_judged_clause_by_clause(untrained: Path) -> None:
    verifier = _load(untrained)
    image = _noise(1)
    verdict = verifier.judge([image], [LONG], Thresholds())[0]
    assert len(verdict.clauses) > 1
    assert " ".join(clause.text for clause in verdict.clauses).split() == LONG.split()
    assert verdict.alignment == min(clause.alignment for clause in verdict.clauses)
    alone = verifier.judge([image], [verdict.clauses[-1].text], Thresholds())[0]
    assert alone.clauses[0].alignment == pytest.approx(verdict.clauses[-1].alignment, abs=1e-5)


def test_short_prompt_is_one_clause(untrained: Path) -> None:
    verdict = _load(untrained).judge([_noise(2)], ["a hand, on a mug. red"], Thresholds())[0]
    assert [clause.text for clause in verdict.clauses] == ["a hand, on a mug. red"]


def test_a_score_that_is_not_a_number_is_refused(untrained: Path) -> None:
    import torch

    verifier = _load(untrained)
    with torch.no_grad():
        for weight in verifier.network.alignment_head.parameters():
            weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="no finite score"):
        verifier.judge([_noise(0)], ["a mug"], Thresholds())


def test_image_tokens_are_those_of_transformers(backbone: Path) -> None:
    import torch
    from transformers import ViltModel

    from pipeline.verifier.network import ViltVerifier

    ours, theirs = ViltVerifier.from_backbone(backbone), ViltModel.from_pretrained(backbone)
    pixels, ids = torch.randn(2, 3, 64, 96), torch.randint(5, 30, (2, 7))
    with torch.inference_mode():
        expected = theirs.forward(
            input_ids=ids, pixel_values=pixels, pixel_mask=torch.ones(2, 64, 96)
        ).pooler_output
        found = ours.features(ids, torch.ones_like(ids), ours.embed_images(pixels))
    torch.testing.assert_close(found[:, :32], expected, rtol=0, atol=1e-5)


def test_public_backbone_loads_for_training_and_is_refused_for_judging(backbone: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from pipeline.verifier.network import ViltVerifier

    saved = load_file(backbone / "model.safetensors")
    loaded = ViltVerifier.from_backbone(backbone).state_dict()
    backbone_keys = [key for key in saved if key.startswith("vilt.")]
    assert len(backbone_keys) > 20
    assert all(torch.equal(saved[key], loaded[key]) for key in backbone_keys)
    with pytest.raises(ModelError, match="no fidelity and alignment heads"):
        _load(backbone)


def test_classifier_layout_loads_as_a_backbone(tmp_path: Path) -> None:
    from transformers import ViltConfig, ViltForImagesAndTextClassification

    from pipeline.verifier.network import ViltVerifier

    config = ViltConfig(**TINY, num_images=2, modality_type_vocab_size=3)
    ViltForImagesAndTextClassification(config).save_pretrained(tmp_path)
    assert ViltVerifier.from_backbone(tmp_path).config.hidden_size == TINY["hidden_size"]


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        _load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "heads.pt", "x.pth", "y.ckpt", "z.pkl"])
def test_pickle_is_refused(untrained: Path, tmp_path: Path, name: str) -> None:
    for file in untrained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="holds a pickle"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", '{"model_type": "bert"}', "'bert', no ViLT verifier"),
        ("config.json", "{", "no readable config.json"),
        ("config.json", "[]", "no readable config.json"),
        ("model.safetensors", "not safetensors at all", "cannot be loaded"),
        ("tokenizer.json", "{", "tokenizer"),
    ],
)
def test_broken_folder_is_refused_in_one_line(
    untrained: Path, tmp_path: Path, file: str, content: str, reason: str
) -> None:
    for path in untrained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match=reason) as caught:
        _load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_verifier_without_its_heads_is_refused(untrained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in untrained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(untrained / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "fidelity" not in key}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 6 weights \(fidelity_head"):
        _load(tmp_path)


def test_stem_must_divide_the_picture() -> None:
    from pipeline.verifier.network import ViltVerifierConfig

    with pytest.raises(ValueError, match="8 divides"):
        ViltVerifierConfig(**{**TINY, "patch_size": 12}, stem_channels=[8, 8, 8]).backbone()


@pytest.mark.parametrize("seed", range(60))
def test_clauses_keep_every_word_in_order_and_fit(seed: int) -> None:
    rng = random.Random(seed)
    marks = [" ", " ", " ", ", ", "; ", ". ", " with ", " in front of ", "\n", "  ", "... "]
    words = ["".join(rng.choices("abcé漢🙂-',", k=rng.randint(1, 9))) for _ in range(80)]
    text = "".join(word + rng.choice(marks) for word in words[: rng.randint(1, 80)])
    budget = rng.randint(10, 40)

    clauses = split_clauses(text, budget, _count)

    assert " ".join(clauses).split() == text.split()
    assert all(0 < _count(clause) <= budget for clause in clauses)


def test_cuts_are_made_at_the_widest_boundary_that_helps() -> None:
    text = "One two three. Four five, six seven. Eight with nine ten"
    assert split_clauses(text, 4, _count_words) == [
        "One two three.", "Four five, six seven.", "Eight with nine ten",
    ]  # fmt: skip
    assert split_clauses(text, 3, _count_words) == [
        "One two three.", "Four five,", "six seven.", "Eight", "with nine ten",
    ]  # fmt: skip


def test_one_monstrous_word_is_cut_within_and_loses_nothing() -> None:
    clauses = split_clauses("x" * 1000, 38, len)
    assert "".join(clauses) == "x" * 1000
    assert max(map(len, clauses)) == 38


@pytest.mark.parametrize("blank", ["", "  \n "])
def test_blank_text_is_one_empty_clause(blank: str) -> None:
    assert split_clauses(blank, 5, _count) == [""]


def test_budget_must_hold_a_token() -> None:
    with pytest.raises(ValueError, match="budget of 0"):
        split_clauses("a", 0, _count)


def test_every_clause_must_hold_for_the_prompt_to_hold() -> None:
    clauses = [
        ClauseScore(text="a", fidelity=0.2, alignment=0.9),
        ClauseScore(text="b", fidelity=0.6, alignment=0.3),
    ]
    assert aggregate(clauses) == pytest.approx((0.4, 0.3))


@pytest.fixture(scope="session")
def miniature() -> Verifier:
    return Verifier.load(VerifierConfig(model=MINIATURE, device="cpu"))


@pytest.mark.parametrize(("attribute", "least"), [("object", 44), ("category", 52), ("color", 52)])
def test_miniature_prefers_a_true_caption_to_a_wrong_one(
    miniature: Verifier, attribute: str, least: int
) -> None:
    from pipeline.miniature.captions import full, scene_of, swapped
    from pipeline.miniature.render import render
    from pipeline.miniature.scenes import sample

    rng = random.Random(7)
    cases = list(sample(3, 60, 0.0, 0.0, held_out=True))
    images = [render(case.scene) for case in cases]
    wrong = [
        full(swapped(scene_of(case.asked), rng, (attribute,)), case.variant).text for case in cases
    ]
    true = miniature.judge(images, [case.caption for case in cases], Thresholds())
    false = miniature.judge(images, wrong, Thresholds())
    assert sum(a.alignment > b.alignment for a, b in zip(true, false, strict=True)) >= least


def test_miniature_prefers_a_faultless_hand(miniature: Verifier) -> None:
    from pipeline.miniature.render import render
    from pipeline.miniature.scenes import sample, with_fault

    cases = list(sample(4, 60, 0.0, 0.0, held_out=True))
    wrong = [with_fault(case.scene, "fused_fingers", n) for n, case in enumerate(cases)]
    captions = [case.caption for case in cases]
    true = miniature.judge([render(case.scene) for case in cases], captions, Thresholds())
    false = miniature.judge([render(case.scene) for case in wrong], captions, Thresholds())
    higher = sum(a.fidelity > b.fidelity for a, b in zip(true, false, strict=True))
    assert higher >= 51


def test_miniature_reads_plain_text_without_unknown_tokens(miniature: Verifier) -> None:
    tokenizer = miniature.tokenizer
    text = "A quick brown fox, 42 jugs & one teapot: 'holding' it; why not? (100%)"
    assert tokenizer.unk_token_id not in tokenizer.encode(text)


def test_miniature_folder_is_small_and_in_the_public_layout() -> None:
    folder = folder_of(MINIATURE, "verifier")
    assert folder is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * 2**20
    assert json.loads((folder / "config.json").read_text())["model_type"] == "vilt_verifier"


def _save_processor(folder: Path) -> None:
    from transformers import BertTokenizer, ViltProcessor
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=40)
    settings: dict[str, Any] = {"size": {"shortest_edge": 64}, "size_divisor": 16}
    processor: Any = ViltProcessor
    processor(ViltImageProcessorPil(**settings), tokenizer).save_pretrained(folder)


def _load(folder: Path) -> Verifier:
    return Verifier.load(VerifierConfig(model=str(folder), device="cpu"))


def _scores(verdicts: list[Verdict]) -> list[float]:
    return [score for verdict in verdicts for score in (verdict.fidelity, verdict.alignment)]


def _noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = random.Random(seed).randbytes(size[0] * size[1] * 3)
    return Image.frombytes("RGB", size, pixels)


def _count(text: str) -> int:
    """Every word costs a token for each three characters that it has."""
    return sum((len(word) + 2) // 3 for word in text.split())


def _count_words(text: str) -> int:
    return len(text.split())
