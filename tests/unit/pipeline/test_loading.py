"""Workers know what they get next, early enough to fetch it, and nothing else changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from torch.utils.data import get_worker_info

from qwen_audio_train.config.load import CONFIG_DIR
from qwen_audio_train.model.load import load_processor
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.pipeline.loading import begin_worker, jobs
from qwen_audio_train.pipeline.quarantine import MicroBatch
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.sources import LocalFolder
from tests import builders

STEPS = 5


class FarFolder:
    """A folder that counts as remote and writes down what is hinted and read, and in which process."""

    def __init__(self, directory: Path, log: Path) -> None:
        self._folder = LocalFolder(directory)
        self.location = str(directory)
        self.log = log

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._folder, name)

    def prefetch(self, ranges):
        worker = get_worker_info()
        self.say(worker and worker.id, "hint", sorted(span for spans in ranges.values() for span in spans))

    def say(self, worker, what, value):
        with self.log.open("a") as file:
            file.write(json.dumps([worker, what, value]) + "\n")


class LoggingBuilder:
    """Builds for real and says when."""

    def __init__(self, builder, far: FarFolder) -> None:
        self._builder = builder
        self._far = far

    def prefetch(self, draws):
        self._far.say(*self._said("will build", draws))
        self._builder.prefetch(draws)

    def build(self, draws):
        self._far.say(*self._said("build", draws))
        return self._builder.build(draws)

    def _said(self, what, draws):
        worker = get_worker_info()
        return worker and worker.id, what, [list(draw) for draw in draws]


@pytest.fixture
def made(workshop, tmp_path, monkeypatch):
    """Batches of a set that counts as remote, and the log of what happens."""
    log = tmp_path / "log.jsonl"
    monkeypatch.setattr(ShardSet, "open", classmethod(lambda cls, path, remote=None: cls(FarFolder(Path(path), log))))
    config = workshop.config("pretrain", tmp_path, "trainable=llm", steps=STEPS)
    batches = stage_batches(config, Front.of(load_processor(str(workshop.folder / "model"))), rank=0, world=1)
    batches.builder = LoggingBuilder(batches.builder, FarFolder(workshop.folder / "pretrain", log))
    assert batches.reads_ahead
    log.write_text("")
    return batches, log


def drawn(planned):
    return [
        list(row) for row in zip(*(c.tolist() for c in (planned.sources, planned.samples, planned.epochs)), strict=True)
    ]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_hint_comes_one_bin_before_the_read_in_the_same_worker(made, workers):
    batches, log = made
    batches.num_workers = workers
    assert len(list(batches.loader())) == len(batches)
    of_worker = defaultdict(list)
    hints = 0
    for worker, what, value in map(json.loads, log.read_text().splitlines()):
        if what == "hint":
            hints += bool(value)
        else:
            of_worker[worker].append((what, value))
    assert set(of_worker) == (set(range(workers)) or {None})
    for events in of_worker.values():
        built = [value for what, value in events if what == "build"]
        expected = []
        for number, value in enumerate(built):
            if number + 1 < len(built):
                expected.append(("will build", built[number + 1]))
            expected.append(("build", value))
        assert events == expected
    assert hints == len(batches) - max(1, workers), "each hint reaches the set"
    everything = [value for events in of_worker.values() for what, value in events if what == "build"]
    assert sorted(everything) == sorted(map(drawn, batches.bins()))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_and_content_are_those_without_hints(made, workers):
    batches, _ = made
    expected = [MicroBatch(batch) for batch in batches.loader()]
    batches.reads_ahead = False
    batches.num_workers = workers
    for one, two in zip(expected, batches.loader(), strict=True):
        assert builders.equal_batches(one, two)


def test_a_resumed_run_is_hinted_alike(made):
    batches, log = made
    position = batches.position(2)
    batches.resume(position)
    list(batches.loader())
    said = [json.loads(line) for line in log.read_text().splitlines()]
    built = [value for _, what, value in said if what == "build"]
    assert built == list(map(drawn, batches.bins()))
    assert [value for _, what, value in said if what == "will build"] == built[1:]


def test_local_sets_plan_nothing_early_and_give_no_hints(workshop, tmp_path):
    config = workshop.config("pretrain", tmp_path, "trainable=llm", steps=STEPS)
    batches = stage_batches(config, Front.of(load_processor(str(workshop.folder / "model"))), rank=0, world=1)
    assert not batches.reads_ahead
    planned = 0

    def counting(self):
        nonlocal planned
        for one in bins(self):
            planned += 1
            yield one

    bins = PlannedBatches.bins
    batches.bins = counting.__get__(batches)
    walk = batches._jobs()
    for number in range(1, 5):
        assert next(walk).following is None
        assert planned == number


def test_kept_encoder_outputs_hint_at_metadata_alone(toy_ranges):
    with_clips, without = toy_ranges
    assert sum(stop - start for start, stop in without) < sum(stop - start for start, stop in with_clips) / 2
    assert set(without) < set(with_clips)


@pytest.fixture
def toy_ranges(workshop, tmp_path):
    log = tmp_path / "log.jsonl"
    shards = ShardSet(FarFolder(workshop.folder / "pretrain", log))
    shards.prefetch([3, 4])
    shards.prefetch([3, 4], with_clips=False)
    return [[tuple(span) for span in json.loads(line)[2]] for line in log.read_text().splitlines()]


@pytest.mark.parametrize(("ahead", "following"), [(1, [1, 2, 3, None]), (2, [2, 3, None, None]), (9, [None] * 4)])
def test_jobs(ahead, following):
    assert [tuple(job) for job in jobs(iter(range(4)), ahead)] == list(zip(range(4), following, strict=True))


ITEMS = """
import os, signal, subprocess, sys, time
from torch.utils.data import DataLoader, Dataset
from qwen_audio_train.pipeline.loading import begin_worker

