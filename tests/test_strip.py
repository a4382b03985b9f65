"""The picture strip: what it chooses, and that everything stands where it should."""

import io
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from pipeline.types import (
    BasePrompt,
    DetailedPrompt,
    Proposal,
    ProposerRef,
    Record,
    Sampler,
    digest,
)
from storage.objects import ObjectNotFound
from tests.tiny import a_record, a_run
from workers.pages import strip
from workers.pages.strip import draw_strip, telling_base_prompt, wrap

MODEL = ProposerRef(name="miniature", weights="sha256:" + "0123456789abcdef" * 4)
RUN = a_run().model_copy(update={"name": "demo", "proposers": (MODEL,)})
BLUE = (20, 40, 220)


def a_prompt(index: int, text: str = "a hand holding a mug", base: str = "a mug") -> DetailedPrompt:
    return DetailedPrompt(
        id=digest([base, index]), base=base, index=index, text=text, category="power"
    )


def judged(prompt: DetailedPrompt, seed: int, *, accepted: bool) -> Record:
    proposal = Proposal(prompt=prompt, proposer=MODEL, seed=seed, sampler=Sampler())
    return a_record(proposal, 0.8 if accepted else 0.2, 0.9, run=RUN.name)


def of_base(base: str, accepted: int, rejected: int) -> list[Record]:
    prompt = a_prompt(0, base=base)
    return [judged(prompt, i, accepted=i < accepted) for i in range(accepted + rejected)]


def blue_picture(_: Record) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), BLUE).save(file, "PNG")
    return file.getvalue()


def drawn(
    folder: Path, prompts: Sequence[DetailedPrompt], records: Sequence[Record], base: str = "a mug"
) -> Image.Image:
    draw_strip(RUN, base, prompts, records, blue_picture, folder / "strip.png")
    return Image.open(folder / "strip.png").convert("RGBA")


def columns_of(image: Image.Image, color: tuple[int, int, int]) -> list[int]:
    """The x of each pixel of exactly this colour."""
    width = image.width
    wanted = (*color, 255)
    return [i % width for i, pixel in enumerate(image.get_flattened_data()) if pixel == wanted]


# Which base prompt


def test_the_most_telling_base_prompt_has_most_of_both() -> None:
    records = [
        *of_base("only accepted", 8, 0),
        *of_base("one of each", 1, 1),
        *of_base("seven to one", 7, 1),
        *of_base("half and half", 4, 4),
        *of_base("five to four", 5, 4),
    ]
    random.Random(3).shuffle(records)

    assert telling_base_prompt(records) == "half and half"


def test_ties_go_to_the_smaller_id_whatever_the_order() -> None:
    records = [*of_base("one", 1, 1), *of_base("two", 1, 1), *of_base("three", 1, 1)]
    smallest = min(("one", "two", "three"), key=lambda base: BasePrompt(text=base).id)

    assert telling_base_prompt(records) == smallest
    assert telling_base_prompt(reversed(records)) == smallest


def test_no_records_have_no_telling_base_prompt() -> None:
    assert telling_base_prompt([]) is None


def test_of_a_large_run_a_fixed_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip, "CANDIDATES", 5)
    names = sorted((f"base {i}" for i in range(40)), key=lambda text: BasePrompt(text=text).id)
    balanced = {names[3]: 2, names[20]: 9}  # the second is more telling, and not in the sample
    records = [r for name in names for r in of_base(name, balanced.get(name, 0), 9)]
    for seed in range(3):
        random.Random(seed).shuffle(records)
        assert telling_base_prompt(records) == names[3]


# The picture


