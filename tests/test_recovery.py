"""The recovery by hand that docs/recover-without-backupd.md describes: its commands, as they stand, bring a database back."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.installation import CHECKOUT, SOURCE, Installation, installed, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer, postgres_bin, running_postgres

DOCUMENT = (CHECKOUT / "docs" / "recover-without-backupd.md").read_text()
STEPS, TROUBLES = DOCUMENT.split("\n# If something is wrong\n")

# What a restore may get wrong, owned by a role that the new server does not have.
MORE = """
CREATE TYPE mood AS ENUM ('sad', 'content');
CREATE TABLE "Ärzte" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, mood mood);
INSERT INTO "Ärzte" (name, mood) SELECT 'Dr. ' || n, CASE WHEN n % 2 = 0 THEN 'sad'::mood END FROM generate_series(1, 500) AS n;
CREATE TABLE scans (id integer PRIMARY KEY, scan bytea NOT NULL);
INSERT INTO scans SELECT n, (SELECT string_agg(sha256(int4send(n * 1000 + m)), '') FROM generate_series(1, 1000) AS m)
  FROM generate_series(1, 300) AS n;
CREATE SEQUENCE invoices START 1000;
SELECT nextval('invoices'), lo_from_bytea(4711, 'a large object');
GRANT SELECT ON LARGE OBJECT 4711 TO {role};
ALTER TABLE scans OWNER TO {role};
"""
OTHER_ROLES = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND oid <> 10"


def blocks(text: str) -> str:
    """The commands of a text, one after another."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def shell(script: str, environment: Mapping[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run commands as somebody who types them, and stops at the first that fails."""
    return subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def clinic(postgres17: PostgresServer, planted: Planted, tmp_path: Path) -> Iterator[Installation]:
    """An installation with a little more in its database."""
    (tmp_path / "clinic").mkdir()
    with installed(tmp_path / "clinic", postgres17, plant(planted)) as clinic:
        clinic.database.execute(MORE.format(role=clinic.role))
        yield clinic


@pytest.fixture(scope="module")
def spare() -> Iterator[PostgresServer]:
    """A server that has nothing of any clinic's, not even its roles."""
    with running_postgres(17) as server:
        yield server


