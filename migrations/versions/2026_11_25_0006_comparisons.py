"""comparisons

Revision: 0006
Follows: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("finished_at", sa.Float(53), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
    )
    op.create_index("ix_comparisons_created_at_id", "comparisons", ["created_at", "id"])
    op.create_index("ix_comparisons_model", "comparisons", ["model"])
    op.create_index("ix_comparisons_outcome", "comparisons", ["outcome"])
    op.create_table(
        "comparison_rows",
        sa.Column("comparison_id", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("method", sa.JSON(), nullable=True),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("quantization_job_id", sa.String(64), nullable=True),
        sa.Column("evaluation_job_id", sa.String(64), nullable=True),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_comparison_rows_comparison_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("comparison_id", "position", name="pk_comparison_rows"),
    )
    # Plain ADD COLUMN: SQLite's batch mode would rebuild jobs, and dropping the old table takes the events with it.
    op.add_column("jobs", sa.Column("predicted", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("actual", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "actual")
    op.drop_column("jobs", "predicted")
    op.drop_table("comparison_rows")
    op.drop_index("ix_comparisons_outcome", table_name="comparisons")
    op.drop_index("ix_comparisons_model", table_name="comparisons")
    op.drop_index("ix_comparisons_created_at_id", table_name="comparisons")
    op.drop_table("comparisons")
