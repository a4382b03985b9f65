"""The picture of a verifier's card: how far its scores can be believed."""

from pathlib import Path

from pipeline.training.verifier_card import RELIABILITY, VerifierCard
from workers.pages.charts import Diagram, Dot, draw_reliability
from workers.pages.wording import count


def draw_verifier(card: VerifierCard, folder: Path) -> None:
    """Writes RELIABILITY beside the card, which shows it."""
    measured = card.measured
    found = {
        "fidelity": measured.fidelity_reliability,
        "alignment": measured.alignment_reliability,
    }
    diagrams = [
        Diagram(
            name,
            f"expected calibration error {each.ece:.3f}",
            [Dot(place.score, place.share, place.n) for place in each.bins],
        )
        for name, each in found.items()
        if each
    ]
    line = f"{count(measured.n)} pictures of the test part, 15 bins of equal width"
    draw_reliability("Can its scores be believed?", line, diagrams, folder / RELIABILITY)
