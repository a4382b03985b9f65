"""How good a prompter's texts are: coverage of the taxonomy, length, diversity, acceptance.

Everything streams: what is kept of a million prompts is counts, and a sample of a fixed size.
"""

import hashlib
import heapq
import math
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from pipeline.miniature.figures import wilson
from pipeline.taxonomy import Taxonomy
from pipeline.types import DetailedPrompt, Reading, Usage

OTHER = "other"
"""The value that stands for all that the taxonomy does not hold."""

SAMPLE_TEXTS = 2000  # of which distinct-n is taken
SELF_BLEU_TEXTS = 100  # each is compared with every other one: seconds an arm
_OTHER_NAMES = 1000  # that are remembered of an attribute
_OTHER_CHARACTERS = 80  # that are remembered of a name
_TEXTS_PER_BASE = 32  # of which the pairs within a base prompt are taken
_SEED = 20_260_401

_BETWEEN_WORDS = re.compile(r"[\s/\u2013\u2014]+")  # white space, slashes, en and em dashes
_AROUND_WORDS = string.punctuation + "\u2018\u2019\u201c\u201d\u2026\u00ab\u00bb\u00a1\u00bf"

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """In lower case, without the punctuation around them; "close-up" is one word."""
    parts = (part.strip(_AROUND_WORDS) for part in _BETWEEN_WORDS.split(text.lower()))
    return [part for part in parts if part]


