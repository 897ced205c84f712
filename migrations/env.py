"""How Alembic reaches the database: the URL given by the caller, else the settings'."""

from __future__ import annotations

from alembic import context

from app.persistence.tables import Base
from app.persistence.unit_of_work import Database
from app.settings import get_settings

# Any number serves, so long as nothing else in the database uses it.
MIGRATION_LOCK = 7_316_205


def _url() -> str:
    return context.config.get_main_option("sqlalchemy.url") or get_settings().database


def run_offline() -> None:
    context.configure(url=_url(), target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    database = Database(_url())
    with database.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # Replicas that start together migrate one after another.
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
            connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    database.close()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
