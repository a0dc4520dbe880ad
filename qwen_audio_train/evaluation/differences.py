"""Where an answer departs from its reference, character by character, for a reader's eye."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rapidfuzz.distance import Levenshtein

_MIN_SIMILARITY = 0.4


class Kind(Enum):
    same = "same"
    wrong = "wrong"
    """In the answer, in place of something else or added."""
    missing = "missing"
    """In the reference only."""


@dataclass(frozen=True, slots=True)
class Span:
    kind: Kind
    text: str


def difference_spans(reference: str, answer: str) -> list[Span]:
    """A cheapest way from reference to answer. Case is ignored; spans that are not ``missing`` spell the answer.

    An answer that has next to nothing of the reference is one wrong span: chance agreements would only be confetti.
    """
    source, target = [c.lower() for c in reference], [c.lower() for c in answer]
    if answer and Levenshtein.normalized_similarity(source, target) < _MIN_SIMILARITY:
        return [Span(Kind.wrong, answer)]
    steps = Levenshtein.opcodes(source, target)
    spans = []
    for step in steps:
        if step.tag == "delete":
            spans.append(Span(Kind.missing, reference[step.src_start : step.src_end]))
        else:
            kind = Kind.same if step.tag == "equal" else Kind.wrong
            spans.append(Span(kind, answer[step.dest_start : step.dest_end]))
    return spans
