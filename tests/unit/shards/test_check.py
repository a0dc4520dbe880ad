from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.shards.check import check_set
from qwen_audio_train.shards.index import HEADER, SAMPLE_DTYPE, index_path
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.set_index import CLIP_DTYPE as SET_CLIP_DTYPE
from qwen_audio_train.shards.set_index import HEADER_BYTES, SET_INDEX_FILE, SetIndexWriter, open_set_index
from qwen_audio_train.shards.set_index import SAMPLE_DTYPE as SET_SAMPLE_DTYPE
from qwen_audio_train.shards.writer import EncodedClip, ShardWriter
from scripts.check_shards import main
from tests.unit.shards.conftest import flac, pretrain, write_toy_set
from tests.unit.shards.test_reader import corrupt


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_a_sound_set(toy_set: ShardSet, workers: int) -> None:
    report = check_set(toy_set.directory, workers=workers)
    assert report.findings == []
    assert (report.num_shards, report.num_samples, report.num_clips) == (2, 6, 7)
    assert report.seconds == pytest.approx(13007 / 16000)


@pytest.mark.parametrize("workers", [0, 2])
def test_names_every_bad_sample_and_goes_on(toy_set: ShardSet, workers: int) -> None:
    corrupt(toy_set, 1, 500)
    corrupt(toy_set, 3, 500)
    corrupt(toy_set, 5, 700)
    report = check_set(toy_set.directory, workers=workers)
    bad = [(finding.dataset, finding.shard, finding.key) for finding in report.errors if "checksum" in finding.reason]
    shards = ["toy-000000.tar", "toy-000001.tar"]
    assert bad == [("toy", shards[0], "en/clip_1"), ("toy", shards[0], "en/clip_3"), ("toy", shards[1], "pair")]
    assert [finding.shard for finding in report.errors if finding.reason.startswith("sha256")] == shards
    assert report.num_samples == 6


def test_decodes_what_has_a_right_checksum(tmp_path: Path) -> None:
    """A set written with wrong lengths by another tool: every checksum is right, the length is not."""
    clip = EncodedClip.measure(flac(1000), "flac")
    with ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0") as writer:
        writer.write("lie", [dataclasses.replace(clip, num_samples=1001)], pretrain())
    (finding,) = check_set(tmp_path).findings
    assert finding.reason == "clip has 1000 samples at 16 kHz, its metadata says 1001"


