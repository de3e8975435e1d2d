"""A PostgreSQL in a container, started by testcontainers, answers. The images take a minute to make where none is kept."""

from pathlib import Path

import psycopg
import pytest

from tests.parts.apt_mirror import debian_mirror
from tests.parts.containers import BUILD_DEADLINE_S, PostgresContainer
from tests.parts.process import PartFailedError


@pytest.mark.timeout(3 * BUILD_DEADLINE_S)
def test_postgresql_in_a_container_answers(postgres_container: PostgresContainer) -> None:
    with psycopg.connect(postgres_container.dsn, connect_timeout=30, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("INSERT INTO kept VALUES (1), (2)")
        assert connection.execute("SELECT sum(id) FROM kept").fetchone() == (3,)
        assert connection.execute("SELECT current_setting('server_version_num')::int / 10000").fetchone() == (15,)


def test_the_mirror_is_the_machines_own_in_either_format(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://off.invalid/debian bookworm main\n"
        "deb-src http://source.invalid/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/a.gpg] http://other.invalid/debian trixie main\n"
    )
    assert debian_mirror("bookworm", tmp_path) == "http://other.invalid/debian"
    (tmp_path / "sources.list.d" / "debian.sources").write_text(
        "Types: deb\nURIs: http://off.invalid/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n"
        "\n"
        "Types: deb deb-src\n# a comment\nURIs: https://mirror.invalid/debian\n"
        "Suites: bookworm-updates\n bookworm\nComponents: main\n"
    )
    assert debian_mirror("bookworm", tmp_path) == "https://mirror.invalid/debian"


def test_a_machine_without_a_debian_mirror_says_so(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb mirror+file:/etc/mirrors bookworm main\n")
    with pytest.raises(PartFailedError, match="name no Debian mirror"):
        debian_mirror("bookworm", tmp_path)
