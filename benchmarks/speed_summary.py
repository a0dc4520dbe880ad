"""From repetitions to the named results of benchmarks/training_speed.py, and those as a Markdown table."""

from __future__ import annotations

import statistics
from typing import Any

TITLES = {
    "sft_ratio": "SFT step, audio-seconds/s over stock, times",
    "dpo_ratio": "DPO step, pairs/s over stock, everything trained, times",
    "dpo_frozen_ratio": "DPO step, encoder frozen on both sides, ours with stored reference, times",
    "dpo_frozen_over_trained_ratio": "ours of the line above over stock with everything trained, times",
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
    "dpo_frozen_ratio": {"3": ">= 10", "5": ">= 9", "10": ">= 8"},
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


RATIOS = {
    "sft_ratio": ("sft", "sft"),
    "dpo_ratio": ("dpo", "dpo"),
    "dpo_frozen_ratio": ("dpo_frozen", "dpo_frozen"),
    "dpo_frozen_over_trained_ratio": ("dpo", "dpo_frozen"),
}
"""Kinds of step that stock's and our numbers are of: what one trains with, and what the other does."""
PREDICTED = {
    "llm_padding": 0.0,
    # A clip of 300 or so frames brings one frame of context and half a frame of gap.
    "encoder_padding": 0.005,
    "data_wait": 0.0,
    "row_scaling": 1.0,
}


def summary(raw: dict[str, Any], peak_tflops: float | None) -> dict[str, Any]:
    """Medians over repetitions, by mix; memory of the mix with the worst ratio. ``predicted`` holds the same names.

    Args:
        peak_tflops: of the device, for ``model_flops_utilisation``; None leaves it out.
    """
    measured = {name: _by_mix(raw["steps"], name, "seconds") for name in RATIOS}
    memory = {f"{name}_memory_ratio": _memory(found, "peak_bytes") for name, found in raw["memory"].items()}
    predicted_memory = {
        f"{name}_memory_ratio": _memory(found, "predicted_bytes") for name, found in raw["memory"].items()
    }
    rates = {
        name: {mix: {side: _rates(found, side) for side in ("stock", "our")} for mix, found in mixes.items()}
        for name, mixes in raw["steps"].items()
    }
    return {
        **measured,
        **{name: max(by_mix.values()) for name, by_mix in memory.items()},
        **{f"{name}_by_mix": by_mix for name, by_mix in memory.items()},
        "rates": rates,
        "model_flops_utilisation": peak_tflops
        and {
            name: {mix: sides["our"]["model_tflop_per_second"] / peak_tflops for mix, sides in mixes.items()}
            for name, mixes in rates.items()
        },
        "llm_padding": raw["padding"]["llm_padding"],
        "encoder_padding": raw["padding"]["encoder_padding"],
        "data_wait": raw["data_wait"]["data_wait"],
        "row_scaling": raw["row_scaling"]["row_scaling"],
        "predicted": {
            **{name: _by_mix(raw["steps"], name, "flop") for name in RATIOS},
            **{name: max(by_mix.values()) for name, by_mix in predicted_memory.items()},
            **PREDICTED,
        },
        "predicted_7b": {name: _by_mix(raw["steps"], name, "flop_7b") for name in RATIOS},
    }


def ratios(steps: dict[str, Any], name: str, mix: str, what: str) -> list[float]:
    """Stock over ours of each repetition: both ran the same samples."""
    stock, ours = (steps[kind][mix] for kind in RATIOS[name])
    return [s[f"stock_{what}"] / o[f"our_{what}"] for s, o in zip(stock, ours, strict=True)]


def _by_mix(steps: dict[str, Any], name: str, what: str) -> dict[str, float]:
    return {mix: statistics.median(ratios(steps, name, mix, what)) for mix in steps["sft"]}


def _rates(repetitions: list[dict[str, float]], side: str) -> dict[str, float]:
    """Of one side over all repetitions: operations that are run, and those that the mathematics asks for."""
    seconds = sum(r[f"{side}_seconds"] for r in repetitions)
    return {
        "samples_per_second": sum(r["samples"] for r in repetitions) / seconds,
        "audio_seconds_per_second": sum(r["audio_seconds"] for r in repetitions) / seconds,
        "tflop_per_second": sum(r[f"{side}_flop"] for r in repetitions) / seconds / 1e12,
        "model_tflop_per_second": sum(r["model_flop"] for r in repetitions) / seconds / 1e12,
    }


def _memory(by_mix: dict[str, Any], which: str) -> dict[str, float]:
    return {mix: found[which]["ours"] / found[which]["stock"] for mix, found in by_mix.items()}


def table(result: dict[str, Any]) -> str:
    """All of ``TITLES``, a line a mix where there is one."""
    lines = [HEADER]
    for name, title in TITLES.items():
        measured, predicted, goals = result[name], result["predicted"][name], GOALS.get(name, {})
        if not isinstance(measured, dict):
            lines.append(_line(title, "", goals or "", f"{predicted:.3g}", "", f"{measured:.3g}"))
            continue
        assert isinstance(goals, dict)
        for mix, ratio in measured.items():
            found = ratios(result["raw"]["steps"], name, mix, "seconds")
            spread = f"{ratio:.2f} ({min(found):.2f}-{max(found):.2f})"
            counted = [f"{result[key][name][mix]:.2f}" for key in ("predicted", "predicted_7b")]
            lines.append(_line(title, mix, goals.get(mix, ""), *counted, spread))
    return "\n".join(lines)


def _line(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
