"""What a device could compute, and the memory that was taken of it."""

from __future__ import annotations

from pathlib import Path

import torch

PEAK_TFLOPS = {
    "A100-SXM4-40GB": 312.0,
    "A100-SXM4-80GB": 312.0,
    "A100-PCIE-40GB": 312.0,
    "A100 80GB PCIe": 312.0,
    "H100 80GB HBM3": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200": 989.0,
    "B200": 2250.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "GeForce RTX 4090": 165.0,
    "GeForce RTX 3090": 71.0,
    "Instinct MI300X": 1307.0,
    "Instinct MI300X OAM": 1307.0,
}
"""Dense bf16 TFLOP/s with fp32 accumulation, by the device's name as its driver tells it, without the vendor. These are
the dense figures of the vendors' data sheets (NVIDIA prints most of them with sparsity, twice as high). A name has to
match as a whole: an A10G, a laptop's RTX 4090, an H200 NVL or a slice of a GPU are other devices than their namesakes.
"""
_VENDORS = ("NVIDIA ", "AMD ")
_PROCESS_STATUS = Path("/proc/self/status")
_GIB = 2**30


def peak_tflops(device: torch.device, configured: float | None) -> float | None:
    """Dense bf16 TFLOP/s of one device: ``tracking.peak_tflops``, or by the GPU's name; None where neither tells."""
    if configured is not None:
        return configured
    return known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def known_peak(name: str) -> float | None:
    """Of PEAK_TFLOPS, for a name such as ``NVIDIA H100 80GB HBM3``."""
    for vendor in _VENDORS:
        name = name.removeprefix(vendor)
    return PEAK_TFLOPS.get(name.strip())


def read_peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory by the names of tracking/metrics.py; on CUDA since the last call, which starts a new peak.

    Elsewhere it is the process's largest resident set since it started, and nothing where the system does not tell.
    """
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return {"peak_device_memory_gib": peak_bytes / _GIB}
    resident_bytes = _largest_resident_bytes()
    return {} if resident_bytes is None else {"peak_process_memory_gib": resident_bytes / _GIB}


def _largest_resident_bytes() -> int | None:
    """VmHWM of Linux. (``getrusage`` has such a number too, but a process inherits it from the one that started it.)"""
    if not _PROCESS_STATUS.exists():
        return None
    for line in _PROCESS_STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return None
