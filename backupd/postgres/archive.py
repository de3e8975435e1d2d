"""The pg_restore that a backup comes back with: its arguments, what its complaints mean, and which targets it may have.

pg_restore prints the statement that failed, and with it rows of the database: none of that leaves this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from backupd.errors import (
    BackupdError,
    CouldNotVerify,
    ProcessFailed,
    Refused,
    SourceDenied,
    SourceFull,
    SourceUnreachable,
    Tampered,
)
from backupd.manifest import Source
from backupd.pipeline import Command
from backupd.postgres import complaints
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection, Server, translated
from backupd.redact import printable


class ProblemKind(StrEnum):
    """What stands behind a complaint of pg_restore's."""

    DAMAGED = "the archive is damaged or cut short"
    TOO_NEW = "the archive was made by a newer pg_dump"
    MISSING_ROLE = "a role is missing"
    MISSING_EXTENSION = "an extension is not installed"
    DENIED = "a right is missing"
    EXISTS = "the target is not empty"
    CONNECTION = "the connection was lost"
    NO_ROOM = "the target's disk is full"
    OLD_TARGET = "the target does not know a setting that newer servers have"
    OTHER = "something else"


_HINTS = {
    ProblemKind.DAMAGED: "restore another backup with --backup ID",
    ProblemKind.TOO_NEW: "restore with programs of PostgreSQL at least as new as the pg_dump in the manifest",
    ProblemKind.MISSING_ROLE: "restore the roles first, or create the role",
    ProblemKind.MISSING_EXTENSION: "install the extension's package on the target's server",
    ProblemKind.DENIED: "restore as a superuser, or as a member of every role that owns something",
    ProblemKind.EXISTS: "restore into a new, empty database",
    ProblemKind.CONNECTION: "see the target server's log, and try again",
    ProblemKind.NO_ROOM: "make room, and restore into a new database",
    ProblemKind.OLD_TARGET: None,
    ProblemKind.OTHER: "see the target server's log",
}

# The first that fits counts. These texts are pg_restore's and the server's own, in the C locale that they are run in.
_KINDS: tuple[tuple[str, ProblemKind], ...] = (
    # Since 17 pg_restore sets it without asking whether the server has it. It protects nothing: 0 means no limit.
    (r'unrecognized configuration parameter "transaction_timeout"', ProblemKind.OLD_TARGET),
    (r"unsupported version \(.*\) in file header", ProblemKind.TOO_NEW),
    (
        r"input file|file header|end of file|corrupt|could not (un|de)compress|unrecognized data block|unexpected block ID"
        r"|entry ID .* out of range|not appear to be a valid archive|invalid (archive|number)",
        ProblemKind.DAMAGED,
    ),
    (r'role "[^"]*" does not exist', ProblemKind.MISSING_ROLE),
    (r'extension "[^"]*" is not available|extension control file|could not access file', ProblemKind.MISSING_EXTENSION),
    (r"permission denied|must be (owner|superuser|able to)|must have", ProblemKind.DENIED),
    (r"already exists|duplicate key", ProblemKind.EXISTS),
    (r"No space left|could not extend file", ProblemKind.NO_ROOM),
    (r"connection to server|server closed the connection|terminating connection|no connection to", ProblemKind.CONNECTION),
)
_HARMLESS = {ProblemKind.OLD_TARGET}

