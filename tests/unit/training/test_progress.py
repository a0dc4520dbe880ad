"""What stands behind the bar."""

from __future__ import annotations

from qwen_audio_train.tracking.metrics import METRIC_NAMES
from qwen_audio_train.training.callbacks.progress import SHOWN, shown


def test_the_bar_is_short_and_shows_what_there_is():
    logs = {
        "loss": 2.34567,
        "audio_seconds_per_second": 812.4,
        "tokens_per_second": 45_210.7,
        "model_flops_utilisation": 0.4512,
        "data_wait_share": 0.0123,
        "peak_device_memory_gib": 61.27,
        "grad_norm": 1.0,
    }
    everything = shown(logs)
    assert everything == {
        "loss": "2.346", "audio": "812s/s", "tok": "45211/s", "mfu": "45%", "wait": "1%", "mem": "61.3G",
    }  # fmt: skip
    assert len(", ".join(f"{name}={value}" for name, value in everything.items())) < 70
    assert shown({"loss": 1.0, "rewards/accuracies": 0.625}) == {"loss": "1.000", "acc": "0.62"}


def test_the_bar_shows_documented_numbers():
    assert {name for name, _ in SHOWN.values()} <= METRIC_NAMES.keys()
