"""Whether a setting names a shard set, as far as the configuration alone can tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen_audio_train.config.remote import URL_SCHEMES, is_url

SET_HOWTO = "data_prep/README.md says how to make one"


def set_problems(name: str, location: str, *, required: bool) -> Iterator[str]:
    """Why the setting ``name`` holds no shard set. Sets behind URLs are only asked when they are opened."""
    if not location:
        if required:
            yield f"{name} is empty: name a shard set's folder or its URL ({SET_HOWTO})"
    elif is_url(location):
        yield from _url(name, location)
    elif not (Path(location) / "dataset.json").is_file():
        yield f"{name}={location} is not a shard set: it has no dataset.json ({SET_HOWTO})"


def _url(name: str, location: str) -> Iterator[str]:
    scheme, _, rest = location.partition("://")
    if "::" in location or scheme not in URL_SCHEMES:
        # Not the whole location: a URL may hold a password.
        told = "a chain of URLs" if "::" in location else f"'{location.partition(':')[0]}:'"
        yield (
            f"{name} names {told}, which sets are not read from: use a folder, or "
            f"{', '.join(f'{scheme}://' for scheme in URL_SCHEMES)}; or copy the set here"
        )
    elif not rest.strip("/"):
        yield f"{name}={location} names no server or bucket: write it as {scheme}://HOST/FOLDER"
