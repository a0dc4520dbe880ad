from __future__ import annotations

import random

import jiwer
import numpy as np
import pytest
import sacrebleu

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.evaluation import metrics
from qwen_audio_train.evaluation.metrics import Unit

REFERENCES = ["the cat sat", "a dog ran away", "no birds", "x"]
HYPOTHESES = ["the cat sat down", "dog ran aways", "", "y x"]


def plain_distance(source: list[str], target: list[str]) -> int:
    grid = [[i + j if i * j == 0 else 0 for j in range(len(target) + 1)] for i in range(len(source) + 1)]
    for i, a in enumerate(source, start=1):
        for j, b in enumerate(target, start=1):
            grid[i][j] = min(grid[i - 1][j] + 1, grid[i][j - 1] + 1, grid[i - 1][j - 1] + (a != b))
    return grid[-1][-1]


@pytest.mark.parametrize("unit", list(Unit))
def test_error_rate_is_a_micro_average_of_plain_distances(unit: Unit) -> None:
    generator = random.Random(3)
    texts = [" ".join(generator.choices(["ab", "b", "abc", "ca"], k=generator.randint(0, 8))) for _ in range(60)]
    references, hypotheses = texts[:30], texts[30:]
    split = str.split if unit is Unit.words else list
    distances = [plain_distance(split(a), split(b)) for a, b in zip(references, hypotheses, strict=True)]
    lengths = [len(split(reference)) for reference in references]
    score = metrics.error_rate(references, hypotheses, "it", unit)
    assert score.edits == tuple(distances)
    assert score.rate == sum(distances) / sum(lengths)
    assert score.rate != pytest.approx(np.mean([d / max(n, 1) for d, n in zip(distances, lengths, strict=True)]))


def test_rates_equal_jiwers() -> None:
    words = metrics.error_rate(REFERENCES, HYPOTHESES, "it", Unit.words)
    characters = metrics.error_rate(REFERENCES, HYPOTHESES, "it", Unit.characters)
    assert words.rate == jiwer.wer(REFERENCES, HYPOTHESES)
    assert characters.rate == jiwer.cer(REFERENCES, HYPOTHESES)


def test_empty_reference_contributes_insertions_only() -> None:
    score = metrics.error_rate(["", "one two"], ["three four", "one two"], "it", Unit.words)
    assert score.rate == 2 / 2
    assert metrics.error_rate(["..."], ["a"], "it", Unit.words).rate is None
    assert metrics.error_rate([], [], "it", Unit.words).rate is None


def test_rates_by_language() -> None:
    rates = metrics.error_rate_by_language(
        ["a b", "第3", "a b", "你好"], ["a b", "第三", "a c", "你好"], ["fr", "zh", "fr", "zh"], Unit.words
    )
    assert {language: score.rate for language, score in rates.items()} == {"fr": 1 / 4, "zh": 1 / 4}
    assert rates["zh"].texts_with_unspoken_digits == 1
    assert rates["fr"].texts_with_unspoken_digits == 0


@pytest.mark.parametrize(("language", "tokeniser"), [("en", "13a"), ("de", "13a"), ("zh", "zh")])
def test_bleu_is_sacrebleus(language: str, tokeniser: str) -> None:
    references = ["The cat sat on the mat, didn't it?", "你好，世界和平与发展。"]
    hypotheses = ["the cat sat on the mat, did it?", "你好，世界和平与进步。"]
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokeniser).score
    assert 0 < expected < 100
    assert metrics.bleu(references, hypotheses, language) == expected
    if language == "zh":
        assert expected != sacrebleu.corpus_bleu(hypotheses, [references], tokenize="13a").score


def test_japanese_bleu_without_its_tokeniser_says_what_to_install() -> None:
    try:
        import MeCab  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"sacrebleu\[ja\]"):
            metrics.bleu(["a"], ["a"], "ja")


def test_chrf_is_sacrebleus() -> None:
    expected = sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert metrics.chrf(REFERENCES, HYPOTHESES) == expected
    assert metrics.chrf([], []) is None
    assert metrics.bleu([], [], "en") is None


@pytest.mark.parametrize(
    ("reference", "response", "right"),
    [
        ("joy", "joy", True),
        ("joy", "  joy", True),
        ("joy", "joy ", False),
        ("joy", "Joy", False),
        ("joy", "", False),
        ("", "", False),
    ],
)
def test_exact_match(reference: str, response: str, right: bool) -> None:
    assert metrics.exact_match_accuracy([reference], [response]) == float(right)


def test_language_identification_and_its_chance() -> None:
    languages = ["en", "en", "fr", "ru"]
    assert metrics.language_id_accuracy(languages, ["en", None, "fr", "en"]) == 0.5
    assert metrics.language_id_chance(languages) == metrics.LanguageIdChance(largest_class=0.5, uniform=1 / 3)
    assert metrics.language_id_chance([]) is None
    with pytest.raises(ValueError, match="4 references and 1 answers"):
        metrics.language_id_accuracy(languages, ["en"])


def test_random_other_reference_is_another_sample_of_the_same_language() -> None:
    references = [f"{language}{index}" for index in range(20) for language in ("en", "fr")] + ["alone"]
    languages = ["en", "fr"] * 20 + ["ru"]
    drawn = metrics.random_other_references(references, languages, seed=1)
    assert drawn[-1] is None
    for reference, other in zip(references[:-1], drawn[:-1], strict=True):
        assert other is not None
        assert other[:2] == reference[:2]
        assert other != reference
    assert drawn == metrics.random_other_references(references, languages, seed=1)
    assert drawn != metrics.random_other_references(references, languages, seed=2)


def test_random_other_reference_error_rates() -> None:
    rates = metrics.random_other_reference_error_rates(
        ["aa", "bb", "cc", "only"], ["fr", "fr", "fr", "ru"], Unit.characters
    )
    assert rates == {"fr": 1.0, "ru": None}


def test_bootstrap_covers_the_mean_and_is_seeded() -> None:
    scores = np.random.default_rng(0).normal(5.0, 1.0, size=400)
    interval = metrics.bootstrap_interval(scores)
    assert interval is not None
    assert interval == metrics.bootstrap_interval(scores)
    assert interval != metrics.bootstrap_interval(scores, seed=1)
    half_width = 1.96 * scores.std() / np.sqrt(400)
    assert interval.low == pytest.approx(scores.mean() - half_width, abs=0.02)
    assert interval.high == pytest.approx(scores.mean() + half_width, abs=0.02)


def test_bootstrap_of_an_error_rate_weighs_by_length() -> None:
    score = metrics.ErrorRate(edits=(0, 90), reference_items=(10, 90))
    interval = score.interval()
    assert interval == metrics.Interval(0.0, 1.0)
    assert metrics.ErrorRate((5, 5), (10, 10)).interval() == metrics.Interval(0.5, 0.5)
    assert metrics.bootstrap_interval([]) is None
    with pytest.raises(ValueError, match="one weight a score"):
        metrics.bootstrap_interval([1.0], [1.0, 2.0])
