"""The results of benchmarks/training_speed.py as a Markdown table."""

from __future__ import annotations

from typing import Any

TITLES = {
    "sft_ratio": "SFT step, audio-seconds/s over stock, times",
    "dpo_ratio": "DPO step, pairs/s over stock, everything trained, times",
    "dpo_frozen_ratio": "DPO step, encoder frozen on both sides, ours with stored reference, times",
    "dpo_frozen_over_trained_ratio": "the same over stock with everything trained, times",
    "sft_memory_ratio": "peak memory of an SFT step over stock's",
    "dpo_memory_ratio": "peak memory of a DPO step over stock's",
    "dpo_frozen_memory_ratio": "peak memory of a DPO step, encoder frozen, over stock's",
    "encoder_padding": "padding of the encoder",
    "llm_padding": "padding of the language model",
    "data_wait": "data wait, share of step time, 2 workers",
    "row_scaling": "time a token, dearest row over cheapest, 1k to 16k tokens",
}
GOALS: dict[str, str | dict[str, str]] = {
    "sft_ratio": {"3": ">= 4", "5": ">= 3", "10": ">= 2.6"},
    "dpo_ratio": {"3": ">= 7", "5": ">= 6", "10": ">= 4.8"},
    "dpo_frozen_over_trained_ratio": {"3": ">= 10", "5": ">= 9", "10": ">= 8"},
    "sft_memory_ratio": "<= 0.6",
    "dpo_memory_ratio": "<= 0.4",
    "encoder_padding": "<= 0.03",
    "llm_padding": "<= 0.01",
    "data_wait": "<= 0.02",
    "row_scaling": "<= 1.15",
}
HEADER = """\
| measure | clips, mean s | goal | predicted | predicted, 7B | measured (min-max) |
|---|---:|---:|---:|---:|---:|"""


def table(result: dict[str, Any]) -> str:
    """All of ``TITLES``, a line a mix where there is one."""
    lines = [HEADER]
    for name, title in TITLES.items():
        measured, predicted = result[name], result["predicted"].get(name)
        if not isinstance(measured, dict):
            lines.append(_line(title, "", GOALS.get(name, ""), predicted, None, f"{measured:.3g}"))
            continue
        goals, predicted_7b = GOALS.get(name, {}), result["predicted_7b"].get(name, {})
        assert isinstance(goals, dict)
        for mix, ratio in measured.items():
            ratios = _repetitions(result["raw"]["steps"], name, mix)
            spread = f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            counted = None if predicted is None else predicted[mix]
            lines.append(_line(title, mix, goals.get(mix, ""), counted, predicted_7b.get(mix), spread))
    return "\n".join(lines)


def _line(title: str, mix: str, goal: Any, predicted: float | None, predicted_7b: float | None, measured: str) -> str:
    counted = ["" if value is None else f"{value:.3g}" for value in (predicted, predicted_7b)]
    return f"| {title} | {mix} | {goal} | {counted[0]} | {counted[1]} | {measured} |"


def _repetitions(steps: dict[str, Any], name: str, mix: str) -> list[float]:
    ours = steps["dpo_frozen" if name.startswith("dpo_frozen") else name.removesuffix("_ratio")][mix]
    stock = steps["dpo"][mix] if name == "dpo_frozen_over_trained_ratio" else ours
    return [s["stock_seconds"] / o["our_seconds"] for s, o in zip(stock, ours, strict=True)]
