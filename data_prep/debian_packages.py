"""Corpora inside Debian packages: fetched with apt-get, unpacked without root, their versions recorded."""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from qwen_audio_train.errors import ConfigError

logger = logging.getLogger(__name__)

NO_APT_REMEDY = "on a system without apt give a folder of the .deb files by --input"


def fetch_packages(names: Iterable[str], folder: Path, *, remedy: str = NO_APT_REMEDY) -> None:
    """Download what is missing of the packages ``names`` into ``folder``. Raises ConfigError when apt-get fails."""
    missing = [name for name in names if not any(folder.glob(f"{name}_*.deb"))]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %d Debian packages into %s: %s", len(missing), folder, ", ".join(missing))
    try:
        subprocess.run(["apt-get", "download", *missing], cwd=folder, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"apt-get download did not get {missing[0]} ... ({error}); {remedy}") from error


def unpack_packages(names: Iterable[str], debs: Path, folder: Path, *, remedy: str = NO_APT_REMEDY) -> None:
    """Unpack the packages of ``debs``, each into its own folder below ``folder``, whole or not at all.

    Raises:
        ConfigError: dpkg-deb is not there, or a package is not.
    """
    if shutil.which("dpkg-deb") is None:
        raise ConfigError(f"dpkg-deb is not installed, so .deb files cannot be unpacked; {remedy}")
    for name in names:
        found = sorted(debs.glob(f"{name}_*.deb"))
        if not found:
            raise ConfigError(f"'{debs}' holds no {name}_*.deb; leave --input out to have it downloaded")
        if (folder / name).exists():
            continue
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(partial)], check=True)
        partial.rename(folder / name)


def package_versions(names: Iterable[str], debs: Path) -> list[str]:
    """File names of the packages, which hold their versions: what a set's content depends on."""
    return sorted(deb.name for name in names for deb in debs.glob(f"{name}_*.deb"))


def fetch_and_unpack(
    names: Iterable[str], corpus: str, args: argparse.Namespace, *, remedy: str = NO_APT_REMEDY
) -> tuple[Path, list[str]]:
    """Packages of a corpus below ``OUTPUT/cache``, from ``--input`` or apt-get: folder and versions."""
    names = list(names)
    debs = args.input or args.output / "cache" / f"{corpus}_debs"
    if args.input is None:
        fetch_packages(names, debs, remedy=remedy)
    unpacked = args.output / "cache" / f"{corpus}_unpacked"
    unpack_packages(names, debs, unpacked, remedy=remedy)
    return unpacked, package_versions(names, debs)


def package_arguments_help() -> str:
    """Help of ``--input`` for every corpus made of packages."""
    return "folder of the .deb files (default: download them by apt-get into OUTPUT/cache)"
