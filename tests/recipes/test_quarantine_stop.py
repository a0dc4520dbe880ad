"""A limit on bad samples that one rank alone has reached stops all ranks: same step, same report, nobody waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from qwen_audio_train.shards.reader import ShardSet
from tests import sets
from tests.ports import free_port
from tests.recipes.test_distributed import ROOT, SETTINGS

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("quarantine_stop")]

WORLD = 2


def damaged_set(folder, number: int):
    """A byte of one sample's clip is flipped."""
    (clip,) = ShardSet.open(sets.pretrain_set(folder)).clips(number)
    with clip.shard_path.open("r+b") as file:
        file.seek(clip.offset_bytes + clip.num_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return folder


def start(folder, rank: int, port: str, *overrides: str) -> subprocess.Popen[str]:
    """A rank by itself: a launcher would end the others as soon as one ends, and hide that they hang."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **ranks, **place, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "recipes/pretrain.py", f"run.dir={folder / 'run'}", "model=tiny"]
    command += [f"model.start_from={folder / 'model'}", f"data.train={folder / 'set'}"]
    command += [f"data.cache_dir={folder / 'cache'}", *SETTINGS, *overrides]
    with (folder / f"rank{rank}.err").open("w") as errors:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


@pytest.mark.parametrize(
    ("limit", "told"),
    [("data.max_bad_consecutive=1", "1 samples in a row"), ("data.max_bad_share=0", "1 of ")],
)
def test_all_ranks_stop_at_the_step_that_one_rank_could_not_read(tmp_path, limit, told):
    model, processor = build_tiny(seed=1)
    save_built(model, processor, tmp_path / "model")
    damaged_set(tmp_path / "set", 15)
    port = str(free_port())
    overrides = [limit, "run.max_steps=10", "batching.llm_tokens_per_bin=128", "batching.bins_per_step=2"]
    processes = [start(tmp_path, rank, port, *overrides) for rank in range(WORLD)]
    deadline = time.monotonic() + 500
    try:
        codes = [process.wait(timeout=max(1.0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    reports = [(tmp_path / f"rank{rank}.err").read_text() for rank in range(WORLD)]
    assert codes == [1, 1], reports
    (bad,) = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert bad["key"] == "p-15"
    for rank, report in enumerate(reports):
        assert f"too many unusable samples: {told}" in report
        assert limit in report
        assert ("'p-15'" in report.rpartition("too many")[2]) == (rank == bad["rank"])
    taken = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in taken if "loss" in line] == list(range(1, bad["step"]))
    assert bad["step"] > 1, "the run had begun"
    assert bad["rank"] == 1, "the rank that keeps the books is stopped by the other"
