"""What a failure of a statement means: out of reach, or refused; begun, or not."""

import psycopg
from psycopg import errors
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# The server was replaced by one that takes no writes, such as the former primary after a failover.
_WRONG_SERVER = (errors.ReadOnlySqlTransaction,)
# The name of a prepared statement means nothing, or something else, to the session that got it: a pooler is between.
FORGOTTEN_STATEMENT = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
# The session was ended while it waited for a statement, or never took any.
_ENDED_WHILE_IDLE = (errors.IdleSessionTimeout, errors.CannotConnectNow)


def is_down(error: BaseException) -> bool:
    """Whether the database could not be reached or broke off, rather than refused what it was asked."""
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | PoolTimeout | _WRONG_SERVER[0]):
        return True
    if isinstance(error, DBAPIError):
        original = error.orig
        return error.connection_invalidated or (original is not None and is_down(original))
    return isinstance(error, OperationalError | InterfaceError)


def never_began(error: psycopg.Error) -> bool:
    """Whether it is certain that the statement was not executed, so that it may be sent again on a new connection.

    A connection that breaks after the statement was sent is not among these: the server may have executed it.
    """
    return isinstance(error, _WRONG_SERVER + FORGOTTEN_STATEMENT + _ENDED_WHILE_IDLE)
