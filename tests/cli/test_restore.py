"""`backupd restore`, as a process, into real databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backupd.errors import Interrupted
from backupd.manifest import Manifest, Table
from backupd.postgres.dsn import Dsn
from backupd.restore import Target, restore
from tests.e2e.rig import Pairs, Rig, file_store, rigged
from tests.installation import Installation
from tests.parts.postgres import Database, PostgresServer


def test_a_backup_comes_back_whole(lived_in: Installation) -> None:
    """Every row, and every second factor byte for byte; the trail tells where to."""
    with lived_in.empty_database() as target:
        done = lived_in.run(*lived_in.restore_arguments(target, "--json"), env=lived_in.superuser).ok().json
        assert done["target"].startswith(f"{target.name} on ")
        for query in ("SELECT * FROM users ORDER BY id", "SELECT * FROM appointments ORDER BY id"):
            assert target.execute(query) == lived_in.database.execute(query)
    intent, outcome = lived_in.records()[-2:]
    assert (intent["operation"], intent["phase"], outcome["phase"]) == ("restore", "intent", "done")
    assert outcome["backup_id"] == done["backup_id"]
    assert intent["details"]["target"] == done["target"]


def test_a_role_of_the_source_moves_no_cursor(clinic: Installation) -> None:
    """Whoever may make roles there chooses their names."""
    clinic.database.execute('CREATE ROLE "\x1b]0;all is well\x07"')
    try:
        clinic.back_up()
        with clinic.empty_database() as target:
            done = clinic.run(*clinic.restore_arguments(target), env=clinic.superuser).ok()
    finally:
        clinic.database.execute('DROP ROLE "\x1b]0;all is well\x07"')
    assert "\\x1b]0;all is well\\x07" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_an_older_backup_can_be_named(lived_in: Installation) -> None:
    """The newest is only the default."""
    oldest = lived_in.run("list", "--json").ok().json[0]["backup_id"]
    with lived_in.empty_database() as target:
        arguments = lived_in.restore_arguments(target, "--backup", oldest, "--json")
        assert lived_in.run(*arguments, env=lived_in.superuser).ok().json["backup_id"] == oldest


def test_a_target_that_is_not_empty_is_refused(lived_in: Installation) -> None:
    """Exit code 4, recorded as refused, and what it holds is as it was."""
    with lived_in.empty_database() as target:
        target.execute("CREATE TABLE precious AS SELECT 1 AS value")
        done = lived_in.run(*lived_in.restore_arguments(target, "--json"), env=lived_in.superuser)
        assert (done.code, done.error["exit_code"]) == (4, 4)
        assert "not empty" in done.error["error"]
        assert target.execute("SELECT value FROM precious") == [(1,)]
    assert lived_in.records()[-1]["phase"] == "refused"


def test_the_source_itself_is_refused(lived_in: Installation) -> None:
    """Even if somebody emptied it: a restore goes beside the source, never over it."""
    done = lived_in.run(*lived_in.restore_arguments(lived_in.database, "--json"), env=lived_in.superuser)
    assert done.code == 4
    assert "the target is the source itself" in done.error["error"]
    assert done.error["hint"]
    assert lived_in.records()[-1]["phase"] == "refused"


def test_a_password_on_the_command_line_is_refused(lived_in: Installation) -> None:
    """Every user of the host could read it; it is not echoed either."""
    password = "correct-horse-battery"  # not a planted one, which no test may put into arguments
    done = lived_in.run("restore", "clinic", "--to", f"postgresql://postgres:{password}@127.0.0.1/x", "--json")
    assert done.code == 2
    assert "holds a password" in done.error["error"]
    assert password not in done.stderr


def test_a_key_that_is_no_recipient_opens_nothing(lived_in: Installation, tmp_path: Path) -> None:
    """The signing key is a secret key too, and cannot read backups."""
    key = lived_in.custody / "signing.sec.asc"
    with lived_in.empty_database() as target:
        arguments = [str(key) if each == str(lived_in.secret_key) else each for each in lived_in.restore_arguments(target)]
        done = lived_in.run(*arguments, "--json", env=lived_in.superuser)
        assert done.code == 3
        for pair in (lived_in.secrets.operations, lived_in.secrets.escrow):
            assert pair.fingerprint in done.error["error"], "a subkey's id says nothing to who keeps keys"
        assert target.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    assert lived_in.records()[-1]["phase"] == "failed"


def test_a_backup_that_does_not_exist_is_told(lived_in: Installation) -> None:
    """An id that nobody made."""
    with lived_in.empty_database() as target:
        arguments = lived_in.restore_arguments(target, "--backup", "20200101T000000Z-abcdef", "--json")
        done = lived_in.run(*arguments, env=lived_in.superuser)
    assert done.code == 1
    assert done.error["error"] == "there is no backup 20200101T000000Z-abcdef of clinic"
    assert done.error["hint"] == "`backupd list` shows what there is"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A store, keys and a trail."""
    directory = tmp_path_factory.mktemp("rig")
    with rigged(file_store(directory), Pairs.generate(), directory) as rig:
        yield rig


@pytest.fixture(scope="module")
def manifest(rig: Rig, postgres17: PostgresServer) -> Iterator[Manifest]:
    """A backup of one table, without roles."""
    source = Database(postgres17, postgres17.create_database())
    source.execute("CREATE TABLE kept AS SELECT 1 AS value")
    yield replace(made := rig.back_up(source.dsn), artifacts=made.artifacts[:1])
    postgres17.drop_database(source.name)


class InterruptedWhenRead(dict[str, Table]):
    """Expectations, and a signal when they are first looked at: it comes between the restore and the comparison."""

    def __contains__(self, _: object) -> bool:
        raise Interrupted("interrupted by SIGTERM")

    def __iter__(self) -> Iterator[str]:
        raise Interrupted("interrupted by SIGTERM")

    items = keys = values = __iter__  # type: ignore[assignment]


def interrupted(rig: Rig, manifest: Manifest, target: Database, *, at_step: int = 0) -> str:
    """The hint of a restore that a signal ends, at this call of its progress."""
    steps = itertools.count(1)

    def progress(_: int) -> None:
        if next(steps) == at_step:
            raise Interrupted("interrupted by SIGTERM")

    with pytest.raises(Interrupted) as caught:
        restore(manifest, rig.store, rig.reading, Target(Dsn.parse(target.dsn)), rig.trail, progress)
    return str(caught.value.hint)


def test_an_interrupted_transaction_leaves_an_empty_target(rig: Rig, manifest: Manifest, database17: Database) -> None:
    """It is told so, with what to do if the signal came while it was being committed."""
    assert "in one transaction: the target is empty, unless" in interrupted(rig, manifest, database17, at_step=1)
    assert database17.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_what_was_not_compared_is_to_be_dropped(rig: Rig, manifest: Manifest, database17: Database) -> None:
    """The data is there, and nobody has shown that it is what was backed up."""
    unlooked = replace(manifest, expect=replace(manifest.expect, tables=InterruptedWhenRead(manifest.expect.tables)))
    assert interrupted(rig, unlooked, database17).endswith("drop the target database before you try again")
    assert database17.execute("SELECT value FROM kept") == [(1,)]


def test_a_part_without_a_transaction_is_to_be_dropped(rig: Rig, manifest: Manifest, database15: Database) -> None:
    """Programs of 17 cannot fill an older server all or nothing."""
    assert interrupted(rig, manifest, database15, at_step=1).startswith("the target holds a part of the data: drop")