def test_silence_and_stray_files_are_warnings(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0") as writer:
        writer.write("quiet", [(encode_flac(np.zeros(1600, np.float32)), "flac")], pretrain())
        writer.write("loud", [(flac(1600), "flac")], pretrain())
    (tmp_path / "x.tar.tmp").write_bytes(b"")
    report = check_set(tmp_path)
    assert report.errors == []
    assert [(warning.key, warning.reason.split(":")[0]) for warning in report.warnings] == [
        ("quiet", "silence"),
        ("", "left over from a writing that was stopped"),
    ]
    assert main([str(tmp_path), "--workers", "0"]) == 0


def test_a_shard_that_is_cut_does_not_hide_the_others(toy_set: ShardSet) -> None:
    path = toy_set.directory / "toy-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    corrupt_second = ShardSet.open(write_toy_set(toy_set.directory.parent / "other"))
    corrupt(corrupt_second, 5, 700)
    (corrupt_second.directory / "toy-000001.tar").replace(toy_set.directory / "toy-000001.tar")
    report = check_set(toy_set.directory)
    assert any("cut off" in finding.reason for finding in report.errors)
    assert any(finding.key == "pair" for finding in report.errors)


def test_an_index_that_points_elsewhere_is_found(toy_set: ShardSet) -> None:
    """Sound in itself and of this tar, but with a clip's place off by one."""
    path = index_path(toy_set.directory / "toy-000000.tar")
    raw = bytearray(path.read_bytes())
    raw[HEADER.size + 4 * SAMPLE_DTYPE.itemsize] += 1
    raw[HEADER.size - 8 : HEADER.size] = hashlib.blake2b(raw[HEADER.size :], digest_size=8).digest()
    path.write_bytes(raw)
    (finding,) = check_set(toy_set.directory).errors
    assert finding.reason.startswith("index and tar disagree")


TABLES = ("shards", "first_clip", "clip_samples", "samples", "clips")


def table_spans(directory: Path) -> dict[str, tuple[int, int]]:
    """First byte and size of each table in dataset.idx."""
    path = directory / SET_INDEX_FILE
    raw = np.memmap(path, np.uint8, "r")
    tables = open_set_index(path, (directory / "dataset.json").read_bytes(), "here").tables
    sizes = [getattr(tables, name).nbytes for name in TABLES]
    starts, start = [], HEADER_BYTES
    for size in sizes:
        starts.append(start)
        start = -(-(start + size) // 8) * 8
    assert starts[-1] + sizes[-1] == len(raw)
    return {name: (start, size) for name, start, size in zip(TABLES, starts, sizes, strict=True)}


@pytest.mark.parametrize("name", ["header", *TABLES])
def test_a_flipped_byte_in_any_table_of_the_packed_index_is_found(toy_set: ShardSet, name: str) -> None:
    path = toy_set.directory / SET_INDEX_FILE
    whole = path.read_bytes()
    start, size = (0, HEADER_BYTES) if name == "header" else table_spans(toy_set.directory)[name]
    for position in range(start, start + size, 7):
        raw = bytearray(whole)
        raw[position] ^= 4
        path.write_bytes(raw)
        errors = check_set(toy_set.directory).errors
        assert errors, position
        assert all("dataset.idx" in finding.reason for finding in errors)


FIELDS = [("first_clip", ""), ("clip_samples", ""), *(("samples", n) for n in SET_SAMPLE_DTYPE.names if n != "unused")]
FIELDS += [("clips", n) for n in SET_CLIP_DTYPE.names] + [("shards", "tar_bytes"), ("shards", "edges")]


@pytest.mark.parametrize(("table", "field"), FIELDS)
def test_a_packed_index_that_is_sound_in_itself_is_compared_with_the_tar(
    toy_set: ShardSet, table: str, field: str
) -> None:
    """Every checksum of the file is right, as if another program had written it."""
    path, raw_description = toy_set.directory / SET_INDEX_FILE, (toy_set.directory / "dataset.json").read_bytes()
    tables = open_set_index(path, raw_description, "here").tables
    writer = SetIndexWriter(path, num_shards=2, num_samples=6, num_clips=7)
    for number in range(2):
        (first, last), (first_clip, last_clip) = tables.bounds(number)
        row = tables.shards[number]
        given = {
            "tar_bytes": int(row["tar_bytes"]),
            "edges": row["edges"].tobytes(),
            "num_clips": np.diff(tables.first_clip[first : last + 1]),
            "clip_samples": tables.clip_samples[first_clip:last_clip].copy(),
            "samples": tables.samples[first:last].copy(),
            "clips": tables.clips[first_clip:last_clip].copy(),
        }
        if number == 1:
            if table == "shards":
                given[field] = given[field] + 1 if field == "tar_bytes" else given[field][::-1]
            elif table == "first_clip":
                given["num_clips"] = given["num_clips"][::-1].copy()
            elif field:
                given[table][field][0] ^= 1
            else:
                given[table][0] ^= 1
        writer.add(**given)
    writer.publish(raw_description)
    (finding,) = check_set(toy_set.directory).errors
    assert finding.shard == "toy-000001.tar"
    assert finding.reason.startswith("dataset.idx ")


def test_a_letter_of_the_metadata_that_changed_is_found(toy_set: ShardSet) -> None:
    path = toy_set.directory / "toy-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"text 1", b"text 9"))
    assert [finding.reason.split(";")[0] for finding in check_set(toy_set.directory).errors if not finding.key][:2] == [
        "index and tar disagree",
        "dataset.idx and tar disagree",
    ]


def test_one_sample_of_bad_metadata_does_not_accuse_the_index(tmp_path: Path) -> None:
    directory = write_toy_set(tmp_path / "toy", num_samples=12, samples_per_shard=12)
    path = directory / "toy-000000.tar"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"text":"text 4"', b'"texx":"text 4"'))
    assert path.read_bytes() != raw
    errors = check_set(directory).errors
    assert [finding.key for finding in errors if finding.key] == ["en/clip_4"]
    assert not [finding for finding in errors if "disagree" in finding.reason]


def test_limit_and_json(toy_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corrupt(toy_set, 5, 700)
    findings = tmp_path / "findings.json"
    assert main([str(toy_set.directory), "--limit", "5", "--workers", "0"]) == 0
    assert "0 errors, 0 warnings in 2 shards, 5 keys" in capsys.readouterr().out
    assert main([str(toy_set.directory), "--workers", "0", "--json", str(findings)]) == 1
    (report,) = json.loads(findings.read_text())
    assert (report["errors"], report["warnings"], report["num_samples"]) == (2, 0, 6)
    assert {"level", "dataset", "shard", "key", "reason"} == set(report["findings"][0])


def test_a_folder_without_a_set(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--workers", "0"]) == 1
