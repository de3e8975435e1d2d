"""Where a database is: a DSN taken apart, and how libpq's programs are told of it.

A password is taken out of a DSN when it is parsed; from then on it is given to libpq as a parameter or to a program in its
environment, and never stands in an argument, a message or a log. psycopg is imported when a DSN is parsed, which most commands
do not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backupd.errors import ConfigError
from backupd.redact import Secret, printable

SOCKET_DIRECTORY = "/var/run/postgresql"

# Secrets that libpq takes from no environment variable, so that a program could only get them in its arguments; and
# parameters that would make the session something else than one of the named database.
_REFUSED = {
    "sslpassword": "use a client key without a passphrase, readable for backupd alone",
    "oauth_client_secret": "use a password, a client certificate or peer authentication",
    "scram_client_key": "give the password instead",
    "scram_server_key": "give the password instead",
    "service": "write host, dbname and user instead",
    "replication": "leave it out: a dump needs an ordinary session",
    "sslkeylogfile": "leave it out: it would write the session's keys to a file",
}
# A peer that vanished without a word is given up after 60 and then six times 10 seconds.
KEEPALIVES = {"keepalives": "1", "keepalives_idle": "60", "keepalives_interval": "10", "keepalives_count": "6"}


@dataclass(frozen=True, slots=True)
class Dsn:
    """A connection string taken apart. `parameters` are libpq's keywords, sorted, all but the password."""

    host: str
    port: str
    database: str
    user: str
    parameters: tuple[tuple[str, str], ...]
    password: Secret | None = field(default=None, repr=False, hash=False)  # a secret has no hash

    @classmethod
    def parse(cls, text: str, password: Secret | None = None) -> Dsn:
        """A URI or `key=value` string. `password` takes the place of one in the text.

        Without a host the server's socket is looked for in /var/run/postgresql. Raises ConfigError, never quoting the text.
        """
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        try:
            found = {key: str(value) for key, value in conninfo_to_dict(text).items() if value is not None}
        except psycopg.Error:
            raise ConfigError(
                "a database address is neither a postgresql:// URI nor libpq's key=value form",
                "write postgresql://USER@HOST/DATABASE; percent-encode @ / : and % in its parts",
            ) from None  # the cause quotes the text, and that may hold a password
        for keyword, hint in _REFUSED.items():
            if keyword in found:
                raise ConfigError(f"a database address may not set {keyword}", hint)
        written = found.pop("password", None)
        for keyword, what in (("user", "user"), ("dbname", "database")):
            if not found.get(keyword):
                raise ConfigError(f"a database address names no {what}", "write postgresql://USER@HOST/DATABASE")
        if not found.get("host") and not found.get("hostaddr"):
            found["host"] = SOCKET_DIRECTORY
        found.setdefault("port", "5432")
        return cls(
            host=found.get("host") or found["hostaddr"],
            port=found["port"],
            database=found["dbname"],
            user=found["user"],
            parameters=tuple(sorted(found.items())),
            password=password or (Secret(written, "database password") if written else None),
        )

    def describe(self) -> str:
        """For people: `clinic on db:5432 as backup_ro`."""
        return printable(f"{self.database} on {self.host}:{self.port} as {self.user}")

    def with_database(self, name: str) -> Dsn:
        """The same server and role, another database."""
        parameters = tuple(sorted((dict(self.parameters) | {"dbname": name}).items()))
        return Dsn(self.host, self.port, name, self.user, parameters, self.password)

    def same_target(self, other: Dsn) -> bool:
        """Whether both name one database by one address. Two names of one server are not seen: `Server` tells those."""
        mine, theirs = ((dsn.host.lower(), dsn.port, dsn.database) for dsn in (self, other))
        return mine == theirs

    def environment(self, *, application_name: str = "backupd") -> dict[str, str]:
        """The whole environment for a libpq program that gets `argument()` as its --dbname. It holds the password.

        Messages are asked for in English, so that they can be understood by program.
        """
        given = dict(self.parameters) | {"application_name": application_name}
        given.setdefault("connect_timeout", "10")
        names = environment_names()
        found = {names[keyword]: value for keyword, value in given.items() if keyword in names}
        if self.password is not None:
            found["PGPASSWORD"] = password_text(self.password)
        return found | {"LC_ALL": "C"}

    def argument(self) -> str:
        """The connection string for a program's --dbname: the database, and what libpq reads from no environment variable."""
        from psycopg.conninfo import make_conninfo

        names = environment_names()
        rest = {keyword: value for keyword, value in self.parameters if keyword not in names}
        return make_conninfo("", dbname=self.database, **(KEEPALIVES | rest))


def password_text(password: Secret) -> str:
    """The password as libpq takes it. Raises ConfigError for bytes that no PostgreSQL password can be."""
    try:
        text = password.text()
    except ValueError:
        text = "\0"
    if "\0" in text:
        raise ConfigError("the database password is not a text", "is it read from the right file?")
    return text


def environment_names() -> Mapping[str, str]:
    """libpq's environment variable for each of its keywords that has one."""
    from psycopg import pq

    options = pq.Conninfo.get_defaults()
    return {option.keyword.decode(): option.envvar.decode() for option in options if option.envvar}
