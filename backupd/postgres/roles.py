"""A cluster's roles: how they are dumped beside a database, and how they come back into another cluster.

Owns the reading of what pg_dumpall writes. Statements of any other kind are refused, roles that exist are left alone, and a
password hash never stands in an error or a report.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg

from backupd.errors import Tampered
from backupd.pipeline import Command
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection, connect, translate, translated
from backupd.redact import printable

_SUPERUSER_ONLY = {"SUPERUSER", "REPLICATION", "BYPASSRLS"}
_DENIED_BY_DEFAULT = _SUPERUSER_ONLY | {"CREATEDB", "CREATEROLE", "LOGIN"}
_SKIPPED_COMMENTS = {"TABLESPACE", "DATABASE"}

_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | --[^\n]*(?:\n|\Z) )
    | (?P<text> [eE]'(?: [^'\\] | '' | \\. )*' | '(?: [^'] | '' )*' )
    | (?P<quoted> "(?: [^"] | "" )+" )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<number> -?\d+(?:\.\d+)? )
    | (?P<end> ; )
    | (?P<sign> [,.=()] )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Globals:
    """The program that writes a cluster's roles, and whether password hashes are among what it writes."""

    command: Command
    passwords: bool


@dataclass(frozen=True, slots=True)
class RolesReport:
    """What came of a roles file: roles made, roles that were there and were left alone, one line for each thing left out."""

    created: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[str, ...]


def dump_globals(clients: Clients, dsn: Dsn) -> Globals:
    """pg_dumpall of roles, memberships and tablespaces to stdout, with password hashes if the role may read them.

    Connects to find that out: managed servers let nobody read pg_authid.
    """
    with connect(dsn, application_name="backupd") as connection, translated("ask for the right to read pg_authid"):
        [(may,)] = connection.execute("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')").fetchall()
    argv = (
        clients.program("pg_dumpall"),
        "--globals-only",
        "--encoding=UTF8",
        *(() if may else ("--no-role-passwords",)),
        "--no-password",
        f"--dbname={dsn.argument()}",
        f"--database={dsn.database}",  # it would look for `postgres` otherwise, and the role may not be let in there
    )
    return Globals(Command("pg_dumpall", argv, dsn.environment(application_name="backupd pg_dumpall")), bool(may))


def apply(connection: Connection, sql: str) -> RolesReport:
    """Make the roles that `sql`, written by pg_dumpall, names and that this cluster does not have. All of them or none.

    Raises Tampered for a statement that pg_dumpall would not write, SourceDenied and SourceError for what the server refuses.
    """
    statements = [_Statement(tokens) for tokens in _split(sql)]
    for statement in statements:
        statement.kind()
    with translated("create roles"), connection.transaction():
        return _Application(connection).run(statements)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str

    @property
    def upper(self) -> str:
        return self.text.upper() if self.kind == "word" else ""

    @property
    def name(self) -> str:
        """The identifier that the token stands for, or an empty string."""
        if self.kind == "quoted":
            return self.text[1:-1].replace('""', '"')
        return self.text.lower() if self.kind == "word" else ""