def test_accepted_pictures_have_a_green_frame_and_rejected_ones_are_pale(tmp_path: Path) -> None:
    prompt = a_prompt(0)
    accepted = judged(prompt, 1, accepted=True)
    rejected = judged(prompt, 2, accepted=False)

    image = drawn(tmp_path, [prompt], [rejected, accepted])

    framed, vivid = columns_of(image, strip.GREEN), columns_of(image, BLUE)
    pale = [x for x in range(max(vivid) + 1, image.width) if _is_pale_blue(image, x)]
    assert min(framed) < min(vivid) and max(vivid) < max(framed) < min(pale)
    # The frame stands around the picture alone, and its stroke is whole on the left.
    left = min(framed)
    stroke = [image.getpixel((left + i, image.height // 2)) for i in range(strip.FRAME_PX)]
    assert stroke == [(*strip.GREEN, 255)] * strip.FRAME_PX


def _is_pale_blue(image: Image.Image, x: int) -> bool:
    """Is there a bluish column, paler than the picture that was given?"""
    r, g, b, _ = image.getpixel((x, image.height // 2))  # type: ignore[misc]
    return bool(b > r + 10 and b > g + 10 and r > BLUE[0] + 60)


def test_a_strip_is_the_same_each_time_and_in_any_order(tmp_path: Path) -> None:
    prompts = [a_prompt(i) for i in range(3)]
    records = [judged(p, s, accepted=s % 2 == 0) for p in prompts for s in range(3)]

    def picture_of_its_own(record: Record) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), (80 * record.proposal.seed, 0, 0)).save(file, "PNG")
        return file.getvalue()

    one, other = tmp_path / "one.png", tmp_path / "other.png"
    draw_strip(RUN, "a mug", prompts, records, picture_of_its_own, one)
    draw_strip(RUN, "a mug", prompts[::-1], records[::-1], picture_of_its_own, other)

    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(("rows", "across"), [(0, 0), (1, 0), (4, 2), (5, 3), (50, 40)])
def test_size_is_bounded(tmp_path: Path, rows: int, across: int) -> None:
    prompts = [a_prompt(i, text="a hand holding a mug " * 100) for i in range(rows)]
    records = [judged(p, s, accepted=s % 3 == 0) for p in prompts for s in range(across)]

    image = drawn(tmp_path, prompts, records)

    assert image.width == strip.WIDTH_PX
    assert 200 < image.height < 2400


def test_a_row_of_many_shows_accepted_and_rejected_ones(tmp_path: Path) -> None:
    prompt = a_prompt(0)
    records = [judged(prompt, s, accepted=s < 2) for s in range(40)]

    image = drawn(tmp_path, [prompt], records)

    assert len(set(columns_of(image, BLUE))) > 1.5 * strip.TILE_PX[4]  # two vivid ones side by side
    assert any(_is_pale_blue(image, x) for x in range(image.width))


@pytest.mark.parametrize(
    "text",
    ["Donaudampfschifffahrtselektrizitätenhauptbetriebswerk" * 40, "W" * 10_000, "漢字 👋🏽 " * 99],
)
def test_long_text_stays_in_its_column(tmp_path: Path, text: str) -> None:
    short, long = a_prompt(0, text="a mug"), a_prompt(0, text=text)
    records = [judged(long, s, accepted=False) for s in range(2)]

    began = time.monotonic()
    wide = drawn(tmp_path, [long], records, base=text)
    assert time.monotonic() - began < 60  # quadratic time would take minutes

    narrow = drawn(tmp_path, [short], [judged(short, s, accepted=False) for s in range(2)])
    first_picture = min(x for x in range(600, 1600) if _is_pale_blue_anywhere(narrow, x))
    gap = range(first_picture - 40, first_picture - 2)
    white = (*strip.CARD, 255)
    body = range(120, wide.height - 120)
    assert all(wide.getpixel((x, y)) == white for x in gap for y in body)


def _is_pale_blue_anywhere(image: Image.Image, x: int) -> bool:
    for y in range(0, image.height, 4):
        r, g, b, _ = image.getpixel((x, y))  # type: ignore[misc]
        if b > r + 10 and b > g + 10:
            return True
    return False


def test_lines_are_no_wider_than_asked_and_lose_nothing() -> None:
    text = "a hand in a power grasp around a red mug, extraordinarilylongwordwithoutanyend"

    lines = wrap(text, 200, 28, most_lines=20)

    assert all(strip._length(line, 28) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_what_does_not_fit_ends_in_an_ellipsis() -> None:
    lines = wrap("word " * 100, 200, 28, most_lines=3)

    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert strip._length(lines[-1], 28) <= 200


def test_a_missing_or_broken_picture_leaves_its_place(tmp_path: Path) -> None:
    prompt = a_prompt(0)

    def image_of(record: Record) -> bytes:
        if record.proposal.seed == 0:
            raise ObjectNotFound("gone")
        return b"no picture"

    records = [judged(prompt, s, accepted=True) for s in range(2)]
    draw_strip(RUN, "a mug", [prompt], records, image_of, tmp_path / "strip.png")

    with Image.open(tmp_path / "strip.png") as image:
        assert columns_of(image.convert("RGBA"), strip.GREEN)
    assert [p.name for p in tmp_path.iterdir()] == ["strip.png"]
