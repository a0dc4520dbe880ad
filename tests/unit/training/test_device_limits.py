"""Peaks by name, and memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen_audio_train.training import device_limits
from qwen_audio_train.training.device_limits import known_peak, peak_tflops, read_peak_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("A100-SXM4-40GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("AMD Instinct MI300X", 1307.0),
        # Namesakes with other peaks.
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_peaks_go_by_the_whole_name(name, peak):
    assert known_peak(name) == peak


def test_a_configured_peak_goes_first_and_a_cpu_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    cuda = torch.device("cuda", 0)
    assert peak_tflops(cuda, None) == 989.0
    assert peak_tflops(cuda, 500.0) == 500.0
    assert peak_tflops(CPU, 0.2) == 0.2
    assert peak_tflops(CPU, None) is None


def test_a_process_remembers_its_largest_size():
    big = np.ones(2**26)  # half a GiB beyond what is resident
    assert big[0] == 1.0
    during = read_peak_memory(CPU)["peak_process_memory_gib"]
    del big
    assert during > 0.5
    # The kernel sums its threads' counters up only roughly.
    assert read_peak_memory(CPU)["peak_process_memory_gib"] == pytest.approx(during, abs=0.02)


def test_memory_is_left_out_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(device_limits, "_PROCESS_STATUS", tmp_path / "nothing")
    assert read_peak_memory(CPU) == {}
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t12 kB\n")
    monkeypatch.setattr(device_limits, "_PROCESS_STATUS", tmp_path / "status")
    assert read_peak_memory(CPU) == {}
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t 1048576 kB\n")
    assert read_peak_memory(CPU) == {"peak_process_memory_gib": 1.0}


def test_on_cuda_each_reading_starts_a_new_peak(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    cuda = torch.device("cuda", 0)
    assert read_peak_memory(cuda) == {"peak_device_memory_gib": 3.0}
    assert reset == [cuda]