@dataclass(frozen=True, slots=True)
class _Statement:
    """Tokens without spaces; `kind` is one of the few that pg_dumpall writes."""

    tokens: tuple[_Token, ...]

    @property
    def text(self) -> str:
        return " ".join(token.text for token in self.tokens)

    def words(self, count: int) -> tuple[str, ...]:
        return tuple(token.upper for token in self.tokens[:count])

    def kind(self) -> str:
        """create, alter, set, grant, parameter, comment, ignore or skip. Raises Tampered for anything else."""
        match self.words(3):
            case ("CREATE", "ROLE", _) if len(self.tokens) == 3:
                return "create"
            case ("ALTER", "ROLE", _):
                return self._alteration()
            case ("COMMENT" | "LABEL", "ON", "ROLE") if self.tokens[4:5] and self.tokens[4].upper == "IS":
                return "comment"
            case ("COMMENT", "ON", what) if what in _SKIPPED_COMMENTS:
                return "skip"
            case ("SECURITY", "LABEL", _) | ("CREATE" | "ALTER", "TABLESPACE", _):
                return "skip"
            case ("SET", _, "=" | "TO" | ""):
                return "ignore"
            case ("SET", "SESSION", "AUTHORIZATION") if len(self.tokens) == 4 and self.tokens[3].name:
                return "ignore"  # before a grant that a role passed on: who granted it is left out, as for memberships
            case ("RESET", "SESSION", "AUTHORIZATION") if len(self.tokens) == 3:
                return "ignore"
            case ("GRANT" | "REVOKE", _, _):
                return self._grant()
        raise self.strange()

    def _alteration(self) -> str:
        match [token.upper for token in self.tokens[3:6]]:
            case ["WITH", *_]:
                return "alter"
            case ["SET", _, "TO"] | ["SET", _, ""]:
                return "set"
            case ["IN", "DATABASE", _] if len(self.tokens) > 6 and self.tokens[6].upper == "SET":
                return "set"
        raise self.strange()

    def _grant(self) -> str:
        uppers = [token.upper for token in self.tokens]
        if "ON" in uppers:
            match uppers[uppers.index("ON") + 1 :]:
                case ["PARAMETER", *_] if self.grantee():
                    return "parameter"
                case ["TABLESPACE", *_]:
                    return "skip"
            raise self.strange()
        if uppers[0] == "GRANT" and uppers[2:3] == ["TO"] and len(uppers) > 3:
            return "grant"
        raise self.strange()

    def grantee(self) -> int:
        """Which token is the one role that a privilege is granted to or revoked from; 0 when there is no one such role."""
        uppers = [token.upper for token in self.tokens]
        link = "TO" if uppers[0] == "GRANT" else "FROM"
        if link not in uppers:
            return 0
        at = uppers.index(link) + 1
        return at if at < len(uppers) and self.tokens[at].name and uppers[at + 1 :] in ([], ["WITH", "GRANT", "OPTION"]) else 0

    def strange(self) -> Tampered:
        start = printable(" ".join(word for word in self.words(4) if word))
        return Tampered(f"the roles file holds a statement that pg_dumpall does not write: {start} …", "do not use this backup")


