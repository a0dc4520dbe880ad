from __future__ import annotations

import pytest

from qwen_audio_train.evaluation.differences import Kind, Span, difference_spans


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("abcd", "abcd", [("same", "abcd")]),
        ("Abcd", "aBcd", [("same", "aBcd")]),
        ("abcd", "abXd", [("same", "ab"), ("wrong", "X"), ("same", "d")]),
        ("abcd", "abcdX", [("same", "abcd"), ("wrong", "X")]),
        ("abcd", "acd", [("same", "a"), ("missing", "b"), ("same", "cd")]),
        ("abcd", "", [("missing", "abcd")]),
        ("", "x", [("wrong", "x")]),
        ("abcdefgh", "xyzaxyz", [("wrong", "xyzaxyz")]),
        ("\u0130stanbul", "istanbul", [("wrong", "i"), ("same", "stanbul")]),  # lower-casing it changes its length
    ],
)
def test_spans(reference: str, answer: str, expected: list[tuple[str, str]]) -> None:
    spans = difference_spans(reference, answer)
    assert spans == [Span(Kind(kind), text) for kind, text in expected]
    assert "".join(span.text for span in spans if span.kind is not Kind.missing) == answer
