"""Scores over a whole set: error rates, translation scores, accuracies, and what guessing would get.

Every function takes the whole set at once because none of these scores is a mean of per-sample scores: an error rate is
all edits over all reference items, BLEU pools its n-gram counts. A score of nothing is None, never 0.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import sacrebleu
from rapidfuzz.distance import Levenshtein

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.evaluation.normalise import characters, has_unspoken_digits, words

REWARD_ACCURACY_CHANCE = 0.5
"""A coin prefers the chosen answer half of the time."""

_RESAMPLES_AT_ONCE = 100


class Unit(Enum):
    """What an error rate counts."""

    words = "words"
    characters = "characters"


@dataclass(frozen=True, slots=True)
class Interval:
    """A bootstrap confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """A micro average: the sum of edits over the sum of reference items. May exceed 1."""

    edits: tuple[int, ...]
    """Per text: Levenshtein distance with unit costs. An empty reference contributes its insertions."""
    reference_items: tuple[int, ...]
    """Per text: words or characters of the normalised reference."""
    texts_with_unspoken_digits: int = 0
    """Chinese pairs with a digit on either side: only there may the original pipeline's rate differ."""

    @property
    def rate(self) -> float | None:
        total = sum(self.reference_items)
        return sum(self.edits) / total if total else None

    def interval(self, *, confidence: float = 0.95, seed: int = 0) -> Interval | None:
        return bootstrap_interval(self.edits, self.reference_items, confidence=confidence, seed=seed)


def error_rate(references: Sequence[str], hypotheses: Sequence[str], language: str, unit: Unit) -> ErrorRate:
    """Error rate of one language after the normalisation of ``normalise.py``."""
    itemise = words if unit is Unit.words else characters
    edits, reference_items, unspoken = [], [], 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        items = itemise(reference, language)
        edits.append(Levenshtein.distance(items, itemise(hypothesis, language)))
        reference_items.append(len(items))
        unspoken += has_unspoken_digits(reference, language) or has_unspoken_digits(hypothesis, language)
    return ErrorRate(tuple(edits), tuple(reference_items), unspoken)


def error_rate_by_language(
    references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str], unit: Unit
) -> dict[str, ErrorRate]:
    """One rate for each language, sorted by code. ``languages[i]`` is the language of text i."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for reference, hypothesis, language in zip(references, hypotheses, languages, strict=True):
        of_references, of_hypotheses = groups.setdefault(language, ([], []))
        of_references.append(reference)
        of_hypotheses.append(hypothesis)
    return {language: error_rate(*groups[language], language, unit) for language in sorted(groups)}


def bleu(references: Sequence[str], hypotheses: Sequence[str], target_language: str) -> float | None:
    """sacrebleu corpus BLEU (0 to 100), one reference, nothing lower-cased or cleaned up.

    The tokeniser follows the target language: ``ja-mecab``, ``zh``, else ``13a``. Raises ConfigError for Japanese where
    the MeCab tokeniser is not installed.
    """
    if not _same_nonzero_length(references, hypotheses):
        return None
    tokeniser = {"ja": "ja-mecab", "zh": "zh"}.get(target_language, "13a")
    try:
        return float(sacrebleu.corpus_bleu(list(hypotheses), [list(references)], tokenize=tokeniser).score)
    except (ImportError, RuntimeError) as error:
        if tokeniser != "ja-mecab":
            raise
        raise ConfigError(
            "evaluation: BLEU into Japanese needs the MeCab tokeniser: pip install 'sacrebleu[ja]'"
        ) from error


def chrf(references: Sequence[str], hypotheses: Sequence[str]) -> float | None:
    """sacrebleu corpus chrF2 (0 to 100): character n-grams to order 6, no word n-grams."""
    if not _same_nonzero_length(references, hypotheses):
        return None
    return float(sacrebleu.corpus_chrf(list(hypotheses), [list(references)]).score)


def exact_match_accuracy(references: Sequence[str], responses: Sequence[str]) -> float | None:
    """Share of responses equal to their label after stripping the left side only; an empty response is wrong.

    Case and trailing characters count, as in Qwen2-Audio's own evaluation of emotions and vocal sounds.
    """
    if not _same_nonzero_length(references, responses):
        return None
    right = sum(
        response.strip() != "" and response.lstrip() == reference
        for reference, response in zip(references, responses, strict=True)
    )
    return right / len(references)


def language_id_accuracy(languages: Sequence[str], answers: Sequence[str | None]) -> float | None:
    """Share of clips whose language was named. None is an answer from which no language could be read: wrong."""
    if not _same_nonzero_length(languages, answers):
        return None
    return sum(said == true for true, said in zip(languages, answers, strict=True)) / len(languages)


@dataclass(frozen=True, slots=True)
class LanguageIdChance:
    """What language identification gets without listening."""

    largest_class: float
    """Always naming the most frequent language of these clips."""
    uniform: float
    """Naming one of the languages at random."""


def language_id_chance(languages: Sequence[str]) -> LanguageIdChance | None:
    counts = Counter(languages)
    if not counts:
        return None
    return LanguageIdChance(max(counts.values()) / counts.total(), 1 / len(counts))


def random_other_references(
    references: Sequence[str], groups: Sequence[Hashable], *, seed: int = 0
) -> list[str | None]:
    """For each text the reference of another, randomly drawn sample of its group; None where it is alone.

    The answer of a model that has learned the language and its usual sentences but does not listen. Scored with the
    same functions as the model's, it is the 'chance' level of an error rate, BLEU or chrF.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    generator = random.Random(seed)
    drawn: list[str | None] = []
    for index, (_, group) in enumerate(zip(references, groups, strict=True)):
        others = [other for other in members[group] if other != index]
        drawn.append(references[generator.choice(others)] if others else None)
    return drawn


