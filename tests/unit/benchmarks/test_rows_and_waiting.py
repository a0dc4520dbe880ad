"""The parts of the training-speed benchmark that run ours alone."""

from __future__ import annotations

import torch

from benchmarks.data_wait import data_wait
from benchmarks.random_model import SIZES
from benchmarks.row_scaling import row_of, row_scaling

CPU = torch.device("cpu")


def test_a_row_is_as_long_as_was_asked():
    for tokens in (600, 5000):
        made = row_of(tokens, SIZES["small"], CPU)
        assert 0.85 * tokens < made.sizes.llm_tokens <= tokens
        assert made.batch["rows"]["input_ids"].shape == (1, made.sizes.llm_tokens)
        assert len(made.numbers) > 2


def test_the_dearest_row_is_compared_with_the_cheapest():
    found = row_scaling(SIZES["small"], CPU, torch.float32, (300, 600), 2, lora=False)
    assert {rows: len(seconds) for rows, seconds in found["seconds_per_token"].items()} == {"300": 2, "600": 2}
    assert found["row_scaling"] >= 1


def test_steps_of_the_real_loader_are_timed():
    found = data_wait(SIZES["small"], CPU, torch.float32, tokens_per_bin=1024, steps=2, lora=False)
    assert len(found["waited_seconds"]) == len(found["step_seconds"]) == 2
    assert all(waited < whole for waited, whole in zip(found["waited_seconds"], found["step_seconds"], strict=True))
    assert found["data_wait"] == sum(found["waited_seconds"]) / sum(found["step_seconds"])
