"""calibration record of artifacts, quality gate of jobs

Revision: 0002
Follows: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("calibration", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("gate", sa.String(length=8), nullable=False, server_default="on"))


def downgrade() -> None:
    op.drop_column("jobs", "gate")
    op.drop_column("artifacts", "calibration")
