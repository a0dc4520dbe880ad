from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_audio_train.shards.check import check_set
from qwen_audio_train.shards.metadata import payload_of
from qwen_audio_train.shards.reader import ShardSet
from scripts.reshard import main
from tests.unit.shards.conftest import write_toy_set
from tests.unit.shards.test_reader import corrupt


def contents(directory: Path) -> dict[str, object]:
    shards = ShardSet.open(directory)
    records = [shards.record(i) for i in range(len(shards))]
    return {
        record.origin.key: (payload_of(record), [shards.read_clip_bytes(clip, record.origin) for clip in record.clips])
        for record in records
    }


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--workers", "0"])


def test_another_size_keeps_every_sample_and_all_its_metadata(toy_set: ShardSet, tmp_path: Path) -> None:
    assert run(toy_set.directory, "--output", tmp_path / "new", "--samples-per-shard", 2) == 0
    assert contents(tmp_path / "new") == contents(toy_set.directory)
    new = ShardSet.open(tmp_path / "new")
    assert len(new.description["shards"]) == 3
    assert new.description["recipe"]["resharded_from"] == [{"name": "toy", "fingerprint": toy_set.fingerprint}]
    assert check_set(tmp_path / "new").findings == []


def test_a_shuffle_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    orders = []
    for samples_per_shard in (2, 5):
        source = write_toy_set(tmp_path / f"toy{samples_per_shard}", 12, samples_per_shard)
        assert run(source, "--output", tmp_path / f"new{samples_per_shard}", "--shuffle-seed", 3) == 0
        orders.append(list(contents(tmp_path / f"new{samples_per_shard}")))
    assert orders[0] == orders[1] != list(contents(source))
    assert sorted(orders[0]) == sorted(contents(source))


def test_leaves_out_what_is_listed_and_what_is_bad(toy_set: ShardSet, tmp_path: Path) -> None:
    corrupt(toy_set, 2, 500)
    quarantine = tmp_path / "quarantine.jsonl"
    entry = {"dataset": "toy", "shard": "toy-000000.tar", "key": "en/clip_1", "reason": "noise", "step": 4}
    quarantine.write_text(json.dumps(entry) + "\n" + json.dumps({**entry, "dataset": "x", "key": "pair"}) + "\n")
    assert run(toy_set.directory, "--output", tmp_path / "new", "--drop", quarantine) == 0
    assert list(contents(tmp_path / "new")) == ["en/clip_0", "en/clip_3", "chat", "pair"]
    lines = [json.loads(line) for line in (tmp_path / "new" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"].split(" ")[0]) for line in lines] == [
        ("en/clip_1", "dropped:"),
        ("en/clip_2", "checksum"),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--tasks", "transcribe"], 4), (["--languages", "en"], 4), (["--tasks", "transcribe", "--languages", "de"], 0)],
)
def test_filters(toy_set: ShardSet, tmp_path: Path, arguments: list[str], expected: int) -> None:
    assert run(toy_set.directory, "--output", tmp_path / "new", *arguments) == (0 if expected else 1)
    if expected:
        assert len(contents(tmp_path / "new")) == expected


def test_keys_file_and_resuming(toy_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("pair\nen/clip_3\n")
    arguments = (toy_set.directory, "--output", tmp_path / "new", "--keys", tmp_path / "keys")
    assert run(*arguments) == 0
    assert list(contents(tmp_path / "new")) == ["en/clip_3", "pair"]
    assert run(*arguments) == 0
    assert run(*arguments, "--shuffle-seed", 1) == 1
    assert "prepared from other inputs or options" in capsys.readouterr().err


def test_refuses_sources_with_a_key_in_common(toy_set: ShardSet, tmp_path: Path) -> None:
    other = write_toy_set(tmp_path / "other")
    assert run(toy_set.directory, other, "--output", tmp_path / "new") == 1
