"""Named results from repetitions, and the table of them."""

from __future__ import annotations

import pytest

from benchmarks.speed_summary import GOALS, TITLES, summary, table


def repetition(stock: float, ours: float) -> dict[str, float]:
    return {
        "samples": 4,
        "audio_seconds": 20.0,
        "stock_seconds": stock,
        "our_seconds": ours,
        "stock_flop": 3e12,
        "our_flop": 1e12,
        "stock_flop_7b": 2e15,
        "our_flop_7b": 1e15,
        "model_flop": 0.9e12,
    }


def memory(stock: int, ours: int) -> dict[str, dict[str, int]]:
    return {"peak_bytes": {"stock": stock, "ours": ours}, "predicted_bytes": {"stock": 10, "ours": 5}}


@pytest.fixture
def raw() -> dict:
    return {
        "steps": {
            "sft": {"3": [repetition(8, 2), repetition(9, 3), repetition(50, 10)], "5": [repetition(6, 3)] * 3},
            "dpo": {"3": [repetition(30, 3)] * 3, "5": [repetition(20, 4)] * 3},
            "dpo_frozen": {"3": [repetition(10, 2)] * 3, "5": [repetition(12, 2)] * 3},
        },
        "memory": {name: {"3": memory(100, 30), "5": memory(100, 45)} for name in ("sft", "dpo", "dpo_frozen")},
        "padding": {"llm_padding": 0.0, "encoder_padding": 0.004},
        "data_wait": {"data_wait": 0.001},
        "row_scaling": {"row_scaling": 1.05},
    }


def test_ratios_are_medians_of_repetitions_that_ran_the_same_samples(raw):
    found = summary(raw, 1.0)
    assert found["sft_ratio"] == {"3": 4.0, "5": 2.0}
    assert found["dpo_ratio"] == {"3": 10.0, "5": 5.0}
    assert found["dpo_frozen_ratio"] == {"3": 5.0, "5": 6.0}
    assert found["dpo_frozen_over_trained_ratio"] == {"3": 15.0, "5": 10.0}
    assert found["predicted"]["sft_ratio"] == {"3": 3.0, "5": 3.0}
    assert found["predicted_7b"]["dpo_ratio"]["5"] == 2.0
    assert found["rates"]["dpo"]["3"]["our"] == pytest.approx(
        {
            "samples_per_second": 12 / 9,
            "audio_seconds_per_second": 60 / 9,
            "tflop_per_second": 3 / 9,
            "model_tflop_per_second": 2.7 / 9,
        }
    )
    assert found["model_flops_utilisation"]["dpo"]["3"] == pytest.approx(0.3)
    assert summary(raw, None)["model_flops_utilisation"] is None


def test_memory_is_that_of_the_worst_mix(raw):
    found = summary(raw, 1.0)
    assert found["sft_memory_ratio"] == 0.45
    assert found["dpo_memory_ratio_by_mix"] == {"3": 0.3, "5": 0.45}
    assert found["predicted"]["dpo_memory_ratio"] == 0.5


def test_everything_named_has_a_prediction_and_a_line(raw):
    found = summary(raw, 1.0)
    assert set(TITLES) <= set(found)
    assert set(TITLES) <= set(found["predicted"])
    assert set(GOALS) <= set(TITLES)
    lines = table({**found, "raw": raw}).splitlines()
    # Two lines of head; four ratios of two mixes.
    assert len(lines) == 2 + 4 * 2 + len(TITLES) - 4
    assert "| SFT step, audio-seconds/s over stock, times | 3 | >= 4 | 3.00 | 2.00 | 4.00 (3.00-5.00) |" in lines
