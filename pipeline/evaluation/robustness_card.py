"""What a verifier cannot tell, in sentences, and the page of its robustness in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.evaluation.opinions import OpinionsMeasured
from pipeline.evaluation.robustness import Curve, Level, Report
from pipeline.evaluation.verifier import HEADS, Ranking, Share
from pipeline.training.card import README

JSON, MARKDOWN = "robustness.json", "ROBUSTNESS.md"
TITLE = "## What it cannot tell"

FEWEST = 20  # pictures, or a figure says nothing
POOR = 0.7  # an AUC below
FALL = 0.05  # of an AUC
FLIPS = 0.2  # of the verdicts
LENIENT = 0.2  # of the right pictures that are accepted when they must no longer be

RULES = (
    f"An edit or a destroying transformation is listed where the AUC of untouched against changed "
    f"pictures is below {POOR:g} or its interval reaches 0.5, or where more than {LENIENT:.0%} of "
    f"the pictures that were right are still accepted. A benign one from the first strength on "
    f"at which an AUC falls by more than {FALL:g}, its interval above 0, or more than {FLIPS:.0%} "
    f"of the verdicts flip. What was tried on fewer than {FEWEST} pictures is called unknown."
)


def limits(report: Report) -> list[str]:
    """What the verifier cannot tell, a sentence each, by RULES."""
    known = [curve for curve in report.curves if curve.untouched.n >= FEWEST]
    lenient = [each for curve in known if curve.kind != "benign" and (each := _lenient(curve))]
    found = [
        *(_poor(head, report.untouched) for head in HEADS),
        *(sentence for _, sentence in sorted(lenient, reverse=True)),  # the worst first
        *(_shaken(curve) for curve in known if curve.kind == "benign"),
        *(_unknown(curve) for curve in report.curves if curve not in known),
    ]
    return [sentence for sentence in found if sentence]


def read_report(path: Path) -> Report:
    """Raises InputError if it is no report."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{str(path)!r} is no report of robustness: {reason}") from None


def section(report: Report, link: str = MARKDOWN) -> str:
    """What stands in the verifier's README.md."""
    lines = [f"- {_plain(sentence)}" for sentence in report.limits]
    return "\n\n".join(
        [
            TITLE,
            f"On {report.pictures:,} labelled pictures of {report.base_prompts:,} base prompts, "
            f"transformed and with edited prompts; all figures are in [{link}]({link}).",
            "\n".join(lines) or "Nothing was found by the rules that are stated there.",
        ]
    )


def with_section(readme: str, report: Report) -> str:
    """The README with the section of this report, in the place of an older one or at its end."""
    before, found, after = readme.partition(f"{TITLE}\n")
    rest = after[at:] if found and (at := after.find("\n## ")) >= 0 else ""
    parts = [before.rstrip("\n"), section(report), rest.strip("\n")]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(report: Report, folder: Path) -> None:
    """The figures and their page into a folder."""
    (folder / JSON).write_text(report.model_dump_json(indent=1) + "\n", "utf-8")
    (folder / MARKDOWN).write_text(markdown(report), "utf-8")


def into_card(report: Report, folder: Path) -> None:
    """Both files into the verifier's own folder, and the section into its README.md."""
    path = folder / README
    try:
        readme = path.read_text("utf-8") if path.exists() else "# A verifier"
        write_card(report, folder)
        partial = path.with_name(f".{README}.partial")
        partial.write_text(with_section(readme, report), "utf-8")
        partial.replace(path)  # what training wrote there cannot be had again
    except OSError as error:
        raise InputError(f"{str(error.filename)!r} cannot be written: {error.strerror}") from None


def markdown(report: Report) -> str:
    """ROBUSTNESS.md: all that the curves show, as tables."""
    at = report.thresholds
    told = [f"- {_plain(sentence)}" for sentence in report.limits]
    blocks = [
        "# What the verifier makes of changed pictures and prompts",
        f"`{report.verifier.name}`, weights `{report.verifier.weights[:19]}`, accepts from "
        f"fidelity {at.fidelity:g} and alignment {at.alignment:g}. {report.pictures:,} of "
        f"{report.labelled:,} labelled pictures, of {report.base_prompts:,} base prompts: "
        f"{report.right:,} right in both, {report.wrong:,} wrong. Intervals are 95%, of shares by "
        "Wilson, of everything else by bootstrap over base prompts. Nothing here knows whether the "
        "verifier learned from these very pictures; if it did, the figures flatter it.",
        TITLE,
        "\n".join(told) or "Nothing was found by the rules below.",
        f"Rules: {RULES}",
        "## Untouched",
        _table(
            ("fidelity, AUC", "alignment, AUC", "right, accepted", "wrong, accepted"),
            [_untouched(report.untouched)],
        ),
        *_opinions(report.opinions),
        "## Transformations that leave the labels true",
        _table(_BENIGN, _rows(report.curves, "benign", _benign)),
        "## Transformations that make them false",
        _table(_DESTROYING, _rows(report.curves, "destroying", _destroying)),
        "## Edits of the prompt",
        _table(_DESTROYING, _rows(report.curves, "edit", _destroying)),
        "## What is assumed",
        "\n".join(f"- **{c.title}**: {c.about} {c.assumed}{_left_out(c)}" for c in report.curves),
    ]
    return "\n\n".join(blocks) + "\n"


# Sentences


def _poor(head: str, level: Level) -> str:
    ranking = level.auc[head]
    if not _below(ranking):
        return ""
    return f"Even of untouched pictures its {head} is poor: {auc_words(ranking)}."


