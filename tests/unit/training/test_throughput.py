"""Rates, shares and means since the last line, by a clock that is set by hand."""

from __future__ import annotations

import pytest
import torch

from qwen_audio_train.model.flops import ModelShape, StepFlops, forward_flops
from qwen_audio_train.samples import BatchSizes
from qwen_audio_train.training.throughput import Price, Throughput

SIZES = BatchSizes(
    supervised_tokens=30,
    llm_tokens=180,
    llm_positions=200,
    llm_attended=9000,
    encoder_frames=90,
    encoder_positions=120,
    encoder_attended=8100,
    audio_tokens=45,
)
SHAPE = ModelShape(80, 32, 2, 64, 32, 2, 32, 16, 64, 400)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def two_steps(throughput: Throughput, clock: Clock) -> dict[str, float]:
    """Four seconds, one of them spent on waiting."""
    throughput.start()
    throughput.step(7.0, SIZES, data_seconds=0.75)
    clock.now += 1.5
    throughput.start()
    throughput.step(9.0, SIZES, data_seconds=0.25)
    clock.now += 2.5
    return throughput.read("pairs")


def test_rates_are_over_the_time_since_the_first_batch_was_asked_for(clock):
    throughput = Throughput(clock=clock)
    clock.now += 50.0  # the library sets itself up
    assert two_steps(throughput, clock) == pytest.approx(
        {
            "pairs": 9.0,
            "audio_seconds_per_second": 2 * 45 * 0.04 / 4,
            "supervised_tokens_per_second": 15.0,
            "tokens_per_second": 90.0,
            "llm_padding": 0.1,
            "encoder_padding": 0.25,
            "step_seconds": 2.0,
            "data_seconds": 0.5,
            "compute_seconds": 1.5,
            "data_wait_share": 0.25,
        }
    )


def test_reading_starts_over(clock):
    throughput = Throughput(clock=clock)
    two_steps(throughput, clock)
    throughput.step(1.0, SIZES, data_seconds=0.0)
    clock.now += 1.0
    values = throughput.read("pairs")
    assert (values["tokens_per_second"], values["data_seconds"], values["step_seconds"]) == (180.0, 0.0, 1.0)


def test_saving_a_checkpoint_slows_no_rate_and_is_told(clock):
    throughput = Throughput(clock=clock)
    plain = two_steps(throughput, clock)
    throughput.saved(30.0)
    clock.now += 30.0
    assert two_steps(throughput, clock) == pytest.approx({**plain, "checkpoint_seconds": 30.0})
    assert "checkpoint_seconds" not in two_steps(throughput, clock)


def test_utilisation_is_of_all_devices_and_left_out_where_the_peak_is_not_known(clock):
    flops = StepFlops(SHAPE, frozenset())
    per_step = sum(products.total for products in forward_flops(SHAPE, SIZES).values()) / 1e12
    values = two_steps(Throughput(Price(flops, num_devices=8, peak_tflops=1e-6), clock=clock), clock)
    assert values["model_tflops_per_second"] == pytest.approx(2 * per_step / 4 / 8)
    assert values["model_flops_utilisation"] == pytest.approx(2 * per_step / 4 / 8 / 1e-6)
    values = two_steps(Throughput(Price(flops, num_devices=8, peak_tflops=None), clock=clock), clock)
    assert values["model_tflops_per_second"] == pytest.approx(2 * per_step / 4 / 8)
    assert "model_flops_utilisation" not in values


def test_padding_of_what_did_not_run_is_left_out(clock):
    throughput = Throughput(clock=clock)
    throughput.start()
    throughput.step(1.0, BatchSizes(llm_tokens=5, llm_positions=5, audio_tokens=3), data_seconds=0.0)
    clock.now += 1.0
    values = throughput.read("supervised_tokens")
    assert values["llm_padding"] == 0.0
    assert "encoder_padding" not in values


def test_memory_is_read_where_the_run_computes(clock):
    values = two_steps(Throughput(device=torch.device("cpu"), clock=clock), clock)
    assert values["peak_process_memory_gib"] > 0.05
    assert "peak_device_memory_gib" not in values


def test_a_steps_sizes_and_the_longest_wait_come_out_of_its_one_sum(workshop, tmp_path, monkeypatch):
    """As on the second of three ranks; the sum over ranks is played."""
    trainer = workshop.trainer("sft", workshop.config("sft", tmp_path))
    trainer.throughput = Throughput()
    bins = [trainer.batches.builder.build([]) for _ in range(2)]
    for batch in bins:
        batch.sizes = SIZES
    unmeasured = dict(bins[0])  # a plain dict knows no sizes and counts nothing
    seen = []

    def reduce(counts: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        seen.append(counts)
        assert [bool(wait) for wait in counts[-3:]] == [False, True, False]
        others = torch.zeros_like(counts)
        others[-3], others[-1] = 2.0, 5.0  # what the other two waited
        return 3 * counts - 2 * counts * (torch.arange(len(counts)) >= len(counts) - 3) + others

    monkeypatch.setattr(trainer.args.__class__, "world_size", property(lambda _: 3))
    monkeypatch.setattr(trainer.args.__class__, "process_index", property(lambda _: 1))
    monkeypatch.setattr(trainer.accelerator, "reduce", reduce)
    batches, _ = trainer.get_batch_samples(iter([*bins, unmeasured]), 3, torch.device("cpu"))
    assert len(batches) == 3
    assert len(seen) == 1, "one collective a step"
    assert trainer.throughput._sizes == SIZES + SIZES + SIZES + SIZES + SIZES + SIZES
    assert trainer.throughput._data_seconds == 5.0
