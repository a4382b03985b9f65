"""Base prompts from files: what comes through unharmed, what is refused, and with which words."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import InputError
from workers.inputs import MAX_CHARACTERS, read_bases, run_name_of

Write = Callable[[str, bytes | str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file and gives its path."""

    def write(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def texts(source: str) -> list[str]:
    return [base.text for base in read_bases(source)]


def refusal(source: str) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as refused:
        texts(source)
    message = str(refused.value)
    assert source in message and len(message.splitlines()) == 1
    return message


def test_every_format_gives_the_same_base_prompts(write: Write) -> None:
    expected = ["a hand holding a mug", 'a "red", round ball']
    assert texts(write("a.txt", 'a hand holding a mug\na "red", round ball')) == expected
    table = 'id,prompt\n1,a hand holding a mug\n2,"a ""red"", round ball"\n'
    assert texts(write("a.csv", table)) == expected
    jsonl = '{"prompt": "a hand holding a mug", "id": 1}\n"a \\"red\\", round ball"\n'
    assert texts(write("a.jsonl", jsonl)) == expected


def test_blank_lines_are_passed_over(write: Write) -> None:
    assert texts(write("a.txt", "\n \t\na mug\n\n\u3000\na key\n\n")) == ["a mug", "a key"]
    assert texts(write("a.jsonl", '\n"a mug"\n  \n""\n')) == ["a mug"]
    assert texts(write("a.csv", "\nprompt,x\n,1\n\na mug,2\n\n")) == ["a mug"]


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("content", ["", "\n \n\n", "\ufeff"])
def test_a_file_without_base_prompts_is_refused(write: Write, ending: str, content: str) -> None:
    assert "holds no base prompt" in refusal(write(f"a.{ending}", content))


def test_a_byte_order_mark_and_windows_line_ends_leave_no_trace(write: Write) -> None:
    assert texts(write("a.txt", "\ufeffa mug\r\na key\r\n")) == ["a mug", "a key"]
    assert texts(write("a.csv", "\ufeffprompt,id\r\na mug,1\r\n")) == ["a mug"]
    assert texts(write("a.jsonl", '\ufeff"a mug"\r\n')) == ["a mug"]


@pytest.mark.parametrize(
    "text",
    [
        "يد تمسك كوبًا أحمر",
        "יד אוחזת כוס \u200f(אדומה)",
        "a hand 👋🏽 waves 👩‍👩‍👧",
        "一只手拿着杯子",
    ],
)
def test_other_scripts_and_emoji_pass_unharmed(write: Write, text: str) -> None:
    assert texts(write("a.txt", text)) == [text]
    assert texts(write("a.csv", f"prompt\n{text}\n")) == [text]


def test_two_ways_to_write_an_accent_are_one_base_prompt(write: Write) -> None:
    first, second = read_bases(write("a.txt", "a caf\u00e9  table\na cafe\u0301 table"))
    assert first.id == second.id


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\x9b"])
def test_a_control_character_is_named_with_its_line(write: Write, character: str) -> None:
    message = refusal(write("a.txt", f"a mug\na {character}key\n"))
    assert "line 2" in message and f"U+{ord(character):04X}" in message
    assert character not in message


def test_ten_thousand_characters_are_too_many(write: Write) -> None:
    message = refusal(write("a.txt", "a mug\n" + "x" * 10_000))
    assert "line 2 has 10,000 characters" in message and "at most 2,000" in message
    assert texts(write("b.txt", "é" * MAX_CHARACTERS)) == ["é" * MAX_CHARACTERS]


def test_a_line_of_a_gigabyte_is_not_read_into_memory(tmp_path: Path) -> None:
    endless = tmp_path / "a.txt"
    with endless.open("wb") as file:
        file.truncate(2**30)  # zeros that take no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "longer than 65,536 bytes" in refusal(str(endless))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 * 1024  # KiB


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
def test_text_that_is_not_utf8_is_refused_with_its_place(write: Write, ending: str) -> None:
    lines = {"txt": b"a mug\n", "jsonl": b'"a mug"\n', "csv": b"prompt\n"}
    message = refusal(write(f"a.{ending}", lines[ending] + "a café".encode("latin-1")))
    assert "line 2 is not UTF-8 (byte 0xe9 at column 6)" in message


def test_utf16_is_refused(write: Write) -> None:
    assert "line 1 is not UTF-8" in refusal(write("a.txt", "a mug".encode("utf-16")))


def test_a_table_without_the_column_names_those_it_has(write: Write) -> None:
    message = refusal(write("a.csv", "text,id\na mug,1\n"))
    assert "no column 'prompt' (columns: text, id)" in message


def test_a_quote_that_never_closes_is_broken_csv(write: Write) -> None:
    assert "is broken CSV" in refusal(write("a.csv", 'prompt\n"a mug\n' + "x\n" * 70_000))


def test_a_broken_line_stops_the_stream_after_those_before_it(write: Write) -> None:
    good = "".join(f'{{"prompt": "mug {number}"}}\n' for number in range(16))
    source = write("a.jsonl", good + '{"prompt": "mug\n' + good)
    read = []
    with pytest.raises(InputError, match="line 17 is broken JSON"):
        for base in read_bases(source):
            read.append(base.text)
    assert read == [f"mug {number}" for number in range(16)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a mug"}', 'needs an object with "prompt"'),
        ('{"prompt": 5}', 'needs an object with "prompt"'),
        ("[1]", 'needs an object with "prompt"'),
        ("[" * 50_000, "too deep"),
        ("1" * 5_000, "too long"),
        (r'"a \ud800 mug"', "lone surrogate U+D800"),
        (r'"a \u0000 mug"', "control character U+0000"),
    ],
)
def test_json_that_is_no_base_prompt_is_refused(write: Write, line: str, reason: str) -> None:
    message = refusal(write("a.jsonl", line))
    assert "line 1" in message and reason in message


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    assert "directory" in refusal(str(tmp_path / "a.txt"))
    assert "No such file" in refusal(str(tmp_path / "b.txt"))
    assert "--format" in refusal(str(tmp_path / "a.pdf"))


def test_the_first_base_prompt_comes_before_the_last_is_written(tmp_path: Path) -> None:
    pipe = tmp_path / "a.txt"
    os.mkfifo(pipe)
    writer = "import sys; f = open(sys.argv[1], 'w'); print('a mug', file=f, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", writer + "; print('a key', file=f)", pipe], stdin=subprocess.PIPE
    ) as process:
        bases = read_bases(str(pipe))
        assert next(bases).text == "a mug"
        assert process.poll() is None
        process.communicate(b"\n")
        assert [base.text for base in bases] == ["a key"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("-", "stdin"),
        ("/tmp/My Prompts (2).txt", "my-prompts-2"),
        ("../../x.csv", "x"),
        ("手.txt", "run"),
        (f"{'long' * 100}.txt", "long" * 16),
    ],
)
def test_a_file_gives_its_run_a_name_that_is_one(source: str, name: str) -> None:
    from storage.runs import check_run_name

    assert check_run_name(run_name_of(source)) == name
