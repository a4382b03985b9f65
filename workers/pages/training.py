"""The page of a training: one HTML file with its curve, its grids and what it was made of."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.pages.atomic import replacing
from workers.pages.rendering import content_security_policy, environment, inlined

CARD, CURVE, VALIDATION, PROMPTS = "card.json", "curve.json", "validation", "prompts.json"
PROMPT_CHARACTERS = 400  # of each text from elsewhere
GRIDS = 24  # shown of a long training: the first, the last, and others evenly between
DOTS = 400  # of a curve; each stands for the mean of its steps
WIDTH, HEIGHT = 640, 220  # of the plot, in SVG units
AT_LEAST = 1e-9  # the height of a curve that is flat


@dataclass(frozen=True)
class Curve:
    """One loss as an SVG polyline, and its last value."""

    name: str
    points: str
    last: float


@dataclass(frozen=True)
class Plot:
    """The curves of all losses on common axes."""

    curves: list[Curve]
    first: int  # step
    last: int
    low: float
    high: float


@dataclass(frozen=True)
class Grid:
    """What the training drew after a step: data: URIs and the prompts, which all steps share."""

    step: int
    pictures: list[tuple[str, str]]


def write_training_page(folder: Path, to: Path, error: str = "") -> None:
    """Writes the page of the training in a folder, as far as it got, to the file `to`.

    error: why it ended before its time.
    """
    style = inlined("report.css", "training.css")
    card: dict[str, Any] | None = None
    if (folder / CARD).exists():
        card = json.loads((folder / CARD).read_text("utf-8"))
    points = json.loads((folder / CURVE).read_text("utf-8")) if (folder / CURVE).exists() else []
    template = environment(PROMPT_CHARACTERS).get_template("training.html.j2")
    page = template.render(
        name=folder.resolve().name,
        card=card,
        error=error,
        plot=_plot(points),
        grids=[_grid(path) for path in _chosen(folder / VALIDATION)],
        width=WIDTH,
        height=HEIGHT,
        style=style,
        policy=content_security_policy(style),
    )
    with replacing(to) as file:
        file.write(page.encode())


def _plot(points: Sequence[dict[str, Any]]) -> Plot | None:
    """None if there is no step that can be drawn."""
    if not points:
        return None
    size = -(-len(points) // DOTS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    names = sorted(points[-1]["losses"], key=lambda name: (name != "loss", name))
    means = {
        name: [sum(p["losses"][name] for p in chunk) / len(chunk) for chunk in chunks]
        for name in names
    }
    low, high = 0.0, max(max(values) for values in means.values()) + AT_LEAST
    first, last = points[0]["step"], points[-1]["step"]

    def line(values: list[float]) -> str:
        dots = []
        for chunk, value in zip(chunks, values, strict=True):
            middle = (chunk[0]["step"] + chunk[-1]["step"]) / 2
            x = WIDTH * (middle - first) / max(1, last - first)
            dots.append(f"{x:.1f},{HEIGHT * (1 - (value - low) / (high - low)):.1f}")
        return " ".join(dots)

    curves = [Curve(name, line(values), values[-1]) for name, values in means.items()]
    return Plot(curves, first, last, low, high)


def _chosen(folder: Path) -> list[Path]:
    """The grids' folders in the order of their steps, few enough for one page."""
    every = sorted(folder.glob("[0-9]*")) if folder.is_dir() else []
    if len(every) <= GRIDS:
        return every
    return [every[round(n * (len(every) - 1) / (GRIDS - 1))] for n in range(GRIDS)]


def _grid(folder: Path) -> Grid:
    prompts = json.loads((folder / PROMPTS).read_text("utf-8"))["prompts"]
    pictures = []
    for path, prompt in zip(sorted(folder.glob("*.png")), prompts, strict=False):
        uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        pictures.append((uri, prompt))
    return Grid(int(folder.name), pictures)
