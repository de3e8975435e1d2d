"""A database's address is taken apart without letting go of its password."""

from __future__ import annotations

import pytest

from backupd.errors import ConfigError
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import connect
from backupd.redact import Secret


def test_a_uri_and_a_key_value_string_say_the_same() -> None:
    uri = Dsn.parse("postgresql://backup_ro:s3cret@db:5433/clinic?sslmode=verify-full&sslrootcert=/ca.pem")
    pairs = Dsn.parse("host=db port=5433 user=backup_ro dbname=clinic password=s3cret sslmode=verify-full sslrootcert=/ca.pem")
    assert uri == pairs
    assert uri.describe() == "clinic on db:5433 as backup_ro"
    assert uri.password == Secret("s3cret")


def test_the_password_is_in_nothing_that_prints() -> None:
    dsn = Dsn.parse("postgresql://u:hunter2hunter2@h/d")
    shown = f"{dsn!r} {dsn} {dsn.describe()} {dsn.argument()} {dsn.parameters}"
    assert "hunter2" not in shown
    assert dsn.environment()["PGPASSWORD"] == "hunter2hunter2"


def test_a_password_from_a_custodian_takes_the_place_of_the_written_one() -> None:
    dsn = Dsn.parse("postgresql://u:old-password@h/d", Secret("new-password\n"))
    assert dsn.environment()["PGPASSWORD"] == "new-password"


@pytest.mark.parametrize("password", [b"\xff\xfe", b"pass\0word"])
def test_a_password_that_is_no_text_is_a_configuration_error(password: bytes) -> None:
    dsn = Dsn.parse("postgresql://u@/d", Secret(password))
    with pytest.raises(ConfigError, match="not a text"):
        dsn.environment()
    with pytest.raises(ConfigError, match="not a text"):
        connect(dsn, application_name="test")


def test_without_a_host_it_is_the_usual_socket() -> None:
    assert Dsn.parse("postgresql://u@/d").host == "/var/run/postgresql"


def test_tls_settings_reach_the_programs_and_what_has_no_variable_goes_into_the_argument() -> None:
    dsn = Dsn.parse("postgresql://u@h/d?sslmode=require&tcp_user_timeout=5000")
    assert dsn.environment()["PGSSLMODE"] == "require"
    assert "tcp_user_timeout=5000" in dsn.argument()
    assert "dbname=d" in dsn.argument()


def test_a_programs_environment_holds_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=evil")
    environment = Dsn.parse("postgresql://u@h/d").environment()
    assert "PGOPTIONS" not in environment
    assert environment["LC_ALL"] == "C"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("postgresql://h/d", "user"),
        ("postgresql://u@h", "database"),
        ("postgresql://u:topsecret@h:x y/d", "neither"),
        ("postgresql://u@h/d?nonsense=1", "neither"),
        ("host=h user=u dbname=d sslpassword=topsecret", "sslpassword"),
        ("service=clinic user=u dbname=d", "service"),
        ("host=h user=u dbname=d replication=database", "replication"),
    ],
)
def test_an_unusable_address_is_a_configuration_error_that_does_not_quote_it(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Dsn.parse(text)
    assert caught.value.hint
    assert "topsecret" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


def test_two_addresses_of_one_database_are_the_same_target() -> None:
    one = Dsn.parse("postgresql://a@DB/clinic")
    assert one.same_target(Dsn.parse("host=db user=b dbname=clinic"))
    assert not one.same_target(one.with_database("other"))
    assert not one.same_target(Dsn.parse("postgresql://a@db:5433/clinic"))
