"""Whether a database and a data folder are the two halves of one installation."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

# A room of the data folder and an entry's name in it, such as ("artifacts", "artifact-1f2e…").
Entry = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Stock:
    """What lies in a data folder, and which of it a database knows."""

    found: Set[Entry]
    known: Set[Entry]
    # Whether the database names any model or upload whose files must lie in the folder.
    names_some: bool
    # Whether it holds anything at all.
    is_empty: bool

    @property
    def unknown(self) -> Set[Entry]:
        return self.found - self.known


def belong_together(stock: Stock) -> bool:
    """Judged by what they hold, where one of them has no id yet. Two that are empty are a new installation."""
    return mostly_known(stock) if stock.found else not stock.names_some


def belong_again(stock: Stock, *, database_has_id: bool) -> bool:
    """Where one of them has an id and the other none: a half that is new, emptied or not mounted belongs to nothing.

    A database with an id and nothing else was interrupted at its first start, before the folder got its own.
    """
    return mostly_known(stock) if stock.found else database_has_id and stock.is_empty


def mostly_known(stock: Stock) -> bool:
    """Where most is unknown it is the database that is wrong, emptied or restored, and not the files that are stray."""
    return len(stock.unknown) <= len(stock.found) / 2
