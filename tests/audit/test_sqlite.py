"""The trail in a SQLite file: the contract, and what files, locks, full disks and killed processes do to it."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from backupd.audit import Stored, TrailError
from backupd.audit.records import Operation
from backupd.audit.sqlite import APPLICATION_ID, SqliteStore
from backupd.audit.trail import Trail
from backupd.errors import Tampered
from tests.audit.contract import Place, TrailStoreContract
from tests.audit.examples import ACTOR
from tests.audit.writer import ROOT, start_writer
from tests.parts.process import short_directory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def place(path: Path) -> Place:
    return Place(
        open=lambda: SqliteStore(str(path)), spec={"sqlite": str(path)}, rows=lambda: rows(path), forge=lambda r: forge(path, r)
    )


def rows(path: Path) -> list[Stored]:
    with closing(sqlite3.connect(path)) as connection:
        return [Stored(*row) for row in connection.execute("SELECT seq, data, sha256 FROM record ORDER BY seq")]


def forge(path: Path, replaced_by: Sequence[Stored]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        [(guard,)] = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'record_is_not_deleted'").fetchall()
        connection.execute("DROP TRIGGER record_is_not_deleted")
        connection.execute("DELETE FROM record")
        connection.executemany("INSERT INTO record VALUES (?, ?, ?)", [(row.seq, row.data, row.sha256) for row in replaced_by])
        connection.execute(guard)


class TestSqlite(TrailStoreContract):
    """A SQLite file keeps the contract."""


def trail(path: Path) -> Trail:
    return Trail(SqliteStore(str(path)), ACTOR)


# ---------------------------------------------------------------------------------------------------------- the file


def test_the_file_is_made_for_its_owner_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        trail(path).event(Operation.KEYS)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_reading_makes_no_file(path: Path) -> None:
    store = SqliteStore(str(path))
    assert (store.head(), list(store.read()), store.excess_rights()) == (None, [], [])
    assert not path.exists()


def test_nothing_is_left_beside_the_file(path: Path) -> None:
    for _ in range(3):
        trail(path).event(Operation.KEYS)
    assert [each.name for each in path.parent.iterdir()] == ["audit.db"]


@pytest.mark.parametrize("name", ["a b?.db", "100%41.db", "tr#il.db", "журнал.db"])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    trail(tmp_path / name).event(Operation.KEYS)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_editing_by_honest_tools_is_refused(path: Path) -> None:
    trail(path).event(Operation.KEYS)
    with closing(sqlite3.connect(path)) as connection:
        for statement in ("UPDATE record SET sha256 = ''", "DELETE FROM record", "UPDATE record SET seq = 9"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
                connection.execute(statement)
    assert trail(path).verify().ok


@pytest.mark.parametrize(("mode", "said"), [(0o640, "read by others"), (0o604, "read by others"), (0o620, "written by others")])
def test_a_file_that_others_could_use_is_warned_about(path: Path, mode: int, said: str) -> None:
    trail(path).event(Operation.KEYS)
    path.chmod(mode)
    assert [said in line for line in SqliteStore(str(path)).excess_rights()] == [True]


def test_a_directory_that_others_could_write_is_warned_about(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    trail(directory / "audit.db").event(Operation.KEYS)
    directory.chmod(0o777)
    (line,) = SqliteStore(str(directory / "audit.db")).excess_rights()
    assert "directory" in line
    directory.chmod(0o1777)
    assert SqliteStore(str(directory / "audit.db")).excess_rights() == []


# ------------------------------------------------------------------------------------------- what goes wrong, said clearly


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrailError, match=r"directory of the trail .* does not exist") as caught:
        trail(tmp_path / "no" / "audit.db").intent(Operation.BACKUP, "clinic")
    assert "was not begun" in caught.value.message
    assert caught.value.hint


def test_a_locked_trail_is_waited_for_and_then_given_up(path: Path) -> None:
    trail(path).event(Operation.KEYS)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        store = SqliteStore(str(path), busy_timeout_s=0.05)
        with pytest.raises(TrailError, match="locked by another process"):
            store.append(lambda _: b"x")
        with pytest.raises(TrailError, match="locked by another process"):
            store.head()
    assert len(rows(path)) == 1


def test_a_write_protected_trail_is_read_and_not_written() -> None:
    with short_directory("bd-trail-") as directory:
        path = directory / "audit.db"
        trail(path).event(Operation.KEYS)
        path.chmod(0o444)
        directory.chmod(0o555)
        with unprivileged():
            assert trail(path).verify().records == 1
            with pytest.raises(TrailError, match="may not be written by this user"):
                trail(path).event(Operation.KEYS)
            with pytest.raises(TrailError, match="cannot be created: Permission denied"):
                trail(directory / "other.db").event(Operation.KEYS)
        directory.chmod(0o700)


def test_a_trail_that_may_not_be_opened_says_so() -> None:
    with short_directory("bd-trail-") as directory:
        path = directory / "audit.db"
        trail(path).event(Operation.KEYS)
        path.chmod(0o000)
        directory.chmod(0o555)
        with unprivileged(), pytest.raises(TrailError, match="cannot be opened"):
            trail(path).verify()
        directory.chmod(0o700)


def test_a_journal_that_may_not_be_read_is_told() -> None:
    with short_directory("bd-trail-") as directory:
        path = directory / "audit.db"
        trail(path).event(Operation.KEYS)
        path.chmod(0o444)
        (directory / "audit.db-journal").touch(mode=0)
        directory.chmod(0o755)
        with unprivileged(), pytest.raises(TrailError, match="cannot be looked at: Permission denied"):
            trail(path).verify()


def test_a_disk_that_takes_no_more_is_said_and_nothing_is_half_written(path: Path) -> None:
    """A limit on the size of files stands in for the disk's end: the write fails in the kernel either way."""
    trail(path).event(Operation.KEYS)
    limit = path.stat().st_size + 20_000
    program = (
        "import resource\n"
        "from backupd.audit.sqlite import SqliteStore\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"store = SqliteStore({str(path)!r})\n"
        "store.append(lambda _: b'small')\n"
        "store.append(lambda _: bytes(60_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("backupd.audit.TrailError")
    assert "the disk is full, or failing" in done.stderr
    assert [row.data for row in rows(path)][1:] == [b"small"]
    assert SqliteStore(str(path)).append(lambda _: b"next").seq == 3


def test_a_file_that_is_no_database_is_damage(path: Path) -> None:
    path.write_bytes(b"this was a trail once\n" * 100)
    for use in (lambda: trail(path).event(Operation.KEYS), lambda: trail(path).verify(), lambda: SqliteStore(str(path)).head()):
        with pytest.raises(Tampered, match="is damaged"):
            use()


def test_a_damaged_page_is_damage(path: Path) -> None:
    trail(path).event(Operation.KEYS)
    data = bytearray(path.read_bytes())
    data[4096:4196] = b"\xff" * 100  # the second page: the table's root
    path.write_bytes(data)
    with pytest.raises(Tampered, match="is damaged"):
        trail(path).verify()


def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE patients (id int)")
    before = path.read_bytes()
    with pytest.raises(TrailError, match="something else"):
        trail(path).event(Operation.KEYS)
    with pytest.raises(TrailError, match="something else"):
        trail(path).verify()
    assert path.read_bytes() == before


def test_a_trail_of_a_newer_version_is_not_touched(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE record2 (id int)")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(TrailError, match="newer than this backupd"):
        trail(path).event(Operation.KEYS)


def test_a_trail_whose_table_is_gone_is_damage(path: Path) -> None:
    trail(path).event(Operation.KEYS)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE record")
    with pytest.raises(Tampered):
        trail(path).event(Operation.KEYS)


def test_a_number_at_the_end_of_all_numbers_is_no_crash(path: Path) -> None:
    trail(path).event(Operation.KEYS)
    forge(path, [Stored(2**63 - 1, b"x", "")])
    with pytest.raises(Tampered):
        trail(path).event(Operation.KEYS)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TRIGGER t BEFORE INSERT ON record BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER t AFTER INSERT ON record BEGIN INSERT INTO record VALUES (NEW.seq + 1, NEW.data, NEW.sha256); END",
        "DROP TRIGGER record_is_not_updated",
        "DROP TRIGGER record_is_not_deleted; CREATE TRIGGER record_is_not_deleted BEFORE DELETE ON record BEGIN SELECT 1; END",
        "CREATE INDEX i ON record (sha256)",
        "CREATE TABLE other (id INTEGER)",
        "ALTER TABLE record RENAME TO kept; CREATE VIEW record AS SELECT * FROM kept LIMIT 2",
        "ALTER TABLE record RENAME TO kept; CREATE VIEW record AS WITH RECURSIVE n(seq) AS"
        " (SELECT 0 UNION ALL SELECT seq - 1 FROM n) SELECT seq, x'00' AS data, '' AS sha256 FROM n",
        "DROP TABLE record; CREATE TABLE record (seq, data, sha256)",
    ],
)
def test_a_file_with_any_other_schema_is_neither_written_nor_believed(path: Path, script: str) -> None:
    """A trigger that swallows records, a view that has no end: no operation begins, and nothing that is read looks whole."""
    run = trail(path).intent(Operation.BACKUP, "clinic")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    for use in (run.done, trail(path).head, trail(path).verify):
        with pytest.raises(Tampered, match="other tables, triggers or views than backupd made") as caught:
            use()
        assert "find out who changed it" in str(caught.value.hint)
    with pytest.raises(TrailError, match="was not begun"):
        trail(path).intent(Operation.BACKUP, "clinic")


