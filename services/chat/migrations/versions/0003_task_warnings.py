"""Add the warnings of a task. The constant default rewrites no row, and the former release never names the column."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    column = sa.Column('warnings', postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False)
    op.add_column('tasks', column, schema='chat')


def downgrade() -> None:
    """Take back."""
    op.drop_column('tasks', 'warnings', schema='chat')
