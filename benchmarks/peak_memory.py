"""The most bytes of tensors that are alive at once while something runs.

On CUDA the allocator counts. On the CPU it does not, but it reports every allocation to torch's profiler: their running
sum has a largest value. Resident memory would not do: freed pages stay with the process, and it holds the code too.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def peak_tensor_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Beyond what was alive before, which ``run`` must leave alive: the CPU's profiler would not see it go."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    found = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [
        (event.start_ns(), event.nbytes())
        for event in found
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    changes.sort(key=lambda change: change[0])
    return max(accumulate((size for _, size in changes), initial=0))


def weight_bytes(*models: torch.nn.Module) -> int:
    """Of all parameters and buffers, a storage that several name counted once."""
    storages = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
