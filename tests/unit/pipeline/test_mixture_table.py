"""The table of a mixture, word for word."""

from __future__ import annotations

from qwen_audio_train.pipeline.measure import Facts
from qwen_audio_train.pipeline.mixture_table import TableRow, mixture_table


def facts(num_samples: int, hours: float, **changes: int) -> Facts:
    counts = dict.fromkeys(("num_filtered", "num_bad", "llm_tokens", "supervised_tokens", "encoder_frames"), 0)
    counts |= {"most_llm_tokens": 9, "most_encoder_frames": 9, **changes}
    return Facts(num_samples=num_samples, audio_samples=int(hours * 3600 * 16_000), **counts)


def test_hours_samples_share_and_epochs_of_each_source():
    rows = [
        TableRow("speech", facts(1500, 2.5, num_filtered=20, num_bad=1), 0.75),
        TableRow("text", facts(50, 0), 0.25),
    ]
    assert mixture_table(rows, samples_drawn=2000, other_stages=["chat"]).splitlines() == [
        "source  hours  samples  left out  bad    share  epochs",
        "speech   2.50    1,500        20    1   75.00%    1.00",
        "text     0.00       50         0    0   25.00%   10.00",
        "all      2.50    1,550        20    1  100.00%    1.29",
        "for other stages: chat",
    ]


def test_one_source_needs_no_total():
    assert len(mixture_table([TableRow("train", facts(1, 1), 1.0)], samples_drawn=1, other_stages=[]).splitlines()) == 2