_PROGRAM = "pg_restore"


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint; `text` is one line with no statement and no row in it."""

    kind: ProblemKind
    text: str

    @property
    def harmless(self) -> bool:
        return self.kind in _HARMLESS

    @property
    def hint(self) -> str | None:
        return _HINTS[self.kind]


def one_transaction_fits(clients: Clients, target: Server) -> bool:
    """Whether this pg_restore can fill that server all or nothing.

    pg_restore of 17 and later sets a parameter that servers before 17 do not know; the error would end a transaction.
    """
    return clients.major < 17 or target.major >= 17


def restore(clients: Clients, dsn: Dsn, *, single_transaction: bool) -> Command:
    """pg_restore of an archive on stdin into an empty database.

    In a single transaction the first error ends it and nothing stays. Otherwise it goes on past errors and ends with exit code
    1: `forgiven` says whether they were harmless, and if not, the target is to be dropped.
    """
    how = ("--single-transaction", "--exit-on-error") if single_transaction else ()
    argv = (clients.program("pg_restore"), "--format=custom", *how, "--no-password", f"--dbname={dsn.argument()}")
    return Command("pg_restore", argv, dsn.environment(application_name="backupd pg_restore"))


def read_to_end(clients: Clients) -> Command:
    """pg_restore that reads an archive on stdin to its end and writes it nowhere: finds what listing its contents does not."""
    argv = (clients.program("pg_restore"), "--format=custom", "--file=/dev/null")
    return Command("pg_restore", argv, {"LC_ALL": "C"})


def classify(stderr: str) -> list[Problem]:
    """The complaints in what pg_restore wrote, without its repetitions of where it was."""
    return list(_problems(stderr))


def without_statements(stderr: str) -> str:
    """What pg_restore wrote, less statements, details and every quoted text that may be a value."""
    return "\n".join(complaints.lines(_PROGRAM, stderr))


def forgiven(stderr: str) -> bool:
    """Whether pg_restore's exit code 1 was for harmless reasons only: it says how many errors there were, and all are here."""
    total = re.search(r"errors ignored on restore: (\d+)", stderr)
    problems = classify(stderr)
    return total is not None and int(total[1]) == len(problems) > 0 and all(problem.harmless for problem in problems)


def explained(error: ProcessFailed) -> BackupdError:
    """The error to raise for a pg_restore that failed: its first grave complaint, and what to do about that."""
    grave = [problem for problem in classify(error.stderr) if not problem.harmless]
    cleaned = without_statements(error.stderr)
    if not grave:
        return ProcessFailed(
            complaints.masked(error.message), error.hint, program=_PROGRAM, status=error.status, stderr=cleaned
        )
    first = grave[0]
    more = f" (and {len(grave) - 1} more)" if len(grave) > 1 else ""
    message = f"pg_restore failed, {first.kind.value}: {first.text}{more}"
    if first.kind is ProblemKind.DAMAGED:
        return Tampered(message, first.hint)
    if first.kind is ProblemKind.DENIED:
        return SourceDenied(message, first.hint)
    if first.kind is ProblemKind.CONNECTION:
        return SourceUnreachable(message, first.hint)
    if first.kind is ProblemKind.NO_ROOM:
        return SourceFull(message, first.hint)
    if first.kind is ProblemKind.MISSING_EXTENSION:
        return CouldNotVerify(message, first.hint)
    return ProcessFailed(message, first.hint, program=_PROGRAM, status=error.status, stderr=cleaned)


def require_not_source(target: Server, source: Source) -> None:
    """Raises Refused when the target is the very database that the backup was made of."""
    if (target.system_identifier, target.database) == (source.system_identifier, source.database):
        raise Refused(
            f"the target is the source itself: database {printable(target.database)} of cluster {target.system_identifier}",
            "restore into another database, look at it, and then switch over",
        )


def require_usable(connection: Connection) -> None:
    """Raises Refused for a database that pg_restore could not fill: it lacks what template0 has, or takes no writes."""
    with translated("look into the target"):
        [(public, plpgsql, read_only)] = connection.execute(_FOUNDATIONS).fetchall()
    lacking = [what for what, there in (("schema public", public), ("extension plpgsql", plpgsql)) if not there]
    if lacking:
        raise Refused(f"the target lacks {' and '.join(lacking)}, which a dump takes for granted", _ANEW)
    if read_only:
        raise Refused(
            "the target takes no writes: it is a standby, or default_transaction_read_only is on",
            "turn that off for the database and the role, or " + _ANEW,
        )


