"""The trail in a PostgreSQL table, for fleets that share one. The role that writes it may INSERT and SELECT, and nothing else.

`install_sql` prints what an administrator runs once, as the owner of the table, who is somebody else than the role that writes.
The chain is kept in one line by an advisory lock, because LOCK TABLE would need more rights than the role shall have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backupd.audit import Stored, TrailError
from backupd.audit.records import clean_text, digest
from backupd.errors import BackupdError, SourceError, SourceUnreachable, Tampered
from backupd.redact import printable

if TYPE_CHECKING:
    import psycopg

    from backupd.audit import Connect

SCHEMA = "backupd_audit"
_LOCK = 0x6261_636B_7570_6441  # one trail in a database, one lock; "backupdA"
_TRIES = 4
_PAGE = 500
_LOST_CLASSES = ("08", "57P")  # connection exceptions; shutdown, crash and "starting up" of the server
_HEAD = "SELECT seq, data, sha256 FROM backupd_audit.record ORDER BY seq DESC LIMIT 1"


def install_sql(role: str) -> str:
    """The statements that make the trail and let `role` (which exists) write it. To be run once, by another role than that."""
    grantee = '"' + role.replace('"', '""') + '"'
    return f"""\
-- The trail of backupd. Run this once, as a role that is not {printable(grantee)}:
-- who owns a table can change it, whatever is granted.
BEGIN;
CREATE SCHEMA backupd_audit;
REVOKE ALL ON SCHEMA backupd_audit FROM PUBLIC;
CREATE TABLE backupd_audit.record (
    seq    bigint PRIMARY KEY CHECK (seq > 0),
    data   bytea NOT NULL,
    sha256 text NOT NULL
);
REVOKE ALL ON TABLE backupd_audit.record FROM PUBLIC;
CREATE FUNCTION backupd_audit.refuse() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION 'the trail is only appended to' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER record_is_not_changed BEFORE UPDATE OR DELETE ON backupd_audit.record
    FOR EACH ROW EXECUTE FUNCTION backupd_audit.refuse();
CREATE TRIGGER record_is_not_truncated BEFORE TRUNCATE ON backupd_audit.record
    FOR EACH STATEMENT EXECUTE FUNCTION backupd_audit.refuse();
