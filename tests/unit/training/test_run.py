"""What a run's counters are told before it starts."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from qwen_audio_train.model.load import load_model
from qwen_audio_train.training.run import throughput
from qwen_audio_train.training.runtime import Ranks


@pytest.fixture
def on_cuda(workshop, tmp_path):
    """A trainer as far as its counters look, on a GPU that is not there."""
    config = workshop.config("sft", tmp_path)
    model = load_model(str(config.model.start_from), config.model)
    args = SimpleNamespace(device=torch.device("cuda", 0))
    return SimpleNamespace(model=model, args=args, reference_passes=1), config


def ranks(rank: int) -> Ranks:
    return Ranks(rank=rank, world=4, uses_cpu=False)


def test_the_price_of_a_run(on_cuda, monkeypatch):
    trainer, config = on_cuda
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L40S")
    price = throughput(trainer, config, ranks(0)).price
    assert (price.num_devices, price.peak_tflops, price.flops.reference_passes) == (4, 362.0, 1)


def test_the_first_rank_says_that_a_peak_is_not_known_and_what_to_set(on_cuda, monkeypatch, caplog):
    trainer, config = on_cuda
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A10G")
    with caplog.at_level(logging.WARNING):
        assert throughput(trainer, config, ranks(1)).price.peak_tflops is None
        assert not caplog.text
        assert throughput(trainer, config, ranks(0)).price.peak_tflops is None
    assert "'NVIDIA A10G' is not known" in caplog.text
    assert "tracking.peak_tflops" in caplog.text
