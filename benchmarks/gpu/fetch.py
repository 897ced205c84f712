"""Fetches what a machine without a network needs: `python3.12 benchmarks/gpu/fetch.py [FOLDER]`, `.wheels` by default.

The wheels of requirements.txt, for the Python that runs this, in folders `trip-1`, `trip-2`, … of less than 56 MiB
each, larger files in parts. What the index has no wheels of is built here. `install.sh` on the machine takes them, one
trip after another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
TRIP_BYTES: Final = 56 * 1024**2
# llama.cpp for any x86-64 processor with AVX2, rather than for this one.
BUILD: Final = {"CMAKE_ARGS": "-DGGML_NATIVE=OFF"}


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    whole = folder / "whole"
    whole.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(whole)]
    subprocess.run([*command, "--requirement", str(HERE / "requirements.txt")], check=True, env=os.environ | BUILD)
    trips = pack(whole, folder)
    shutil.rmtree(whole)
    for number, size in enumerate(trips, start=1):
        print(f"trip-{number}: {size / 1024**2:.1f} MiB")


def pack(whole: Path, folder: Path) -> list[int]:
    """Moves the files into trips, the large ones in parts. Returns the trips' sizes in bytes."""
    pieces = [piece for path in sorted(whole.iterdir()) for piece in _pieces(path)]
    trips: list[int] = []
    for path in sorted(pieces, key=lambda piece: -piece.stat().st_size):
        size = path.stat().st_size
        number = next((index for index, used in enumerate(trips) if used + size <= TRIP_BYTES), len(trips))
        if number == len(trips):
            trips.append(0)
            (folder / f"trip-{number + 1}").mkdir()
        trips[number] += size
        path.rename(folder / f"trip-{number + 1}" / path.name)
    return trips


def _pieces(path: Path) -> list[Path]:
    if path.stat().st_size <= TRIP_BYTES:
        return [path]
    found = []
    with path.open("rb") as file:
        while data := file.read(TRIP_BYTES):
            piece = path.with_name(f"{path.name}.part-{len(found):03}")
            piece.write_bytes(data)
            found.append(piece)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".wheels"))
