"""Versions of the installed libraries, read from their metadata without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import app


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Distribution name → version, Bitmill's own included; `missing` for one that is not installed."""
    found = {"bitmill": app.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