def require_empty(connection: Connection) -> None:
    """Raises Refused that names what a database holds already: whatever a new one from template0 does not."""
    with translated("look into the target"):
        rows = connection.execute(_CONTENTS).fetchall()
    if rows:
        named = ", ".join(f"{what} {printable(name)}" for what, name in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise Refused(f"the target is not empty: it holds {named}{more}", _ANEW)


_ANEW = "create a new database from template0 and restore there"

_FOUNDATIONS = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public'), EXISTS (SELECT FROM pg_extension WHERE extname = 'plpgsql'),
       current_setting('transaction_read_only')::bool
"""

# From 16384 on, oids are those of objects that initdb did not make; a large object's number is its maker's choice. Default
# privileges and grants on the schema public count too: they would open what is restored to others than the backup says.
_CONTENTS = """
WITH content (class, id, namespace) AS (
  SELECT 'pg_namespace'::regclass, oid, 0::oid FROM pg_namespace WHERE nspname !~ '^pg_'
  UNION ALL
  SELECT 'pg_class'::regclass, oid, relnamespace FROM pg_class WHERE relkind IN ('r', 'p', 'm', 'v', 'S', 'f')
  UNION ALL
  SELECT 'pg_type'::regclass, oid, typnamespace FROM pg_type t
   WHERE typtype IN ('d', 'e', 'r', 'p') OR typtype = 'c' AND EXISTS (
         SELECT FROM pg_class c WHERE c.oid = typrelid AND relkind = 'c')
  UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace FROM pg_proc
  UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace FROM pg_operator
  UNION ALL SELECT 'pg_opclass'::regclass, oid, opcnamespace FROM pg_opclass
  UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfnamespace FROM pg_opfamily
  UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace FROM pg_collation
  UNION ALL SELECT 'pg_conversion'::regclass, oid, connamespace FROM pg_conversion
  UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace FROM pg_ts_config
  UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace FROM pg_ts_dict
  UNION ALL SELECT 'pg_ts_parser'::regclass, oid, prsnamespace FROM pg_ts_parser
  UNION ALL SELECT 'pg_ts_template'::regclass, oid, tmplnamespace FROM pg_ts_template
  UNION ALL SELECT 'pg_cast'::regclass, oid, 0 FROM pg_cast
  UNION ALL SELECT 'pg_transform'::regclass, oid, 0 FROM pg_transform
  UNION ALL SELECT 'pg_language'::regclass, oid, 0 FROM pg_language
  UNION ALL SELECT 'pg_am'::regclass, oid, 0 FROM pg_am
  UNION ALL SELECT 'pg_extension'::regclass, oid, 0 FROM pg_extension WHERE extname <> 'plpgsql'
  UNION ALL SELECT 'pg_default_acl'::regclass, oid, 0 FROM pg_default_acl
  UNION ALL SELECT 'pg_event_trigger'::regclass, oid, 0 FROM pg_event_trigger
  UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, 0 FROM pg_foreign_data_wrapper
  UNION ALL SELECT 'pg_foreign_server'::regclass, oid, 0 FROM pg_foreign_server
  UNION ALL SELECT 'pg_publication'::regclass, oid, 0 FROM pg_publication
  UNION ALL
  SELECT 'pg_subscription'::regclass, oid, 0 FROM pg_subscription
   WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  UNION ALL
  SELECT 'pg_largeobject'::regclass, oid, 0 FROM pg_largeobject_metadata
), grants (given, made_with) AS (
  SELECT ARRAY(SELECT a::text FROM aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a ORDER BY 1),
         ARRAY(SELECT a::text FROM pg_init_privs i, aclexplode(initprivs) a
                WHERE i.classoid = 'pg_namespace'::regclass AND i.objoid = n.oid ORDER BY 1)
    FROM pg_namespace n WHERE nspname = 'public' AND oid < 16384
)
SELECT found.type AS what, found.identity AS name FROM content, pg_identify_object(class, id, 0) AS found
 WHERE (id >= 16384 OR class = 'pg_largeobject'::regclass)
   AND NOT EXISTS (SELECT FROM pg_namespace n WHERE n.oid = namespace AND nspname ~ '^pg_(toast|temp)')
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = class AND d.objid = id AND d.deptype = 'e')
UNION ALL
SELECT 'grants', 'on schema public' FROM grants WHERE given <> made_with
ORDER BY 1, 2
"""


def _problems(stderr: str) -> Iterator[Problem]:
    for line in complaints.lines(_PROGRAM, stderr):
        match = re.match(r"(?:error|fatal): (.*)", line)
        if match is not None:
            kind = next((kind for pattern, kind in _KINDS if re.search(pattern, match[1])), ProblemKind.OTHER)
            yield Problem(kind, match[1])
