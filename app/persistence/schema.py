"""Bringing a database to the newest schema, by Alembic's migrations."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations
from app.settings import get_settings


def alembic_config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Upgrades (or creates) the database. Safe to call at every start."""
    command.upgrade(alembic_config(database_url), revision)


if __name__ == "__main__":
    migrate(get_settings().database)