GRANT USAGE ON SCHEMA backupd_audit TO {grantee};
GRANT SELECT, INSERT ON TABLE backupd_audit.record TO {grantee};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class PostgresStore:
    """Records in the table that `install_sql` makes. `connect` opens a connection; each call uses one of its own.

    `where` names the database without credentials. `lock_timeout_s` is how long to wait for another writer, `pause_s` how long
    before another try after a lost connection (doubled each time, three times).
    """

    connect: Connect = field(repr=False)
    where: str
    lock_timeout_s: float = 30.0
    pause_s: float = 0.5

    def append(self, make: Callable[[Stored | None], bytes]) -> Stored:
        sent: Stored | None = None  # what a lost connection may have stored
        for attempt in range(1, _TRIES + 1):
            try:
                with self._session() as connection:
                    self._lock(connection)
                    self._whole(connection)
                    # Its transaction held the lock to its end: whatever became of it is decided, and visible now.
                    if sent is not None and self._at(connection, sent.seq) == sent:
                        return sent
                    head = _stored(connection.execute(_HEAD).fetchone())
                    data = make(head)
                    sent = Stored(1 if head is None else head.seq + 1, data, digest(data))
                    connection.execute(
                        "INSERT INTO backupd_audit.record (seq, data, sha256) VALUES (%s, %s, %s)",
                        (sent.seq, sent.data, sent.sha256),
                    )
                    if self._at(connection, sent.seq) != sent:
                        raise Tampered(f"the trail {self.where} does not keep what is written to it", _CHANGED_HINT)
                    connection.commit()
                    return sent
            except _Lost as lost:
                if attempt == _TRIES:
                    raise TrailError(lost.message, "see whether the server runs, and run this again") from lost
                time.sleep(self.pause_s * 2 ** (attempt - 1))
        raise AssertionError("unreachable: the last try returns or raises")

    def read(self, start: int = 1) -> Iterator[Stored]:
        with self._reading() as connection, connection.cursor("trail") as cursor:
            self._whole(connection)
            cursor.itersize = _PAGE
            cursor.execute("SELECT seq, data, sha256 FROM backupd_audit.record WHERE seq >= %s ORDER BY seq", (start,))
            for row in cursor:
                yield _present(row)

    def head(self) -> Stored | None:
        with self._reading() as connection:
            self._whole(connection)
            return _stored(connection.execute(_HEAD).fetchone())

    def excess_rights(self) -> list[str]:
        with self._reading() as connection:
            row = connection.execute(_RIGHTS).fetchone()
        if row is None:
            raise TrailError(f"there is no trail in {self.where}", _INSTALL_HINT)
        role, superuser, owner, creates, rights, guards = row
        who = f"the role {clean_text(role)}"
        if superuser:
            return [f"{who} is a superuser, and can change the trail"]
        found = [f"{who} may {right} in {SCHEMA}.record" for right in rights]
        found += [f"{who} owns {SCHEMA}.record, or is a member of its owner"] if owner else []
        found += [f"{who} may create objects in the schema {SCHEMA}"] if creates else []
        found += ["the triggers that keep the trail from being edited are missing or disabled"] if guards < 2 else []
        return found

    def _lock(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{int(self.lock_timeout_s * 1000)}ms",))
        # A database may have been told not to wait for its disk; the trail must.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))

    def _whole(self, connection: psycopg.Connection[Any]) -> None:
        """Raises Tampered when the table is more than a table: a trigger swallows records, a view or a policy hides them.

        A table that is not there is told of by what asks for its rows.
        """
        row = connection.execute(_STRANGE).fetchone()
        if row is not None and row[0]:
            raise Tampered(f"the trail {self.where} is not as it was installed: {clean_text('; '.join(row[0]))}", _CHANGED_HINT)

    def _at(self, connection: psycopg.Connection[Any], seq: int) -> Stored | None:
        statement = "SELECT seq, data, sha256 FROM backupd_audit.record WHERE seq = %s"
        return _stored(connection.execute(statement, (seq,)).fetchone())

    @contextmanager
    def _reading(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            with self._session() as connection:
                yield connection
        except _Lost as lost:
            raise TrailError(lost.message, "see whether the server runs, and run this again") from lost

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        """One connection, one transaction, closed at the end. Raises _Lost when another try may help, else TrailError."""
        import psycopg

        connection: psycopg.Connection[Any] | None = None
        try:
            connection = self.connect()
            connection.autocommit = False
            yield connection
        except psycopg.Error as error:
            # Without a state the error is libpq's own: there is no connection, or no longer.
            lost = error.sqlstate is None or error.sqlstate.startswith(_LOST_CLASSES)
            if isinstance(error, psycopg.OperationalError) and lost:
                raise _Lost(
                    f"the connection to the trail {self.where} was lost, or is not to be had: {_line(error)}"
                ) from error
            raise self._explained(error) from error
        except SourceUnreachable as error:
            raise _Lost(f"the trail {self.where} cannot be reached: {error.message}") from error
        except SourceError as error:
            raise TrailError(f"the trail {self.where} cannot be used: {error.message}", error.hint) from error
        finally:
            if connection is not None:
                connection.close()

    def _explained(self, error: psycopg.Error) -> TrailError:
        message, hint = _REASONS.get(error.sqlstate or "", (f"cannot be used: {_line(error)}", None))
        return TrailError(f"the trail {self.where} {message}", hint)


class _Lost(BackupdError):
    """The connection is gone, and what was sent last may or may not have been stored. Never leaves this file."""


_INSTALL_HINT = "an administrator has to run what `backupd audit install-sql` prints"
_CHANGED_HINT = "keep the table as it is, and find out which administrator changed it"
_REASONS: dict[str, tuple[str, str | None]] = {
    "3F000": ("is not there: the schema is missing", _INSTALL_HINT),
    "42P01": ("is not there: the table is missing", _INSTALL_HINT),
    "42501": ("may not be written or read by this role", "grant it USAGE on the schema, SELECT and INSERT on the table"),
    "55P03": ("is locked by another writer", "look for a session that waits, in pg_stat_activity"),
    "25006": ("is on a server that only reads", "give the URL of the primary"),
    "53100": ("cannot be written: the server's disk is full", "make room"),
    "23505": ("has a record of this number already, written without the lock", "find out who else writes to it"),
}
# Triggers that only guard against change, by name and by when they fire (pg_trigger.tgtype), may be missing: that is told with
# the rights. Internal triggers are those of foreign keys, which can refuse a record and not swallow it.
_STRANGE = """
SELECT array_remove(ARRAY[
           CASE WHEN c.relkind <> 'r' THEN 'it is no table' END,
           CASE WHEN c.relrowsecurity THEN 'row security hides its rows' END,
           CASE WHEN EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhparent, i.inhrelid)) THEN 'it inherits' END],
           NULL)
       || ARRAY(SELECT 'it has the rule ' || w.rulename FROM pg_rewrite w WHERE w.ev_class = c.oid AND c.relkind = 'r'
                ORDER BY w.rulename)
       || ARRAY(SELECT 'it has the trigger ' || t.tgname FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
                AND (t.tgname, t.tgtype) NOT IN (('record_is_not_changed', 27), ('record_is_not_truncated', 34))
                ORDER BY t.tgname)
FROM pg_class c WHERE c.oid = to_regclass('backupd_audit.record')
"""
_RIGHTS = """
SELECT current_user, r.rolsuper, pg_has_role(current_user, c.relowner, 'MEMBER'),
       has_schema_privilege(c.relnamespace, 'CREATE'),
       ARRAY(SELECT p FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p
             WHERE has_table_privilege(c.oid, p)
                OR p IN ('UPDATE', 'REFERENCES') AND has_any_column_privilege(c.oid, p)),
       (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('O', 'A')
           AND t.tgname IN ('record_is_not_changed', 'record_is_not_truncated'))
FROM pg_class c, pg_roles r
WHERE c.oid = to_regclass('backupd_audit.record') AND r.rolname = current_user
"""


def _line(error: Exception) -> str:
    return clean_text(str(error))[:300]


def _stored(row: Any) -> Stored | None:
    return None if row is None else _present(row)


def _present(row: Any) -> Stored:
    seq, data, sha256 = row
    return Stored(seq, bytes(data), sha256)
