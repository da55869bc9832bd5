"""Where a task's trace goes on: whoever runs it may be another agent than the one that was woken."""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column('tasks', sa.Column('traceparent', sa.Text(), nullable=True), schema='chat')


def downgrade() -> None:
    """Take back."""
    op.drop_column('tasks', 'traceparent', schema='chat')