def test_values_of_odd_types_are_read_as_they_are(path: Path) -> None:
    """As a forger leaves them who has the checks of the table ignored."""
    trail(path).event(Operation.KEYS)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("INSERT INTO record VALUES (2, 'text', x'00')")
    assert list(SqliteStore(str(path)).read(2)) == [Stored(2, b"text", "")]
    assert not trail(path).verify().ok


def test_numbers_that_do_not_rise_are_damage(path: Path) -> None:
    """Pages made by hand could lead in a circle; here the two records of one page have changed places."""
    for _ in range(2):
        trail(path).event(Operation.KEYS)
    data = bytearray(path.read_bytes())
    data[4104:4108] = data[4106:4108] + data[4104:4106]  # the second page, after its head of 8 bytes: where its records begin
    path.write_bytes(data)
    with pytest.raises(Tampered, match="do not rise"):
        trail(path).verify()


def test_a_record_that_is_larger_than_any_of_ours_is_damage(path: Path) -> None:
    """It is not taken into memory."""
    trail(path).event(Operation.KEYS)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO record VALUES (2, zeroblob(33 << 20), '')")
    with pytest.raises(Tampered, match="is damaged"):
        trail(path).verify()


def test_a_signal_ends_a_statement_that_has_no_end(path: Path) -> None:
    """SQLite's own loop runs no Python, and so no handler of a signal. This one comes when the loop has run for a while."""
    program = (
        "import signal\n"
        "from backupd.audit.sqlite import SqliteStore\n"
        "from backupd.errors import Interrupted\n"
        "def interrupt(number, frame):\n"
        "    raise Interrupted('by a signal')\n"
        "signal.signal(signal.SIGVTALRM, interrupt)\n"
        f"store = SqliteStore({str(path)!r})\n"
        "store.append(lambda _: b'x')\n"
        "try:\n"
        "    with store._open() as connection:\n"
        "        signal.setitimer(signal.ITIMER_VIRTUAL, 0.2)\n"
        "        connection.execute('WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n')\n"
        "except Interrupted:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


# ------------------------------------------------------------------------------------------------------------ killed


def test_a_writer_that_is_killed_leaves_a_whole_chain_and_all_it_had_said_was_durable(path: Path) -> None:
    """Killed after it said its n-th record, wherever in the next one that finds it; whatever was said must be there."""
    said = 0
    for stop_after in (1, 2, 3, 5, 8, 4, 1, 6, 2, 7):
        writer = start_writer({"sqlite": str(path)}, runs=1_000_000)
        assert writer.stdout is not None
        for _ in range(stop_after):
            said = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=60)
        assert writer.returncode == -signal.SIGKILL
        report = trail(path).verify()
        assert report.ok
        assert report.head is not None
        assert report.head.seq >= said
        assert report.records == report.head.seq
        assert {finding.kind for finding in report.findings} <= {"orphan", "clock"}