def random_other_reference_error_rates(
    references: Sequence[str], languages: Sequence[str], unit: Unit, *, seed: int = 0
) -> dict[str, float | None]:
    """Error rate by language of answering with a random other reference of the same language."""
    drawn = random_other_references(references, languages, seed=seed)
    kept = [index for index, text in enumerate(drawn) if text is not None]
    rates: Mapping[str, ErrorRate] = error_rate_by_language(
        [references[index] for index in kept],
        [drawn[index] or "" for index in kept],
        [languages[index] for index in kept],
        unit,
    )
    return {language: rates[language].rate if language in rates else None for language in sorted(set(languages))}


def bootstrap_interval(
    scores: Sequence[float] | npt.NDArray[np.floating],
    weights: Sequence[float] | npt.NDArray[np.floating] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap over samples of sum(scores) / sum(weights); weights of 1 give the mean.

    Edits with their reference items give the interval of an error rate. None where there is nothing to resample.
    """
    numerators = np.asarray(scores, dtype=np.float64)
    denominators = np.ones_like(numerators) if weights is None else np.asarray(weights, dtype=np.float64)
    if numerators.shape != denominators.shape or numerators.ndim != 1:
        raise ValueError(f"one weight a score: got shapes {numerators.shape} and {denominators.shape}")
    if len(numerators) == 0 or denominators.sum() == 0:
        return None
    generator = np.random.default_rng(seed)
    num_samples = len(numerators)
    equal_shares = np.full(num_samples, 1 / num_samples)
    ratios: list[npt.NDArray[np.float64]] = []
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        draws = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        counts = generator.multinomial(num_samples, equal_shares, size=draws)
        totals = counts @ denominators
        drawn_something = totals > 0
        ratios.append((counts @ numerators)[drawn_something] / totals[drawn_something])
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), (tail, 1 - tail))
    return Interval(float(low), float(high))


def _same_nonzero_length(references: Sequence[object], answers: Sequence[object]) -> bool:
    if len(references) != len(answers):
        raise ValueError(f"one answer a reference: got {len(references)} references and {len(answers)} answers")
    return len(references) > 0
