"""Installed programs are found, told apart and chosen; nothing here needs a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupd.errors import ConfigError
from backupd.postgres import clients
from backupd.postgres.clients import Clients
from tests.parts.postgres import postgres_bin


def _clients(major: int, minor: int = 0, *, zstd: bool = True, serves: bool = True) -> Clients:
    return Clients(Path(f"/opt/pg{major}"), (major, minor), zstd, serves)


def test_debians_and_the_wheels_programs_are_found_without_being_named() -> None:
    found = {each.directory.resolve() for each in clients.find()}
    assert {postgres_bin(15).resolve(), postgres_bin(17).resolve()} <= found


def test_a_place_on_path_that_cannot_be_looked_into_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two ways for a system to say no: no right (unless we are root), and a name that is too long."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pg_dump").symlink_to(postgres_bin(17) / "pg_dump")
    monkeypatch.setenv("PATH", f"{closed}:/{'x' * 300}:{linked}")
    assert postgres_bin(17).resolve() in {each.directory.resolve() for each in clients.find()}


def test_versions_and_zstd_are_those_of_the_programs(programs: dict[int, Clients]) -> None:
    assert programs[15].major == 15
    assert programs[17].major == 17
    assert not programs[15].zstd
    assert programs[17].zstd
    assert all(each.serves for each in programs.values())
    assert programs[17].release.startswith("17.")


def test_a_configured_directory_is_the_only_one_and_must_hold_programs(tmp_path: Path) -> None:
    mirror = tmp_path / "bin"
    mirror.symlink_to(postgres_bin(17))
    assert [each.directory for each in clients.find([mirror])] == [mirror]
    with pytest.raises(ConfigError, match="holds no PostgreSQL programs"):
        clients.find([tmp_path])


def test_what_cannot_say_its_version_is_no_program(tmp_path: Path) -> None:
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigError, match="holds no PostgreSQL programs"):
        clients.find([tmp_path])


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no psql"):
        Clients(tmp_path, (17, 0), True, True).program("psql")


def test_the_newest_that_is_not_older_than_the_server_dumps_it() -> None:
    found = [_clients(17), _clients(15), _clients(16)]
    assert clients.choose(found, (15, 3)).major == 17
    assert clients.choose(found, (17, 0)).major == 17
    with pytest.raises(
        ConfigError, match=r"no installed pg_dump can dump a PostgreSQL 18 server: 17\.0 in /opt/pg17, 15\.0"
    ) as caught:
        clients.choose(found, (18, 0))
    assert caught.value.hint == "install postgresql-client-18"
    with pytest.raises(ConfigError, match="there is none"):
        clients.choose([], (15, 3))


def test_programs_released_before_the_server_are_taken_only_if_there_are_no_others() -> None:
    """A pg_dump that does not know pg_attver writes it into the dump, and no older server takes that."""
    old, new = _clients(17, 10), _clients(15, 20)
    assert clients.choose([old, new], (15, 20)) is new
    assert clients.choose([old, new], (15, 19)) is old
    assert clients.choose([old, new, _clients(18, 7)], (15, 20)).major == 18
    assert clients.choose([old], (15, 20)) is old
    assert "pg_attver" in (old.behind((15, 20)) or "")
    assert new.behind((15, 20)) is None
    assert _clients(19, 0).behind((15, 20)) is None
    assert old.behind((17, 10)) is None


@pytest.mark.parametrize(
    ("dumped_by", "target", "chosen"), [(15, 15, 15), (15, 17, 17), (17, 15, 17), (16, 15, 16), (15, 16, 16), (15, 18, 17)]
)
def test_a_restore_uses_programs_that_can_read_the_dump_and_suit_the_target(dumped_by: int, target: int, chosen: int) -> None:
    assert clients.choose_restorer([_clients(15), _clients(16), _clients(17)], dumped_by, target).major == chosen


def test_a_dump_newer_than_every_program_cannot_be_restored() -> None:
    with pytest.raises(ConfigError, match="no installed pg_restore can read the dumps of PostgreSQL 18"):
        clients.choose_restorer([_clients(17)], 18, 18)


def test_a_scratch_server_is_of_the_sources_major_if_there_is_one() -> None:
    found = [_clients(17, 1), _clients(17, 3), _clients(15, serves=False), _clients(16, 2), _clients(18)]
    assert clients.choose_server(found, 16).version == (16, 2)
    assert clients.choose_server(found, 15).version == (16, 2)
    assert clients.choose_server(found, 17).version == (17, 3)
    with pytest.raises(ConfigError, match="no PostgreSQL server of major 19 or later is installed"):
        clients.choose_server(found, 19)


def test_known_holes_are_said_with_the_version_that_mends_them() -> None:
    assert _clients(17, 12).known_holes() == []
    assert _clients(19, 0).known_holes() == []
    assert [hole for hole in _clients(17, 11).known_holes() if "CVE-2026-116314" in hole and "update to 17.12" in hole]
    assert len(_clients(17, 5).known_holes()) == 3
    assert all("no longer mended" in hole for hole in _clients(12, 22).known_holes())
