"""What is measured of an arm's pictures beside their verdicts: ground truth, scores, distances.

The pictures are read once for all of these, some at a time. Scores by models are kept in the store
under what gave them, so that a call that was cut off goes on, and a metric that is asked for later
costs no new drawing.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from pipeline.config import OpinionsConfig, VerifierConfig
from pipeline.errors import InputError, ModelError, ServiceError
from pipeline.evaluation.distances import ClipEyes, Distance, Eyes, JudgeEyes, reference_files
from pipeline.evaluation.models import DISTANCES
from pipeline.miniature.judge import Judge, load_judge
from pipeline.miniature.truth import JUDGE, Truth
from pipeline.taxonomy import Taxonomy, load_taxonomy
from pipeline.types import ModelRef, Record, digest
from pipeline.verifier.opinions import freeze_model, load_models
from storage.progress import batches
from storage.runs import RunFolder
from workers.cli.ground_truth import read_pictures, truths
from workers.resources import quiet

AT_ONCE = 64  # pictures in memory together


class Part:
    """Some records of a run, with their pictures, which are read when somebody first asks."""

    def __init__(self, folder: RunFolder, records: Sequence[Record]) -> None:
        self.folder, self.records = folder, records

    @cached_property
    def id(self) -> str:
        return digest([record.id for record in self.records])

    @cached_property
    def pictures(self) -> list[Image | None]:
        """As read_pictures gives them."""
        return read_pictures(self.folder, self.records)

    @property
    def readable(self) -> list[tuple[Record, Image]]:
        return [(r, p) for r, p in zip(self.records, self.pictures, strict=True) if p is not None]


def parts(folder: RunFolder) -> Iterator[Part]:
    """Every record of a run once; the same parts at every call, as far as they have come."""
    for records in batches(folder):
        for first in range(0, len(records), AT_ONCE):
            yield Part(folder, records[first : first + AT_ONCE])


class Scorer:
    """A metric by a model of its own, picture by picture."""

    def __init__(self, name: str, ref: ModelRef, config: VerifierConfig) -> None:
        """config: on which device it runs, and how. Raises ModelError and ServiceError."""
        only_this = config.model_copy(update={"opinions": OpinionsConfig(**{name: ref.name})})
        quiet()
        (self._opinion,) = load_models(only_this, {name: ref})
        self._name, self._key = name, f"{name}-{digest([ref.weights, config.dtype])[:12]}"

    def scores(self, part: Part) -> dict[str, float]:
        """By proposal, of what can be read; measured now unless the store has them."""
        kept = part.folder.read_scores(self._key, part.id)
        if kept is None:
            pictures = [picture for _, picture in part.readable]
            prompts = [record.proposal.prompt.text for record, _ in part.readable]
            heard = self._opinion.hear(pictures, prompts) if pictures else []
            kept = {
                record.id: said.scores[self._name]
                for (record, _), said in zip(part.readable, heard, strict=True)
            }
            part.folder.write_scores(self._key, part.id, kept)
        return kept


@dataclass(frozen=True)
class Measured:
    """A record, and what is known of its picture beside the verdict.

    features: (D,), for distances. lacks: whether something could not be measured of it.
    """

    record: Record
    truth: Truth | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    features: Tensor | None = None
    lacks: bool = False


class Metrics:
    """The further metrics of a comparison. skipped: those that cannot be had, and why, by name."""

    def __init__(
        self,
        models: OpinionsConfig,
        reference: Path | None,
        features: str,
        taxonomy: Taxonomy,
        config: VerifierConfig,
    ) -> None:
        """Look what is there, and load nothing yet.

        models: whose scores are asked for. reference: a folder of pictures. features: a CLIP that
        compares with it; "": the judge, in its world. config: where and how models run.
        Raises InputError for a reference that is none, or that nothing can compare with.
        """
        self.skipped: dict[str, str] = {}
        self.reference: Distance | None = None
        self._config, self._features = config, features
        self._refs: dict[str, ModelRef] = {}
        self._scorers: dict[str, Scorer] = {}
        self._eyes: Eyes | None = None
        self._has_judge = taxonomy == load_taxonomy("miniature")
        self._judge: Judge | None = None
        self._files = reference_files(reference) if reference else []
        for name, model in models.models.items():
            with self._or_skip(name):
                self._refs[name] = freeze_model(name, model)
        if reference and features:
            with self._or_skip(*DISTANCES):
                freeze_model("features", features)
        elif reference and not self._has_judge:
            raise InputError(
                "--reference needs --features MODEL, a CLIP such as openai/clip-vit-base-patch32, "
                "by which pictures are compared"
            )

    @property
    def features_by(self) -> str:
        """Whose features compare with the reference."""
        return self._eyes.name if self._eyes else ""

    def load(self) -> None:
        """Load what is there. Raises InputError for a picture of the reference that is broken."""
        quiet()
        self._judge = load_judge(JUDGE) if self._has_judge else None
        for name, ref in self._refs.items():
            with self._or_skip(name):
                self._scorers[name] = Scorer(name, ref, self._config)
        if self._files and "fid" not in self.skipped:
            with self._or_skip(*DISTANCES):
                eyes = ClipEyes(self._features, self._config) if self._features else JudgeEyes()
                self.reference, self._eyes = Distance.to(self._files, eyes), eyes

    @contextmanager
    def _or_skip(self, *names: str) -> Iterator[None]:
        try:
            yield
        except (ModelError, ServiceError) as error:
            self.skipped |= dict.fromkeys(names, str(error))

    def measure(self, folder: RunFolder, bases: Container[str]) -> Iterator[list[Measured]]:
        """The records of these base prompts, part by part."""
        for part in parts(folder):
            if records := [r for r in part.records if r.proposal.prompt.base in bases]:
                yield self._measured(part, records)

    def _measured(self, part: Part, records: Sequence[Record]) -> list[Measured]:
        truths_of: Mapping[str, Truth] = {}
        if self._judge:
            truths_of = truths(self._judge, part.records, part.pictures)
        scores_of = {name: scorer.scores(part) for name, scorer in self._scorers.items()}
        features_of: Mapping[str, Tensor] = {}
        if self._eyes and part.readable:
            seen = self._eyes.see([picture for _, picture in part.readable])
            features_of = {r.id: row for (r, _), row in zip(part.readable, seen, strict=True)}
        return [
            Measured(
                record,
                truths_of.get(record.id),
                {
                    name: scores[record.id]
                    for name, scores in scores_of.items()
                    if record.id in scores
                },
                features_of.get(record.id),
                lacks=(self._judge is not None and record.id not in truths_of)
                or any(record.id not in scores for scores in scores_of.values())
                or (self._eyes is not None and record.id not in features_of),
            )
            for record in records
        ]
