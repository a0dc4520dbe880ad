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


def test_every_nth_is_kept_for_good_and_what_just_came_out_always(tmp_path):
    for step in range(2, 22, 2):
        publish_step(tmp_path, step)
    publish.retain(tmp_path, 1, keep_every_steps=8, newest=tmp_path / "checkpoint-20")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-16", "checkpoint-20", "checkpoint-8"]


def test_a_damaged_later_checkpoint_takes_no_place_of_a_whole_one(tmp_path):
    """A run that passed over checkpoint 6 and saved step 4: with keep_last=1, deleting 4 would leave nothing."""
    for step in (2, 4, 6):
        publish_step(tmp_path, step)
    damage_flip(tmp_path / "checkpoint-6")
    publish.retain(tmp_path, 1, newest=tmp_path / "checkpoint-4")
    assert publish.newest_whole(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-2").exists()


def test_what_a_kill_between_two_renames_left_aside_is_taken_back(tmp_path):
    target = publish_step(tmp_path, 5)
    target.rename(tmp_path / ".replaced-checkpoint-5")
    assert publish.newest_whole(tmp_path) is None
    publish.recover(tmp_path)
    assert publish.newest_whole(tmp_path) == target


def test_a_rename_that_fails_leaves_the_former_one(tmp_path, monkeypatch):
    target = publish_step(tmp_path, 5)
    staged = stage_step(tmp_path, 5, "others!")
    replace = publish.os.replace

    def failing(source, goal):
        if source == staged:
            raise OSError("no")
        replace(source, goal)

    monkeypatch.setattr(publish.os, "replace", failing)
    with pytest.raises(OSError, match="no"):
        publish.publish(staged, target)
    assert (target / "model.bin").read_text() == "weights"
    publish.verify(target)


def test_a_pointer_that_lies_or_lacks_does_not_decide(tmp_path, caplog):
    older, newer = publish_step(tmp_path, 1), publish_step(tmp_path, 2)
    publish.point_latest(newer)
    with caplog.at_level(logging.WARNING):
        assert publish.newest_whole(tmp_path) == newer
    assert caplog.text == ""
    publish.point_latest(older)
    assert publish.newest_whole(tmp_path) == newer
    assert "latest says 'checkpoint-1'" in caplog.text
    (tmp_path / publish.LATEST).unlink()
    assert publish.newest_whole(tmp_path) == newer
    assert "latest says 'nothing'" in caplog.text


def test_a_renamed_checkpoint_is_passed_over(tmp_path, caplog):
    target = tmp_path / "checkpoint-5"
    publish.publish(stage_step(tmp_path, 5), target, facts={"step": 5})
    target.rename(tmp_path / "checkpoint-7")
    with caplog.at_level(logging.WARNING):
        assert publish.newest_whole(tmp_path) is None
    assert "its manifest is of step 5" in caplog.text


def test_a_kill_while_writing_leaves_no_checkpoint(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        publish_step(tmp_path, 4)
    assert publish.newest_whole(tmp_path) is None
