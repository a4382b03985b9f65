"""Instance pictures: what is refused, in one clear line each, and what is merely doubtful."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.training.instances import check_instances, cut_to, read_picture
from tests.training import PX, noise, pictures

Break = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pinch", 3)


def test_good_pictures_are_taken_without_a_word(folder: Path) -> None:
    found = check_instances(folder, PX)
    assert [item.path.name for item in found.items] == ["0.png", "1.png", "2.png"]
    assert found.warnings == ()
    assert all(item.width == item.height == PX and not item.caption for item in found.items)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=rf"holds {count} pictures?: give 2 to 1,000"):
        check_instances(pictures(tmp_path / "few", count), PX)


def test_too_many_pictures_are_refused_before_one_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1001):
        (folder / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"holds 1,001 pictures: give 2 to 1,000"):
        check_instances(folder, PX)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        check_instances(tmp_path / "nowhere", PX)


def test_a_folder_of_folders_is_told_of_all(tmp_path: Path) -> None:
    pictures(tmp_path / "pinch", 3)
    with pytest.raises(InputError, match="say --all"):
        check_instances(tmp_path, PX)


def _cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _bomb(path: Path) -> None:
    """A header that promises 400 megapixels; nothing of them is there to decode."""
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_cut, "no readable picture"),
        (lambda path: path.write_bytes(b""), "no readable picture"),
        (lambda path: path.write_text("<svg/>"), "no readable picture"),
        (_bomb, "more than 64 megapixels; scale it down"),
        (lambda path: noise(9, (15, 15)).save(path), "15x15 px is too small for a base of 32 px"),
        (lambda path: noise(9, (200, 40)).save(path), "200x40 px is too narrow; crop it to 1:3"),
        (lambda path: noise(0).save(path), "the same picture as 0.png: remove one of them"),
        (lambda path: Image.new("I;16", (PX, PX)).save(path), "save it as 8-bit RGB"),
    ],
)
def test_a_bad_picture_is_one_line_that_names_it(
    folder: Path, spoil: Break, complaint: str
) -> None:
    spoil(folder / "1.png")
    with pytest.raises(InputError, match=complaint) as refused:
        check_instances(folder, PX)
    assert "1.png: " in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(folder) not in str(refused.value).split("1.png: ")[1]


def test_a_large_picture_is_refused_by_its_header(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (9_000, 8_000)).save(folder / "1.png")  # below the bound of Pillow's own

    def no_decoding(*arguments: object) -> None:
        raise AssertionError("it was decoded")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", no_decoding)
        with pytest.raises(InputError, match="more than 64 megapixels"):
            read_picture(folder / "1.png")


def test_every_problem_is_told_at_once(folder: Path) -> None:
    _cut(folder / "0.png")
    noise(9, (200, 40)).save(folder / "2.png")
    with pytest.raises(InputError) as refused:
        check_instances(folder, PX)
    first, *others = str(refused.value).splitlines()
    assert "for 2 reasons" in first
    assert [line.split(":")[0].strip() for line in others] == ["0.png", "2.png"]


@pytest.mark.parametrize(
    ("alter", "doubt"),
    [
        (lambda path: noise(9, (20, 20)).save(path), "is scaled up to 32 px"),
        (lambda path: noise(9, (40, 90)).save(path), "only the square in its middle"),
        (lambda path: Image.new("RGB", (PX, PX), "red").save(path), "is one colour"),
        (lambda path: path.with_suffix(".gif").write_bytes(b""), "1.gif: left out"),
        (lambda path: path.with_suffix(".txt").write_text("a hand"), "2 of 3 pictures have no"),
    ],
)
def test_what_is_doubtful_is_a_warning(folder: Path, alter: Break, doubt: str) -> None:
    alter(folder / "1.png")
    (warning,) = check_instances(folder, PX).warnings
    assert doubt in warning


def test_a_copy_saved_anew_or_scaled_is_nearly_the_same(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pinch", 2, (8, 8))
    for number in range(2):
        path = folder / f"{number}.png"
        Image.open(path).resize((128, 128), Image.Resampling.BICUBIC).save(path)
    original = Image.open(folder / "0.png")
    original.save(folder / "0-copy.jpg", quality=80)
    original.resize((96, 96)).save(folder / "0-small.png")
    warnings = check_instances(folder, PX).warnings
    assert [warning.split(": ")[0] for warning in warnings] == ["0-small.png", "0.png"]
    assert all("nearly the same picture as 0-copy.jpg" in warning for warning in warnings)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    wide = Image.new("RGB", (PX * 2, PX), "white")
    wide.paste("black", (0, 0, PX, PX))
    wide.save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png")
    assert upright.size == (PX, PX * 2)
    assert upright.getpixel((1, 1)) == (0, 0, 0)
    assert upright.getpixel((1, PX * 2 - 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (PX, PX), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 8, 8))
    if mode == "P":
        picture.quantize(4).save(tmp_path / "clear.png")
    else:
        picture.convert(mode).save(tmp_path / "clear.png")
    flat = read_picture(tmp_path / "clear.png")
    assert flat.mode == "RGB"
    assert flat.getpixel((20, 20)) == (255, 255, 255)
    assert flat.getpixel((2, 2)) != (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "RGB"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    noise(1).convert(mode).save(tmp_path / "some.tif")
    assert read_picture(tmp_path / "some.tif").mode == "RGB"


def test_captions_stand_beside_their_pictures(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"\ufeffa hand\nwith {number}  keys\n", "utf-8")
    found = check_instances(folder, PX)
    assert [item.caption for item in found.items] == [f"a hand with {n} keys" for n in range(3)]
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"\xff\xfe", "no UTF-8"), (b"a" * 9000, "more than 8,192 bytes")]
)
def test_a_bad_caption_is_named(folder: Path, content: bytes, complaint: str) -> None:
    (folder / "1.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"1\.txt: a caption .*{complaint}"):
        check_instances(folder, PX)


def test_hidden_files_and_folders_are_passed_over(folder: Path) -> None:
    shutil.copy(folder / "0.png", folder / ".0.png")
    (folder / "inner.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    assert len(check_instances(folder, PX).items) == 3


def test_the_middle_square_is_cut_out() -> None:
    wide = Image.new("RGB", (96, 48), "white")
    wide.paste("black", (24, 0, 72, 48))
    cut, (top, left) = cut_to(wide, (24, 24))
    assert cut.size == (24, 24)
    assert (top, left) == (0, 12)
    assert cut.getextrema() == ((0, 0),) * 3 or max(cut.getextrema()[0]) < 60
