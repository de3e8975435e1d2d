"""The dump of a clinic whose secrets are encrypted holds none of them; one that does is caught; and a blind scan says so."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from backupd.checks import Canary, Outcome, Sealed
from backupd.checks.leaks import Leaks, Markers
from backupd.checks.scanner import Hit, Wanted
from backupd.checks.table import run
from backupd.custody.file import PrivateFile
from backupd.errors import StoreUnavailable, Tampered
from backupd.manifest import Artifact, Kind, Level, Part
from backupd.postgres.session import Connection
from tests.checks.clinic import NO_DIGEST, Clinic, drilled

CHECK = Leaks()


def test_a_dump_of_encrypted_columns_passes(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    canary = Canary("7", untouched.keep("canary", untouched.seeds[7].encode()))
    users = replace(untouched.users, canary=canary)
    finding = run(CHECK, drilled(untouched, steady, sealed, users, untouched.nurses, untouched.laboratory))
    assert finding.outcome is Outcome.PASS, finding.detail
    assert finding.figures["seeds_known"] == 13 + 5 + 4 + 1
    assert finding.figures["rows_scanned"] == 14 + 5 + 4 + 500
    assert finding.figures["tables_scanned"] == 4
    assert finding.figures["markers_planted"] == 14


def test_a_seed_in_another_table_fails_and_the_table_is_named(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """Lower case, so that its shape alone would not tell."""
    clinic.execute("UPDATE notes SET note = %s WHERE id = 400", (f"otp {clinic.seeds[3].lower()} printed",))
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert "public.notes (1)" in finding.detail
    assert finding.figures["hits: known seed"] == 1
    assert clinic.seeds[3].lower() not in str(finding)


def test_a_row_of_the_column_in_clear_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """In BYTEA a dump shows it as hex."""
    clinic.execute("UPDATE users SET totp_secret = convert_to(%s, 'UTF8') WHERE id = 3", (clinic.seeds[3],))
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert "public.users (1)" in finding.detail


def test_a_column_key_in_a_table_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    key = clinic.keyring.keys["2025-1"].reveal()
    clinic.execute("UPDATE notes SET note = %s WHERE id = 1", ("KEYS=" + b64encode(key).decode(),))
    clinic.execute("UPDATE notes SET note = %s WHERE id = 2", (str({"key": key.hex()}),))
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert finding.figures["hits: known key"] == 2


def test_a_fernet_key_and_a_passphrase_in_clear_fail(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.execute("UPDATE notes SET note = %s WHERE id = 1", (clinic.fernet_keys[1].decode(),))
    clinic.execute("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'correct horse battery staple' $$")
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.nurses, clinic.laboratory))
    assert finding.figures["hits: known key"] == 2
    assert "(outside of tables) (1)" in finding.detail


@pytest.mark.parametrize(
    "value",
    [
        "convert_to('{{\"otp\": \"' || '{seed}' || '\"}}', 'UTF8')",
        "lo_from_bytea(0, convert_to('otp={seed};', 'UTF8'))",
        "encode(convert_to('otp={seed};', 'UTF8'), 'base64')",
        "'seed1{seed}s'",
    ],
    ids=["bytea", "large object", "base64", "glued"],
)
def test_a_seed_inside_of_another_value_fails(clinic: Clinic, connection: Connection, sealed: Sealed, value: str) -> None:
    """Of 16 bytes, so that its base64 stays on one line."""
    clinic.execute(f"CREATE TABLE copies AS SELECT {value.format(seed=clinic.seeds[1].lower())} AS value")
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert finding.figures["hits: known seed"] == 1


def test_a_pass_names_what_was_not_looked_into(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed, untouched.users))
    assert finding.outcome is Outcome.PASS
    assert "not looked into: values that are compressed, encrypted or encoded twice" in finding.detail


def test_a_seed_that_no_column_knows_fails_by_its_shape(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.execute("CREATE TABLE legacy AS SELECT 1 AS id, 'JBSWY3DPEHPK3PXPGEZDGNBVGY3TQOJQ' AS otp")
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert finding.figures["hits: base32 secret by its shape"] == 1


def test_a_canary_in_clear_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """Also when the canary account itself was deleted, and its seed is known from its custodian alone."""
    kept = clinic.keep("canary", clinic.seeds[7].encode())
    clinic.execute("DELETE FROM users WHERE id = 7")
    clinic.execute("UPDATE notes SET note = %s WHERE id = 1", (clinic.seeds[7].lower(),))
    users = replace(clinic.users, canary=Canary("7", kept))
    assert run(CHECK, drilled(clinic, connection, sealed, users)).outcome is Outcome.FAIL


def test_a_scan_of_the_archive_as_it_is_proves_nothing(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """It is compressed: the seed in clear that is in it would never be found, and so must not pass."""
    clinic.execute("UPDATE notes SET note = %s WHERE id = 400", (clinic.seeds[3],))
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users, dumped_as="custom"))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "the scan is blind" in finding.detail


def test_a_scan_that_sees_fewer_rows_than_the_backup_holds_proves_nothing(
    clinic: Clinic, connection: Connection, sealed: Sealed
) -> None:
    whole = drilled(clinic, connection, sealed, clinic.users)
    clinic.execute("DELETE FROM notes WHERE id = 1")
    finding = run(CHECK, whole)
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "it saw 522 rows, and the backup holds 523" in finding.detail


def test_without_the_column_keys_nothing_is_proved(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    down = replace(untouched.users, keys=PrivateFile(str(untouched.directory / "nothing")))
    finding = run(CHECK, drilled(untouched, steady, sealed, down))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "the seeds of users.totp_secret were not looked for" in finding.detail


def test_a_shape_in_clear_fails_even_without_the_column_keys(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.execute("UPDATE notes SET note = 'JBSWY3DPEHPK3PXPGEZDGNBVGY3TQOJQ' WHERE id = 1")
    down = replace(clinic.users, keys=PrivateFile(str(clinic.directory / "nothing")))
    assert run(CHECK, drilled(clinic, connection, sealed, down)).outcome is Outcome.FAIL


def test_the_roles_file_is_scanned_too(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    whole = drilled(untouched, steady, sealed, untouched.users)
    roles = Artifact("globals.sql.gpg", Kind.GLOBALS, 100, NO_DIGEST, (Part(100, NO_DIGEST),))
    manifest = replace(whole.manifest, artifacts=(*whole.manifest.artifacts, roles))
    comment = f"COMMENT ON ROLE ada IS 'otp {untouched.seeds[2].lower()}';\n".encode()

    @contextmanager
    def unsealed(kind: Kind) -> Iterator[Iterator[bytes]]:
        if kind is Kind.GLOBALS:
            yield iter([comment[:30], comment[30:]])
        else:
            with whole.unsealed(kind) as chunks:
                yield chunks

    finding = run(CHECK, replace(whole, manifest=manifest, unsealed=unsealed))
    assert finding.outcome is Outcome.FAIL
    assert finding.figures["markers_planted"] == 28


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Tampered("part 2 is not what its manifest says"), Outcome.FAIL),
        (StoreUnavailable("the store does not answer"), Outcome.COULD_NOT_VERIFY),
    ],
)
def test_a_stream_that_breaks_off_is_no_pass(
    untouched: Clinic, steady: Connection, sealed: Sealed, error: Exception, outcome: Outcome
) -> None:
    """It broke off at its very end, when everything had been seen: what was seen does not count."""
    whole = drilled(untouched, steady, sealed, untouched.users)

    @contextmanager
    def unsealed(kind: Kind) -> Iterator[Iterator[bytes]]:
        with whole.unsealed(kind) as chunks:
            yield chunks
            raise error

    assert run(CHECK, replace(whole, unsealed=unsealed)).outcome is outcome


def test_a_backup_without_counts_is_scanned_all_the_same(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed, untouched.users, level=Level.OFF))
    assert finding.outcome is Outcome.PASS


def test_the_control_finds_every_marker_in_any_text() -> None:
    wanted = Wanted()
    markers = Markers.plant(wanted)
    assert markers.missed(wanted, b"") == 0
    assert markers.missed(wanted, b"COPY public.notes (id) FROM stdin;\n" + b"1\tMFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U\n" * 200) == 0


def test_the_control_misses_what_a_scan_does_not_look_for() -> None:
    """A scan without the known markers is blind to all spellings but the shapes: one is unknown, one is plain base32."""
    markers = Markers.plant(Wanted())
    assert markers.missed(Wanted(), b"") == len(markers.spellings) - 1
    assert {hit for hit, _ in markers.spellings} == set(Hit)