def test_a_writer_that_is_killed_while_it_holds_the_lock_blocks_nobody(path: Path) -> None:
    trail(path).event(Operation.KEYS)
    program = (
        "import os, signal\n"
        "from backupd.audit.sqlite import SqliteStore\n"
        f"SqliteStore({str(path)!r}).append(lambda head: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert trail(path).event(Operation.KEYS).seq == 2
    assert trail(path).verify().ok


def test_a_commit_that_was_cut_off_in_the_middle_is_rolled_back_by_whoever_comes_next(path: Path, tmp_path: Path) -> None:
    """The state that a power cut leaves: pages overwritten, and the journal that undoes it still there."""
    for _ in range(4):
        trail(path).event(Operation.KEYS)
    whole = rows(path)
    crashed = tmp_path / "crashed.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")  # a cache this small is spilled to the file before the commit
        writer.execute("BEGIN IMMEDIATE")
        for seq in range(5, 105):
            writer.execute("INSERT INTO record VALUES (?, ?, '')", (seq, bytes(3000)))
        shutil.copy(path, crashed)
        shutil.copy(f"{path}-journal", f"{crashed}-journal")
        writer.execute("ROLLBACK")
    assert crashed.stat().st_size > path.stat().st_size
    assert list(SqliteStore(str(crashed)).read()) == whole
    assert trail(crashed).event(Operation.KEYS).seq == 5
    assert trail(crashed).verify().ok


def test_a_trail_that_this_user_may_not_see_is_told_with_what_to_do(tmp_path: Path) -> None:
    """The address is right; the user is not."""
    place = tmp_path / "of_another"
    place.mkdir(mode=0)
    with unprivileged(), pytest.raises(TrailError, match="cannot be looked at") as caught:
        SqliteStore(str(place / "audit.db")).head()
    assert caught.value.hint == "run this as the user whose trail it is, or as one who may enter its directory"


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom modes bind; root writes everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
