"""evaluations

Revision: 0005
Follows: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Plain ADD COLUMN: SQLite's batch mode would rebuild jobs, and dropping the old table takes the events with it.
    op.add_column("jobs", sa.Column("request", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("result", sa.JSON(), nullable=True))
    op.add_column("artifacts", sa.Column("evaluation", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM jobs WHERE kind <> 'quantization'"))
    op.drop_column("artifacts", "evaluation")
    op.drop_column("jobs", "result")
    op.drop_column("jobs", "request")