def ngrams(tokens: Sequence[str], n: int) -> Iterator[Gram]:
    return (tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


# Coverage


@dataclass(frozen=True)
class Cell:
    """One value of an attribute: how much of it was wanted, and what came."""

    wanted: float  # a share in [0, 1]
    reached: float  # likewise
    count: int

    @property
    def gap(self) -> float:
        return abs(self.reached - self.wanted)


@dataclass(frozen=True)
class Reach:
    """How near prompts came to the wanted distribution of one attribute.

    Few prompts cannot come near many values: hence `by_chance` beside the distance.
    """

    distance: float | None  # total variation, 0 (reached) to 1; None: no prompt has the attribute
    by_chance: float | None  # what as many prompts drawn at random from the target would have
    never_reached: int  # values that are wanted and never came
    counted: int  # prompts that have the attribute
    values: dict[str, Cell]  # in the taxonomy's order; OTHER last, if there is any
    others: dict[str, int]  # names behind OTHER and their counts, the most frequent first


class Coverage:
    """Counts the values of prompts against what a taxonomy wants.

    By "category", "object" and each attribute. A prompt that does not say one (a person's may not)
    is left out of that one's shares. Case does not matter.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._wanted = wanted_shares(taxonomy)
        self._names = {
            attribute: {value.casefold(): value for value in shares}
            for attribute, shares in self._wanted.items()
        }
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in self._wanted}
        self._other_counts: Counter[str] = Counter()
        self._others: dict[str, Counter[str]] = {name: Counter() for name in self._wanted}

    def add(self, prompt: DetailedPrompt) -> None:
        said = {**prompt.attributes, "category": prompt.category}
        for attribute, names in self._names.items():
            if not (name := said.get(attribute, "").strip().casefold()):
                continue
            if value := names.get(name):
                self._counts[attribute][value] += 1
                continue
            self._other_counts[attribute] += 1
            others, name = self._others[attribute], name[:_OTHER_CHARACTERS]
            if name in others or len(others) < _OTHER_NAMES:
                others[name] += 1

    def reach(self) -> dict[str, Reach]:
        """By attribute, "category" and "object" first."""
        return {attribute: self._reach(attribute) for attribute in self._wanted}

    def _reach(self, attribute: str) -> Reach:
        wanted = self._wanted[attribute]
        counts, other = self._counts[attribute], self._other_counts[attribute]
        total = counts.total() + other

        def cell(wanted: float, count: int) -> Cell:
            return Cell(wanted, count / total if total else 0.0, count)

        values = {value: cell(w, counts[value]) for value, w in wanted.items()}
        never = sum(cell.count == 0 for cell in values.values())
        if other:
            values[_free_name(values)] = cell(0.0, other)
        return Reach(
            distance=total_variation(values.values()) if total else None,
            by_chance=variation_by_chance(wanted.values(), total) if total else None,
            never_reached=never,
            counted=total,
            values=values,
            others=dict(self._others[attribute].most_common()),
        )


def wanted_shares(taxonomy: Taxonomy) -> dict[str, dict[str, float]]:
    """The share that is wanted of each value, conditional on nothing; each attribute's sum to 1.

    An object's is the sum over the categories of the category's share times its own within it.
    """
    categories = _normalised({name: each.share for name, each in taxonomy.categories.items()})
    objects = dict.fromkeys(taxonomy.objects, 0.0)
    for name, category in taxonomy.categories.items():
        for thing, share in _normalised(category.objects).items():
            objects[thing] += categories[name] * share
    attributes = {name: _normalised(shares) for name, shares in taxonomy.attributes.items()}
    return {"category": categories, "object": objects, **attributes}


def total_variation(cells: Iterable[Cell]) -> float:
    """Half the sum of the gaps: the share of prompts that would have to change."""
    return sum(cell.gap for cell in cells) / 2


def variation_by_chance(shares: Iterable[float], n: int) -> float:
    """The mean total variation distance between shares and n independent draws from them.

    A prompter that is steered well is below it. Half the sum of each count's mean absolute
    deviation over n, by De Moivre's formula for the binomial, 2 k C(n, k) p^k (1 - p)^(n - k + 1)
    with k = floor(n p) + 1. Source: Diaconis and Zabell 1991.
    """
    return sum(_absolute_deviation(n, p) for p in shares) / (2 * n)


def _absolute_deviation(n: int, p: float) -> float:
    k = math.floor(n * p) + 1
    if k > n:  # all are wanted to be this one
        return 0.0
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return 2 * k * math.exp(ways + k * math.log(p) + (n - k + 1) * math.log1p(-p))


def _normalised(shares: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(shares.values())
    return {value: share / total for value, share in shares.items()}


def _free_name(values: Mapping[str, Cell]) -> str:
    """OTHER, unless the taxonomy has a value of that name."""
    return OTHER if OTHER not in values else f"{OTHER} (not in the taxonomy)"


# Length


@dataclass(frozen=True)
class Spread:
    mean: float
    median: float
    p95: float
    max: int


class Histogram:
    """Whole numbers, by how often each came: exact quantiles without keeping them all."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        self._counts[value] += 1

    def __len__(self) -> int:
        return self._counts.total()

    def spread(self) -> Spread | None:
        """None of nothing."""
        if not self._counts:
            return None
        mean = sum(value * count for value, count in self._counts.items()) / len(self)
        return Spread(mean, self.quantile(0.5), self.quantile(0.95), max(self._counts))

    def quantile(self, q: float) -> float:
        """Linear between the two nearest values, as numpy does by default. q: in [0, 1]."""
        position = q * (len(self) - 1)
        low, high = (self._ranked(rank(position)) for rank in (math.floor, math.ceil))
        return low + (high - low) * (position - math.floor(position))

    def _ranked(self, rank: int) -> int:
        """The value that stands at this place, from 0, when all are sorted."""
        for value in sorted(self._counts):
            rank -= self._counts[value]
            if rank < 0:
                return value
        raise IndexError("rank is beyond the last value")


# Diversity


class TextSample:
    """A random sample of texts, the same for the same prompts in any order.

    Those whose hashed ids are smallest (bottom-k sampling); so the first n of them are a random
    sample too, and arms can be cut to the same number of texts.
    """

    def __init__(self, size: int = SAMPLE_TEXTS, seed: int = _SEED) -> None:
        self._size, self._seed = size, seed
        self._kept: list[tuple[int, str]] = []  # a heap of (-hash, text)

    def add(self, id: str, text: str) -> None:
        hashed = hashlib.sha256(f"{self._seed} {id}".encode()).digest()
        item = (-int.from_bytes(hashed), text)
        if len(self._kept) < self._size:
            heapq.heappush(self._kept, item)
        else:
            heapq.heappushpop(self._kept, item)

    def __len__(self) -> int:
        return len(self._kept)

    def first(self, count: int) -> list[str]:
        return [text for _, text in heapq.nlargest(count, self._kept)]


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Distinct-n: different n-grams over all n-grams; 1 if none comes twice, None of none.

    It falls as texts are added, and as they get longer: compare equal numbers of texts.
    Source: Li et al. 2016, who divide by the number of words instead.
    """
    seen: set[Gram] = set()
    total = 0
    for text in texts:
        grams = list(ngrams(words(text), n))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean BLEU-4 of each text against all others: 1 says they repeat each other, 0 they don't.

    Without smoothing: a text that shares no four words in a row with any other counts as 0. It
    grows with the number of texts. None of fewer than two. Source: Zhu et al. 2018 (Texygen).
    """
    if len(texts) < 2:
        return None
    from torchmetrics.functional.text import bleu_score

    plain = [" ".join(words(text)) for text in texts]
    scores = [
        float(bleu_score([text], [plain[:i] + plain[i + 1 :]], n_gram=4))
        for i, text in enumerate(plain)
    ]
    return math.fsum(scores) / len(scores)


def trigrams(text: str) -> frozenset[Gram]:
    """The set of a text's word trigrams; of a shorter text, the text."""
    tokens = words(text)
    return frozenset(ngrams(tokens, 3)) or frozenset([tuple(tokens)])


def jaccard_distance(one: frozenset[Gram], other: frozenset[Gram]) -> float:
    """0 of equal sets, 1 of sets with nothing in common."""
    return 1 - len(one & other) / len(one | other)


def pairwise_distance(texts: Sequence[str]) -> float | None:
    """The mean Jaccard distance of word trigrams over all pairs; None of fewer than two texts.

    Of many texts a fixed sample is compared: the mean over pairs expects the same.
    """
    if len(texts) > _TEXTS_PER_BASE:
        texts = random.Random(_SEED).sample(texts, _TEXTS_PER_BASE)
    distances = [jaccard_distance(a, b) for a, b in combinations(map(trigrams, texts), 2)]
    return math.fsum(distances) / len(distances) if distances else None


# Acceptance


@dataclass(frozen=True)
class Acceptance:
    """The share of proposals that the verifier accepted, with its 95% interval (Wilson 1927).

    Proposals of one base prompt resemble each other, so that the true interval is wider.
    """

    accepted: int
    judged: int
    share: float
    low: float
    high: float


def acceptance(accepted: int, judged: int) -> Acceptance | None:
    """None if nothing was judged."""
    if not judged:
        return None
    low, high = wilson(accepted, judged)
    return Acceptance(accepted, judged, accepted / judged, low, high)


# All of it


class PromptMetrics:
    """What is measured of prompts as they pass by, one base prompt's at a time."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.base_prompts = self.prompts = 0
        self.coverage = Coverage(taxonomy)
        self.words = Histogram()
        self.tokens: dict[str, Histogram] = {}  # by stage
        self.limits: dict[str, int] = {}  # by stage: the smallest that a prompt was read under
        self.over_budget: Counter[str] = Counter()  # by stage: prompts that are not read whole
        self.cut = self.repeats = 0  # prompts
        self.sample = TextSample()
        self._distances: list[float] = [0.0, 0.0]  # within base prompts: their sum and number

    def add(self, prompts: Sequence[DetailedPrompt]) -> None:
        """The detailed prompts of one base prompt, all at once."""
        self.base_prompts += 1
        for prompt in prompts:
            self.prompts += 1
            self.coverage.add(prompt)
            self.words.add(len(words(prompt.text)))
            self.cut += bool(prompt.cut)
            self.repeats += prompt.repeats
            self.sample.add(prompt.id, prompt.text)
            for stage, reading in prompt.readings.items():
                self._read(stage, reading)
        distance = pairwise_distance([prompt.text for prompt in prompts])
        if distance is not None:
            self._distances[0] += distance
            self._distances[1] += 1

    def _read(self, stage: str, reading: Reading) -> None:
        self.tokens.setdefault(stage, Histogram()).add(reading.tokens)
        self.limits[stage] = min(reading.limit, self.limits.get(stage, reading.limit))
        self.over_budget[stage] += reading.unread > 0

    @property
    def within_base(self) -> float | None:
        """The mean over base prompts of the distance between their descriptions."""
        total, number = self._distances
        return total / number if number else None

    def token_spreads(self) -> dict[str, Spread]:
        """By stage, in alphabetical order."""
        spreads = {stage: self.tokens[stage].spread() for stage in sorted(self.tokens)}
        return {stage: spread for stage, spread in spreads.items() if spread}

    def over_shares(self) -> dict[str, float]:
        """By stage: the share of the prompts that were measured for it which it cannot take."""
        return {stage: self.over_budget[stage] / len(self.tokens[stage]) for stage in self.tokens}


@dataclass(frozen=True)
class Arm:
    """One prompter in a comparison: its figures over the base prompts that all arms have.

    None, or an empty dict, stands for what cannot be said. Shares are in [0, 1].
    """

    name: str
    run: str | None  # None: a person's
    base_prompts: int  # that it has, in common with the others or not
    prompts: int
    words: Spread | None
    tokens: dict[str, Spread]  # by stage
    limits: dict[str, int]  # by stage: tokens
    over_budget: dict[str, float]  # by stage
    cut: float | None
    repeats: float | None
    sampled_texts: int  # as many of each arm, for distinct-n
    distinct: dict[str, float | None]  # "1", "2", "3"
    self_bleu_texts: int
    self_bleu: float | None
    within_base: float | None
    distance: float | None  # to the wanted distributions, the mean over the attributes
    coverage: dict[str, Reach]
    acceptance: Acceptance | None
    usage: Usage | None  # what its prompts cost; None: a person's


def arm(
    name: str,
    run: str | None,
    base_prompts: int,
    metrics: PromptMetrics,
    *,
    sampled_texts: int,
    acceptance: Acceptance | None = None,
    usage: Usage | None = None,
) -> Arm:
    """The figures of one prompter. sampled_texts: how many of its texts diversity is taken of."""
    texts = metrics.sample.first(sampled_texts)
    coverage = metrics.coverage.reach()
    distances = [reach.distance for reach in coverage.values() if reach.distance is not None]
    return Arm(
        name=name,
        run=run,
        base_prompts=base_prompts,
        prompts=metrics.prompts,
        words=metrics.words.spread(),
        tokens=metrics.token_spreads(),
        limits=metrics.limits,
        over_budget=metrics.over_shares(),
        cut=metrics.cut / metrics.prompts if run and metrics.prompts else None,
        repeats=metrics.repeats / metrics.prompts if run and metrics.prompts else None,
        sampled_texts=len(texts),
        distinct={str(n): distinct(texts, n) for n in (1, 2, 3)},
        self_bleu_texts=len(texts[:SELF_BLEU_TEXTS]),
        self_bleu=self_bleu(texts[:SELF_BLEU_TEXTS]),
        within_base=metrics.within_base,
        distance=math.fsum(distances) / len(distances) if distances else None,
        coverage=coverage,
        acceptance=acceptance,
        usage=usage,
    )
