"""What a mixture comes to, as aligned text: hours, samples, share, and how often each source will be heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_audio_train.pipeline.measure import Facts

_HEADINGS = ("source", "hours", "samples", "left out", "bad", "share", "epochs")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One source."""

    name: str
    facts: Facts
    share: float
    """Of the drawn samples, 0 to 1."""


def mixture_table(rows: Sequence[TableRow], *, samples_drawn: float, other_stages: Sequence[str]) -> str:
    """A line a source and one for all. ``epochs``: how often the run draws each sample of a source on average.

    Args:
        samples_drawn: over the whole run.
        other_stages: names of sources that are for other stages.
    """
    lines: list[tuple[str, ...]] = [_HEADINGS]
    lines += [_line(row.name, [row.facts], row.share, samples_drawn) for row in rows]
    if len(rows) > 1:
        lines.append(_line("all", [row.facts for row in rows], 1.0, samples_drawn))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    if other_stages:
        text.append(f"for other stages: {', '.join(other_stages)}")
    return "\n".join(text)


def _line(name: str, facts: Sequence[Facts], share: float, samples_drawn: float) -> tuple[str, ...]:
    num_samples = sum(fact.num_samples for fact in facts)
    return (
        name,
        f"{sum(fact.hours for fact in facts):,.2f}",
        f"{num_samples:,}",
        f"{sum(fact.num_filtered for fact in facts):,}",
        f"{sum(fact.num_bad for fact in facts):,}",
        f"{share:.2%}",
        f"{share * samples_drawn / num_samples:,.2f}",
    )
