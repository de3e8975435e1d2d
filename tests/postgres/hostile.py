"""A database whose owner puts functions and views of his own before the server's: they would run as whoever works in it."""

from __future__ import annotations

from tests.parts.postgres import Database

# Functions that backupd calls in sessions of every kind, with what they take and what they give.
_FUNCTIONS = (
    ("pg_is_in_recovery", "", "boolean"),
    ("pg_backend_pid", "", "int"),
    ("clock_timestamp", "", "timestamptz"),
    ("pg_export_snapshot", "", "text"),
    ("pg_try_advisory_lock", "int, int", "boolean"),
    ("to_regclass", "text", "regclass"),
    ("current_setting", "text", "text"),
    ("set_config", "text, text, boolean", "text"),
)
_RELATIONS = ("pg_class", "pg_roles", "pg_trigger", "pg_rewrite", "pg_inherits", "pg_stat_activity", "pg_settings")


def make_hostile(database: Database) -> None:
    """From now on each of them says in the server's log that it was used, unless its name is written in full."""
    database.execute(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;"
        "CREATE FUNCTION evil.say(what text) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE LOG 'evil in %: %', pg_catalog.current_database(), what; RETURN true; END $$"
    )
    for name, takes, gives in _FUNCTIONS:
        given = ", ".join(f"${number}" for number, _ in enumerate(takes.split(", "), 1)) if takes else ""
        database.execute(
            f"CREATE FUNCTION evil.{name}({takes}) RETURNS {gives} LANGUAGE plpgsql AS"
            f" $$ BEGIN PERFORM evil.say('{name}'); RETURN pg_catalog.{name}({given}); END $$"
        )
    for name in _RELATIONS:
        database.execute(f"CREATE VIEW evil.{name} AS SELECT * FROM pg_catalog.{name} WHERE evil.say('{name}')")
        database.execute(f"GRANT SELECT ON evil.{name} TO PUBLIC")
    database.execute(f'ALTER DATABASE "{database.name}" SET search_path = evil, pg_catalog, public')


def used(database: Database) -> list[str]:
    """The lines of the server's log that say so."""
    said = f"evil in {database.name}: "
    return [line for line in database.server.log.read_text(errors="replace").splitlines() if said in line]