@pytest.fixture
def night(clinic: Installation, spare: PostgresServer, planted: Planted, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables that the engineer sets, for the newest backup. Afterwards the server is as empty as before."""
    planted.register(spare.password, "superuser's password")
    work = tmp_path / "work"
    work.mkdir()
    backup_id = clinic.back_up()
    yield {
        "PATH": f"{postgres_bin(17)}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TMPDIR": str(work),
        "LC_ALL": "C.UTF-8",
        "STORE": str(clinic.store),
        "SOURCE": SOURCE,
        "BACKUP": backup_id,
        "SIGNING_KEY": str(clinic.keys / "signing.pub.asc"),
        "SIGNER": clinic.secrets.signing.fingerprint,
        "SECRET_KEY": str(clinic.custody / "escrow.sec.asc"),
        "SERVER": f"host={spare.host} port={spare.port}",
        "DATABASE": f"{clinic.database.name}_restored",
        "PGPASSWORD": spare.password,
    }
    spare.drop_database(f"{clinic.database.name}_restored")
    for (role,) in spare.execute(OTHER_ROLES, database="postgres"):
        spare.execute(f'DROP ROLE "{role}"', database="postgres")


def plain(server: PostgresServer, database: str) -> str:
    """Everything in a database as pg_dump writes it in SQL, less the key that differs between any two runs."""
    done = subprocess.run(
        [str(postgres_bin(17) / "pg_dump"), f"--host={server.host}", f"--port={server.port}", "--username=postgres", database],
        env={"PATH": os.environ["PATH"], "PGPASSWORD": server.password, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return re.sub(r"(?m)^\\(un)?restrict .*\n", "", done.stdout)


def test_the_commands_bring_the_database_back_byte_for_byte(
    clinic: Installation, spare: PostgresServer, night: dict[str, str], planted: Planted, tmp_path: Path
) -> None:
    """With the escrow's key, into a server that has nothing; no row and no key is ever on a disk of the engineer's."""
    note = planted.passphrase()
    clinic.database.execute('INSERT INTO appointments (user_id, "when", note) VALUES (1, now(), %s)', (note,))
    night["BACKUP"] = clinic.back_up()
    done = shell(blocks(STEPS), night, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"restored {night['BACKUP']} into {night['DATABASE']}" in done.stdout
    assert plain(spare, night["DATABASE"]) == plain(clinic.database.server, clinic.database.name)
    assert note in plain(spare, night["DATABASE"])
    assert spare.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'scans'", database=night["DATABASE"]) == [
        (clinic.role,)
    ]
    with spare.connect(night["DATABASE"], clinic.role, clinic.secrets.password) as connection:
        assert connection.execute("SELECT count(*) FROM scans").fetchone() == (300,)
    planted.watch(tmp_path / "work")
    assert any((tmp_path / "work").rglob("database.dump.gpg"))


def test_they_stop_before_the_roles_of_a_server_in_use_are_changed(
    clinic: Installation, spare: PostgresServer, night: dict[str, str], tmp_path: Path
) -> None:
    """SERVER is 127.0.0.1 unless it is set, and that may be the very server whose password was changed after a theft."""
    spare.create_role(name=clinic.role)
    before = spare.execute("SELECT rolpassword FROM pg_authid ORDER BY oid", database="postgres")
    done = shell(blocks(STEPS), night, tmp_path)
    assert done.returncode == 1
    assert f"NOT an empty server, it has the roles {clinic.role}" in done.stderr
    assert spare.execute("SELECT rolpassword FROM pg_authid ORDER BY oid", database="postgres") == before
    assert not any((tmp_path / "work").rglob("roles.status"))


@pytest.mark.parametrize("name", ["database.dump.gpg", "globals.sql.gpg", "manifest.asc"])
def test_they_stop_before_anything_is_decrypted_when_something_is_changed(
    clinic: Installation, spare: PostgresServer, night: dict[str, str], name: str, tmp_path: Path
) -> None:
    assert clinic.store is not None
    path = clinic.store / SOURCE / night["BACKUP"] / name
    data = path.read_bytes()
    path.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    assert shell(blocks(STEPS), night, tmp_path).returncode != 0
    assert not any((tmp_path / "work").rglob("*roles.status"))
    assert (night["DATABASE"],) not in spare.execute("SELECT datname FROM pg_database", database="postgres")


def test_they_stop_at_a_manifest_that_another_key_signed(clinic: Installation, night: dict[str, str], tmp_path: Path) -> None:
    """Even one whose key the engineer has: the fingerprint decides."""
    done = shell(blocks(STEPS), night | {"SIGNER": clinic.secrets.operations.fingerprint}, tmp_path)
    assert done.returncode != 0
    assert f"NOT signed by {clinic.secrets.operations.fingerprint}" in done.stderr
    assert not any((tmp_path / "work").rglob("SHA256SUMS"))


def test_they_stop_at_a_manifest_in_anothers_place(clinic: Installation, night: dict[str, str], tmp_path: Path) -> None:
    assert clinic.store is not None
    later = "20991231T000000Z-000000"
    (clinic.store / SOURCE / night["BACKUP"]).rename(clinic.store / SOURCE / later)
    done = shell(blocks(STEPS), night | {"BACKUP": later}, tmp_path)
    assert done.returncode != 0
    assert "somebody put it here" in done.stderr


def test_the_damaged_parts_are_found(clinic: Installation, night: dict[str, str], tmp_path: Path) -> None:
    """By the commands for that case, in a backup of two parts of which the second one is damaged."""
    assert clinic.store is not None
    place = clinic.store / SOURCE / night["BACKUP"]
    path = place / "database.dump.gpg"
    data = path.read_bytes()
    at = (8 << 20) + 1000
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] + b"more")
    before = blocks(STEPS.split("\n## 5. ")[0])
    done = shell(before + blocks(TROUBLES), night, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"database.dump.gpg: part 2, bytes {8 << 20} to {len(data) - 1}\n" in done.stdout
    assert f"database.dump.gpg: longer than {len(data)} bytes\n" in done.stdout
    assert "part 1" not in done.stdout
    assert "globals" not in done.stdout.partition("database.dump.gpg: part")[2]


def test_a_row_that_is_missing_shows_in_the_counts(clinic: Installation, night: dict[str, str], tmp_path: Path) -> None:
    before, counting = STEPS.split("\n## 8. ")
    lose = """psql --quiet --dbname="$SERVER dbname=$DATABASE" --command='DELETE FROM scans WHERE id = 7'\n"""
    done = shell(blocks(before) + lose + blocks(counting), night, tmp_path)
    assert done.returncode == 1
    assert "restored" not in done.stdout
    done = shell("cat work/*/counts", night, tmp_path)
    assert done.stdout.splitlines().count("f") == 1


def test_no_key_stays_behind(clinic: Installation, night: dict[str, str], tmp_path: Path) -> None:
    """Whether the commands come to their end or not, the private directory in memory is gone."""
    said = '\necho "home: $GNUPGHOME"\n'
    for more in ("", "false\n"):
        done = shell(blocks(STEPS.split("\n## 4. ")[0]) + said + more, night, tmp_path)
        assert done.returncode == (1 if more else 0)
        assert not Path(done.stdout.splitlines()[-1].removeprefix("home: ")).exists()
