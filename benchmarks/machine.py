"""Where and with what a benchmark ran: what its JSON says beside its figures."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(packages: Iterable[str], **more: Any) -> dict[str, Any]:
    """Date, processor and versions; ``more`` is of the machine too."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpus = sorted({line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")})
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpus, "cores": os.cpu_count(), "system": platform.platform(), **more},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