class Items(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return os.getpid()
"""
WORKERS = (
    ITEMS
    + """
items = iter(DataLoader(Items(), num_workers=2, batch_size=None, worker_init_fn=begin_worker))
workers = {int(next(items)) for _ in range(2)}
assert len(workers) == 2 and os.getpid() not in workers
for name in ("USR1", "INT", "TERM"):
    subprocess.run(["kill", f"-{name}", *map(str, workers)], check=True)
time.sleep(0.3)
assert {int(item) for item in items} == workers
"""
)


def test_workers_outlive_the_signals_that_stop_a_run():
    """As Slurm and terminals send them: to every process of a job."""
    subprocess.run([sys.executable, "-c", WORKERS], check=True, timeout=300)


KILLED = (
    ITEMS
    + """
if __name__ == "__main__":
    loader = DataLoader(
        Items(), num_workers=2, batch_size=None, worker_init_fn=begin_worker, multiprocessing_context=sys.argv[1]
    )
    items = iter(loader)
    print(*{int(next(items)) for _ in range(2)}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
)


@pytest.mark.parametrize("started_by", ["fork", "forkserver", "spawn"])
def test_workers_of_a_run_that_was_killed_end_too(tmp_path, started_by):
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(CONFIG_DIR.parent)}
    # Not a pipe: workers that stay would hold it open.
    with (tmp_path / "said").open("w") as said:
        done = subprocess.run(
            [sys.executable, program, started_by], stdout=said, env=environment, check=False, timeout=300
        )
    assert done.returncode == -signal.SIGKILL
    workers = [int(number) for number in (tmp_path / "said").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 100
    while any(Path(f"/proc/{number}").exists() for number in workers):
        assert time.monotonic() < deadline, "they stay"
        time.sleep(0.1)


HUNG = """
import subprocess, time
from multiprocessing import Event, Process
from qwen_audio_train.pipeline.loading import outlive_signals

def hang():
    outlive_signals()
    hangs.set()
    for _ in range(600):
        time.sleep(0.1)

hangs = Event()
worker = Process(target=hang, daemon=True)
worker.start()
assert hangs.wait(30)
worker.terminate()
time.sleep(0.3)
assert worker.is_alive(), "the first is a scheduler's, for all that we know"
"""


def test_a_worker_that_hangs_does_not_keep_its_run_from_ending():
    """The interpreter terminates and joins children that are left over."""
    subprocess.run([sys.executable, "-c", HUNG], check=True, timeout=300)


def test_a_runs_workers_outlive_signals(made):
    assert made[0].loader().worker_init_fn is begin_worker
