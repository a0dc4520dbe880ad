"""A run whose set is on a server takes the same steps as one whose set is in a folder, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.tracking.writer import read_metrics
from tests import sets
from tests.http_server import FileServer, reset, short, status, truncate

STEPS = 6
FAULTS = (status(503), truncate, reset, short, status(429))


@pytest.fixture
def server(workshop) -> Iterator[FileServer]:
    served = FileServer(workshop.folder)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.released.set()
    served.shutdown()
    thread.join()
    served.server_close()


def losses(workshop, run_dir, *overrides: str) -> list[float]:
    config = workshop.config("pretrain", run_dir, "trainable=all", *overrides, steps=STEPS)
    workshop.train("pretrain", config)
    return [line["loss"] for line in read_metrics(run_dir) if "loss" in line]


def served(server: FileServer, folder) -> list[str]:
    return [
        f"data.train={server.url}/pretrain",
        f"data.cache_dir={folder / 'cache'}",  # or lengths that the local run measured would be found
        f"data.remote.cache_dir={folder / 'remote'}",
        "data.remote.block_bytes=4096",
        "data.remote.backoff_seconds=0.01",
        "data.remote.backoff_cap_seconds=0.02",
    ]


def test_losses_equal_those_of_the_folder(workshop, server, tmp_path):
    expected = losses(workshop, tmp_path / "local")
    assert len(expected) == STEPS
    assert len(set(expected)) == STEPS
    assert losses(workshop, tmp_path / "far", *served(server, tmp_path)) == expected
    tars = [path for path, range_, _ in server.requests if path.endswith(".tar") and range_]
    assert len(tars) > 3, "the samples came from the server"
    assert not (tmp_path / "far" / "quarantine.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_fails_now_and_then_changes_nothing(workshop, server, tmp_path, workers):
    expected = losses(workshop, tmp_path / "local")
    asked: set[tuple[str, tuple[int, int]]] = set()
    failed = 0

    def now_and_then(handler, data: bytes) -> bool:
        """Every third range, when it is asked for first: workers that ask in another order leave no range unread."""
        nonlocal failed
        span = handler.span(data)
        if span is None or (handler.path, span) in asked:
            return False
        asked.add((handler.path, span))
        if len(asked) % 3:
            return False
        failed += 1
        return FAULTS[failed % len(FAULTS)](handler, data)

    server.always = now_and_then
    overrides = [*served(server, tmp_path), f"data.num_workers={workers}"]
    assert losses(workshop, tmp_path / "far", *overrides) == expected
    assert failed > len(FAULTS)
    assert not (tmp_path / "far" / "quarantine.jsonl").exists()


def test_what_cannot_be_used_is_told_alike(workshop, server, tmp_path):
    """A clip damaged before it was uploaded: the same empty slot, losses and entry of the list."""
    folder = sets.pretrain_set(workshop.folder / "damaged")
    (clip,) = ShardSet.open(folder).clips(7)
    with clip.shard_path.open("r+b") as file:
        file.seek(clip.offset_bytes + clip.num_bytes // 2)
        file.write(b"XXXX")
    far = [*served(server, tmp_path), f"data.train={server.url}/damaged"]
    runs = {"local": [f"data.train={folder}"], "far": far}
    found = [losses(workshop, tmp_path / name, *overrides) for name, overrides in runs.items()]
    assert found[0] == found[1]
    lists = [(tmp_path / name / "quarantine.jsonl").read_text() for name in runs]
    assert '"p-7"' in lists[0]
    assert lists[0] == lists[1]
