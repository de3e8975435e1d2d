"""Somebody who acts while an operation is at work, at a moment that the server itself shows: when it waits, or has looked.

Nothing of backupd is replaced. Whoever acts has a session and a thread of its own, and looks where anybody can look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from tests.parts.postgres import Database

_DEADLINE_S = 60.0
_LOOK_S = 0.01
_GATE = 7301  # an advisory lock, in one number; backupd's own are hashes of 64 bits


@contextmanager
def beside(action: Callable[[], object]) -> Iterator[None]:
    """Do `action` in another thread; the block ends after it, and with its error if it has one."""
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(action)
        yield
        acting.result()


def seen(connection: psycopg.Connection, query: str) -> None:
    """Return when the query gives true. Raises AssertionError after a minute."""
    deadline = time.monotonic() + _DEADLINE_S
    while connection.execute(query.encode()).fetchall() != [(True,)]:
        assert time.monotonic() < deadline, f"never seen: {query}"
        time.sleep(_LOOK_S)


def waiting(kind: str, what: str) -> str:
    """Whether somebody waits for a lock of this kind: a query for `seen`; `what` are further terms on pg_locks."""
    here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    return f"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = '{kind}' AND {here} AND {what})"


@contextmanager
def in_the_midst(database: Database, update: int, statement: str, parameters: tuple[object, ...]) -> Iterator[None]:
    """The statement is run when the UPDATE of this number of `users` has begun, whose rows were read before.

    A trigger stops it meanwhile. Also an UPDATE of no rows counts, which asks whether the role may write.
    """
    database.execute(
        "CREATE SEQUENCE updates; CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" IF nextval('public.updates') = {update} THEN PERFORM pg_advisory_xact_lock({_GATE}); END IF; RETURN NULL; END $$;"
        "CREATE TRIGGER stop BEFORE UPDATE ON users EXECUTE FUNCTION stop()"
    )
    with database.connect() as other:
        other.execute(f"SELECT pg_advisory_lock({_GATE})".encode())

        def act() -> None:
            try:
                seen(other, waiting("advisory", f"objid = {_GATE}"))
                other.execute(statement.encode(), parameters)
            finally:
                other.execute(f"SELECT pg_advisory_unlock({_GATE})".encode())

        with beside(act):
            yield