class _Application:
    """One pass over the statements inside the caller's transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        [(number, self._is_superuser)] = connection.execute(
            "SELECT current_setting('server_version_num')::int, rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchall()
        self._major = number // 10000
        self._roles = {name for (name,) in connection.execute("SELECT rolname::text FROM pg_roles").fetchall()}
        self._created: list[str] = []
        self._kept: list[str] = []
        self._skipped: list[str] = []

    def run(self, statements: Sequence[_Statement]) -> RolesReport:
        if self._is_superuser:  # the server's log would quote a failing statement, and with it a password's hash
            self._connection.execute(
                "SELECT set_config(name, value, true) FROM (VALUES ('log_statement', 'none'),"
                " ('log_min_duration_statement', '-1'), ('log_min_error_statement', 'panic')) AS quiet (name, value)"
            )
        for statement in statements:
            match statement.kind():
                case "create":
                    self._create(statement)
                case "alter":
                    self._alter(statement)
                case "set" | "comment":
                    self._optional(statement, 3 if statement.kind() == "comment" else 2)
                case "parameter":
                    self._parameter(statement)
                case "grant":
                    self._grant(statement)
                case "skip":
                    self._skipped.append(
                        printable(" ".join(token.text for token in statement.tokens[:4] if token.kind != "text"))
                    )
        return RolesReport(tuple(self._created), tuple(self._kept), tuple(self._skipped))

    def _create(self, statement: _Statement) -> None:
        role = statement.tokens[2].name
        if role in self._roles:
            self._kept.append(role)
            return
        self._execute(f"CREATE ROLE {_quoted(role)}", f"create role {printable(role)}")
        self._roles.add(role)
        self._created.append(role)

    def _alter(self, statement: _Statement) -> None:
        role = statement.tokens[2].name
        if role not in self._created:
            return
        options = [token for token in statement.tokens[4:] if self._may_set(role, token)]
        text = " ".join(token.text for token in options)
        if text:
            self._execute(f"ALTER ROLE {_quoted(role)} WITH {text}", f"give role {printable(role)} its attributes")

    def _may_set(self, role: str, token: _Token) -> bool:
        """A new role has none of these attributes, and to deny them may itself need the right to give them (since 16)."""
        attribute = token.upper.removeprefix("NO")
        if attribute != token.upper and attribute in _DENIED_BY_DEFAULT:
            return False
        if self._is_superuser or attribute not in _SUPERUSER_ONLY:
            return True
        self._skipped.append(f"{printable(role)} is not {attribute}: only a superuser may say so")
        return False

    def _grant(self, statement: _Statement) -> None:
        """A membership. Who granted it is left out: since 16 that role needs rights of its own that it may not have here."""
        group, member = statement.tokens[1].name, statement.tokens[3].name
        if member not in self._created:
            return
        if group not in self._roles:
            self._skipped.append(f"{printable(member)} is no member of {printable(group)}, which this server does not have")
            return
        options = list(_membership_options(statement.tokens[4:]))
        if self._major < 16:
            for option in options:
                if option not in ("ADMIN OPTION", "ADMIN TRUE", "INHERIT TRUE", "SET TRUE"):
                    self._skipped.append(
                        f"{printable(member)} in {printable(group)} without {option}: servers before 16 lack it"
                    )
            options = ["ADMIN OPTION"] if {"ADMIN OPTION", "ADMIN TRUE"} & set(options) else []
        text = f"GRANT {_quoted(group)} TO {_quoted(member)}" + (f" WITH {', '.join(options)}" if options else "")
        self._execute(text, f"make {printable(member)} a member of {printable(group)}")

    def _parameter(self, statement: _Statement) -> None:
        """Who may set `archive_command` runs programs on the server: no role that was here before gets that, nor do all."""
        at = statement.grantee()
        if statement.tokens[at].name in self._created:
            self._optional(statement, at)
            return
        shown = printable(" ".join(token.text for token in statement.tokens))
        self._skipped.append(f"{shown}: only the roles that are made have their rights changed")

    def _optional(self, statement: _Statement, at: int) -> None:
        """What a role can do without: a setting that this server does not know, a comment. A failure is only reported.

        The role is the token at `at`, and is always quoted: there are words that stand for another role than the one so named.
        """
        name = statement.tokens[at].name
        if name not in self._created:
            return
        words = [token.text for token in statement.tokens]
        words[at] = _quoted(name)
        try:
            with self._connection.transaction():
                self._connection.execute(" ".join(words).encode())
        except psycopg.Error as error:
            what = " ".join(word for word in statement.words(5) if word)
            reason = translate(error, f"run {what} for {printable(name)}").message
            self._skipped.append(reason)

    def _execute(self, text: str, what: str) -> None:
        try:
            self._connection.execute(text.encode())
        except psycopg.Error as error:
            raise translate(error, what, "restore roles as a superuser or with CREATEROLE") from None


def _membership_options(tokens: Sequence[_Token]) -> Iterator[str]:
    """`ADMIN OPTION`, `INHERIT FALSE` and the like; GRANTED BY ends them."""
    words = [token.upper for token in tokens]
    if "GRANTED" in words:
        words = words[: words.index("GRANTED")]
    rest = [word for word in words if word and word != "WITH"]
    yield from (f"{name} {value}" for name, value in zip(rest[::2], rest[1::2], strict=False))


def _split(sql: str) -> Iterator[tuple[_Token, ...]]:
    """Statements as tokens. Of psql's own commands only \\restrict and \\unrestrict may be there, between statements."""
    tokens: list[_Token] = []
    position = 0
    while position < len(sql):
        meta = re.compile(r"\\(un)?restrict [0-9A-Za-z]+(\n|\Z)").match(sql, position)
        if meta and not tokens and (position == 0 or sql[position - 1] == "\n"):
            position = meta.end()
            continue
        match = _TOKEN.match(sql, position)
        if match is None:
            line = sql.count("\n", 0, position) + 1
            raise Tampered(f"the roles file cannot be read from line {line} on", "do not use this backup")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "end":
            if tokens:
                yield tuple(tokens)
            tokens = []
        elif kind != "space":
            tokens.append(_Token(kind, match[0]))
    if tokens:
        raise Tampered("the roles file ends in the middle of a statement", "do not use this backup")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