def _unknown(curve: Curve) -> str:
    n = curve.untouched.n
    count = "no prompt" if n == 0 else f"only {n:,} prompt{'' if n == 1 else 's'}"
    if curve.kind != "edit":
        count = f"only {n:,} pictures"
    return f"{capital(curve.title)}: unknown, since it was tried on {count}."


def _shaken(curve: Curve) -> str:
    """From the first strength on at which the figures suffer."""
    for level in curve.levels:
        said = [
            f"its {head} AUC falls by {fall.value:.2f} ({fall.low:.2f} to {fall.high:.2f})"
            for head, fall in level.fall.items()
            if fall.value > FALL and fall.low > 0
        ]
        if (level.flipped.value or 0) > FLIPS:
            said.append(f"{share_words(level.flipped)} of its verdicts flip")
        if said:
            where = f" from {level.label} on" if len(curve.levels) > 1 else ""
            return f"{capital(curve.title)}{where}: {_joined(said)}."
    return ""


def _lenient(curve: Curve) -> tuple[tuple[bool, float], str] | None:
    """Of the strength at which most is accepted that should not be: how bad it is, and what it is.

    How bad: whether the change is not seen at all, then how much is accepted.
    """
    found = []
    for level in curve.levels:
        poor = [head for head, ranking in level.told.items() if _below(ranking)]
        kept = level.accepted.value or 0
        # What is noticed by one answer is noticed.
        if level.lost and (len(poor) == len(level.told) or kept > LENIENT):
            found.append((kept, level, len(poor) == len(level.told)))
    if not found:
        return None
    kept, level, blind = max(found, key=lambda each: each[0])
    where = f" ({level.label})" if len(curve.levels) > 1 else ""
    verb = "cannot be told" if blind else "is often passed over"
    told = "; ".join(f"{head}, {auc_words(ranking)}" for head, ranking in level.told.items())
    before = f"{curve.untouched.accepted.value or 0:.0%}"
    return (blind, kept), (
        f"{capital(curve.title)}{where} {verb}: {share_words(level.accepted)} of the right "
        f"pictures are still accepted (untouched: {before}); {told}."
    )


def _below(ranking: Ranking) -> bool:
    return ranking.auc is not None and (ranking.auc < POOR or (ranking.low or 0) <= 0.5)


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def auc_words(ranking: Ranking) -> str:
    if ranking.auc is None:
        return "AUC not defined"
    return f"AUC {ranking.auc:.2f} ({ranking.low:.2f} to {ranking.high:.2f})"


def share_words(share: Share) -> str:
    if share.value is None:
        return "none"
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


# Tables


_BENIGN = (
    "",
    "strength",
    "fidelity, AUC",
    "falls by",
    "alignment, AUC",
    "falls by",
    "verdicts that flip",
    "right, accepted",
    "wrong, accepted",
)
_DESTROYING = (
    "",
    "strength",
    "pictures",
    "right, still accepted",
    "before",
    "fidelity, untouched against changed, AUC",
    "alignment, untouched against changed, AUC",
)


def _untouched(level: Level) -> list[str]:
    return [
        *(_auc(level.auc.get(head)) for head in HEADS),
        _share(level.accepted),
        _share(level.wrong_accepted),
    ]


def _benign(curve: Curve, level: Level) -> Iterator[str]:
    for head in HEADS:
        yield _auc(level.auc.get(head))
        fall = level.fall.get(head)
        yield f"{fall.value:+.3f} ({fall.low:+.3f} to {fall.high:+.3f})" if fall else "open"
    yield _share(level.flipped)
    yield _share(level.accepted)
    yield _share(level.wrong_accepted)


def _destroying(curve: Curve, level: Level) -> Iterator[str]:
    yield f"{level.n:,}"
    yield _share(level.accepted) + ("" if level.lost else ", nothing held")
    yield _share(curve.untouched.accepted)
    for head in HEADS:
        yield _auc(level.told.get(head)) if head in level.told else level.held[head]


def _rows(
    curves: Sequence[Curve], kind: str, cells: Callable[[Curve, Level], Iterator[str]]
) -> list[list[str]]:
    return [
        [curve.title, level.label, *cells(curve, level)]
        for curve in curves
        if curve.kind == kind
        for level in curve.levels
    ]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _opinions(measured: OpinionsMeasured | None) -> list[str]:
    """Of second opinions, if any are configured."""
    if measured is None:
        return []
    rows = [
        (name, _auc(each.fidelity), _auc(each.alignment)) for name, each in measured.scores.items()
    ]
    unheard = "".join(
        f" {_plain(name)} gave no answer to {count:,}." for name, count in measured.unheard.items()
    )
    usd = measured.usage.usd
    paid = f" They cost {usd:.4f} USD." if usd else ""
    return [
        "## Second opinions",
        f"On the same pictures, untouched.{unheard}{paid}",
        _table(("score", "fidelity, AUC", "alignment, AUC"), rows),
    ]


def _left_out(curve: Curve) -> str:
    return f" Left out: {curve.left_out:,} with nothing to edit." if curve.left_out else ""


def _plain(text: str) -> str:
    """Names of a taxonomy's attributes are text from elsewhere."""
    flat = " ".join(text.split())
    for mark in "|<>[]`*":
        flat = flat.replace(mark, f"\\{mark}")
    return flat


def _auc(ranking: Ranking | None) -> str:
    if ranking is None or ranking.auc is None:
        return "open" if ranking is None else "not defined"
    return f"{ranking.auc:.3f} ({ranking.low:.3f} to {ranking.high:.3f})"


def _share(share: Share) -> str:
    if share.value is None:
        return "none"
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"
