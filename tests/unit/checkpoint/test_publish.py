"""A folder is whole or absent."""

from __future__ import annotations

import json
import logging

import pytest

from qwen_audio_train.checkpoint import publish
from qwen_audio_train.errors import CheckpointError


def stage_step(folder, step, text="weights"):
    staged = publish.staging_folder(folder, step) / f"checkpoint-{step}"
    (staged / "inner").mkdir(parents=True)
    (staged / "model.bin").write_text(text)
    (staged / "inner" / "state.json").write_text("{}")
    return staged


def publish_step(folder, step, text="weights"):
    target = folder / f"checkpoint-{step}"
    publish.publish(stage_step(folder, step, text), target)
    return target


def test_publishing_lists_every_file_and_leaves_nothing_staged(tmp_path):
    target = publish_step(tmp_path, 5)
    files = json.loads((target / publish.MANIFEST).read_text())["files"]
    assert set(files) == {"model.bin", "inner/state.json"}
    assert files["model.bin"]["bytes"] == 7
    publish.verify(target)
    assert not (publish.staging_folder(tmp_path, 5) / "checkpoint-5").exists()


def test_publishing_again_replaces(tmp_path):
    publish_step(tmp_path, 5)
    target = publish_step(tmp_path, 5, "others!")
    assert (target / "model.bin").read_text() == "others!"
    publish.verify(target)


def damage_flip(target):
    (target / "model.bin").write_text("weighty")


def damage_cut(target):
    (target / "model.bin").write_text("weigh")


def damage_remove(target):
    (target / "inner" / "state.json").unlink()


def damage_manifest(target):
    (target / publish.MANIFEST).unlink()


def damage_manifest_text(target):
    (target / publish.MANIFEST).write_text('{"files": ')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_flip, "the bytes of model.bin differ"),
        (damage_cut, "model.bin is missing or has another size"),
        (damage_remove, r"inner/state\.json is missing"),
        (damage_manifest, "never finished; delete it"),
        (damage_manifest_text, r"manifest\.json is not readable"),
    ],
)
def test_damage_is_named_and_an_older_checkpoint_taken(tmp_path, caplog, damage, says):
    older, newer = publish_step(tmp_path, 9), publish_step(tmp_path, 10)
    assert publish.newest_whole(tmp_path) == newer, "by number, not by name"
    damage(newer)
    with pytest.raises(CheckpointError, match=says):
        publish.verify(newer)
    with caplog.at_level(logging.WARNING):
        assert publish.newest_whole(tmp_path) == older
    assert f"Passing over {newer}" in caplog.text


def test_there_may_be_no_checkpoint(tmp_path):
    assert publish.newest_whole(tmp_path / "none") is None
    stage_step(tmp_path, 3)
    (tmp_path / "checkpoint-of-mine").mkdir()
    assert publish.newest_whole(tmp_path) is None


def test_retaining_keeps_the_newest_and_sweeps_unfinished_writes(tmp_path):
    for step in (8, 9, 10, 11):
        publish_step(tmp_path, step)
    stage_step(tmp_path, 12)
    (tmp_path / "notes.txt").write_text("mine")
    publish.retain(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11", "notes.txt"]


def test_a_kill_while_writing_leaves_no_checkpoint(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        publish_step(tmp_path, 4)
    assert publish.newest_whole(tmp_path) is None
