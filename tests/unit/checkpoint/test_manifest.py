"""The list of a published folder vouches for the files, and for itself."""

from __future__ import annotations

import json

import pytest

from qwen_audio_train.checkpoint import manifest
from qwen_audio_train.checkpoint.manifest import Manifest
from qwen_audio_train.errors import CheckpointError

FACTS = {"step": 5, "world": 2, "zero_stage": 2}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(b"weights")
    (tmp_path / "inner" / "b.bin").write_bytes(b"")
    manifest.write(tmp_path, Manifest(manifest.flushed_entries(tmp_path, manifest.names_in(tmp_path)), FACTS))
    return tmp_path


def test_it_reads_back_what_was_written(folder):
    found = manifest.verify(folder)
    assert found.facts == FACTS
    assert set(found.files) == {"a.bin", "inner/b.bin"}


def test_a_flipped_bit_anywhere_in_it_is_noticed(folder):
    path = folder / manifest.MANIFEST
    content = path.read_bytes()
    noticed = 0
    for number in range(len(content)):
        path.write_bytes(content[:number] + bytes([content[number] ^ 1]) + content[number + 1 :])
        try:
            assert manifest.verify(folder).facts == FACTS, number
        except CheckpointError:
            noticed += 1
    # White space may change without changing what is said.
    assert noticed >= len(content) - sum(content.count(white) for white in (b" ", b"\n"))


def test_facts_without_a_digest_are_refused(folder):
    path = folder / manifest.MANIFEST
    content = json.loads(path.read_text())
    del content["digest"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="differs from its own digest"):
        manifest.read(folder)


def test_a_folder_of_an_earlier_version_has_neither(folder):
    path = folder / manifest.MANIFEST
    path.write_text(json.dumps({"files": json.loads(path.read_text())["files"]}))
    assert manifest.verify(folder).facts == {}
