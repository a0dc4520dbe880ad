"""Peaks of tensors, held to allocations of known size."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peak_memory import peak_tensor_bytes, weight_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


def bytes_of(mebibytes: int) -> torch.Tensor:
    return torch.empty(mebibytes * MIB, dtype=torch.uint8)


def test_the_peak_is_what_was_alive_at_once():
    def run() -> None:
        first, second = bytes_of(10), bytes_of(5)
        del first
        third = bytes_of(7)
        del second, third

    assert peak_tensor_bytes(run, CPU) == 15 * MIB


def test_what_was_alive_before_is_not_counted():
    held = bytes_of(20)
    assert peak_tensor_bytes(lambda: bytes_of(4), CPU) == 4 * MIB
    assert peak_tensor_bytes(held.zero_, CPU) == 0


def test_activations_of_a_chain_are_all_alive_when_the_backward_pass_begins():
    start = torch.ones(256, 1024, requires_grad=True)

    def run() -> None:
        hidden = start
        for _ in range(8):
            hidden = hidden.tanh()  # keeps its output: 1 MiB each
        hidden.sum().backward()
        start.grad = None

    # Beside the eight, one or two gradients on their way.
    assert 8 * MIB <= peak_tensor_bytes(run, CPU) <= 11 * MIB


def test_weights_that_two_models_share_count_once():
    one, two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    two.load_state_dict(one.state_dict(), assign=True)
    assert weight_bytes(one) == weight_bytes(one, two) == 4 * 64 * 64
    assert weight_bytes(one, nn.Linear(64, 64, bias=False)) == 2 * 4 * 64 * 64
