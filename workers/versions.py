"""Versions of the installed libraries, read from their metadata without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import app


def versions_of(packages: tuple[str, ...], revision: int = 1) -> dict[str, str]:
    """Distribution name → version, Bitmill's own included; `missing` for one that is not installed.

    `revision` is the method's own: beyond the first it stands beside the versions, and so in artifacts' keys.
    """
    found = {"bitmill": app.__version__}
    if revision > 1:
        found["revision"] = str(revision)
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
