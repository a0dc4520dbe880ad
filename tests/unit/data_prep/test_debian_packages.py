from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from data_prep import debian_packages
from qwen_audio_train.errors import ConfigError


def build_package(folder: Path, name: str, content: str, version: str = "1-1") -> Path:
    """A real .deb: dpkg-deb builds it, so that unpacking is the real thing too."""
    tree = folder / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <n@example.org>\nDescription: x\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr/file.txt").write_text(content)
    target = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(target)], check=True, capture_output=True)
    return target


def test_unpacks_each_package_once(tmp_path: Path) -> None:
    debs = tmp_path / "debs"
    debs.mkdir()
    build_package(debs, "sounds-x", "first")
    args = argparse.Namespace(input=debs, output=tmp_path / "out")
    folder, versions = debian_packages.fetch_and_unpack(["sounds-x"], "x", args)
    assert (folder / "sounds-x/usr/file.txt").read_text() == "first"
    assert versions == ["sounds-x_1-1_all.deb"]
    (folder / "sounds-x/usr/file.txt").write_text("kept")
    debian_packages.fetch_and_unpack(["sounds-x"], "x", args)
    assert (folder / "sounds-x/usr/file.txt").read_text() == "kept"


def test_a_broken_package_leaves_nothing_that_looks_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x_1_all.deb").write_bytes(b"no archive")
    with pytest.raises(subprocess.CalledProcessError):
        debian_packages.unpack_packages(["x"], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "x").exists()


def test_says_which_package_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no y_\*\.deb"):
        debian_packages.unpack_packages(["y"], tmp_path, tmp_path / "out")


def test_says_what_to_do_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"give a folder of the \.deb files by --input"):
        debian_packages.fetch_packages(["x"], tmp_path / "debs")
    with pytest.raises(ConfigError, match="dpkg-deb is not installed"):
        debian_packages.unpack_packages(["x"], tmp_path, tmp_path / "out")


def test_downloads_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(debian_packages.subprocess, "run", lambda command, **_: commands.append(command))
    (tmp_path / "there_1_all.deb").touch()
    debian_packages.fetch_packages(["there", "absent"], tmp_path)
    assert commands == [["apt-get", "download", "absent"]]
