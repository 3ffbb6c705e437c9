"""Erasures: what was asked to be forgotten, until it is done, and the report of it afterwards."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NAME = sa.String(128)


def upgrade() -> None:
    """Make the table, and find who shares an artefact without reading all of a store's lineage."""
    op.create_table(
        "erasures",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", NAME, nullable=False),
        *(sa.Column(name, NAME) for name in ("user", "agent", "session")),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
    )
    op.create_index("ix_erasures_state", "erasures", ["state"])
    op.create_index("ix_erasures_scope", "erasures", ["tenant", "user", "agent", "created"])
    op.create_index("ix_lineage_artefact", "lineage", ["store", "artefact"])
    op.drop_index("ix_lineage_store", "lineage")
