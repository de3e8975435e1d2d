"""What a column holds: counted by form and key, clear text first of all."""

import pytest

from backupd.columns.forms import Form
from backupd.errors import ConfigError, SourceError
from backupd.rotation.status import look
from tests.rotation.clinic import FIRST, USERS, Clinic, seed


def test_a_column_under_one_key(sealed: Clinic) -> None:
    [status] = look("clinic", [sealed.column()], sealed.reader, sealed.trail)
    assert [(each.form, each.key_id, each.rows) for each in status.counts] == [(Form.AES_256_GCM, FIRST, USERS)]
    assert (status.hazards, status.foreign, status.key_ids) == (0, 0, (FIRST,))


def test_clear_text_and_raw_bytes_are_hazards_and_other_ciphers_are_foreign(sealed: Clinic) -> None:
    for number, value in enumerate((seed(1).encode(), bytes(range(200, 220)), b"\xc3\x0d\x04\x07" + bytes(20), b""), 1):
        sealed.database.execute("UPDATE users SET totp_sealed = %s WHERE id = %s", (value, number))
    [status] = look("clinic", [sealed.column()], sealed.reader, sealed.trail)
    rows = {each.form: each.rows for each in status.counts}
    assert rows[Form.PLAINTEXT] == rows[Form.UNKNOWN] == rows[Form.EMPTY] == rows[Form.PGCRYPTO] == 1
    assert (status.hazards, status.foreign) == (2, 2)
    assert sealed.records()[-1].details["users.totp_sealed hazards"] == 2


def test_before_a_migration_the_former_column_is_counted(in_clear: Clinic) -> None:
    [status] = look("clinic", [in_clear.column(former="plaintext")], in_clear.reader, in_clear.trail)
    assert [(each.column, each.form, each.rows) for each in status.counts] == [("totp_secret", Form.PLAINTEXT, USERS)]
    assert status.hazards == USERS


def test_a_former_column_that_is_still_encrypted_otherwise_is_not_foreign(sealed: Clinic) -> None:
    sealed.database.execute("ALTER TABLE users ALTER totp_secret TYPE text")
    from cryptography.fernet import Fernet

    token = Fernet(Fernet.generate_key()).encrypt(b"JBSWY3DPEHPK3PXP").decode()
    sealed.database.execute("UPDATE users SET totp_secret = %s WHERE id = 1", (token,))
    [status] = look("clinic", [sealed.column(former="fernet", former_keys="fernet")], sealed.reader, sealed.trail)
    assert (status.hazards, status.foreign) == (0, 0)


def test_a_column_that_is_not_there_is_an_error(sealed: Clinic) -> None:
    with pytest.raises(ConfigError, match="no column"):
        look("clinic", [sealed.column(column="elsewhere")], sealed.reader, sealed.trail)


def test_rows_that_a_policy_hides_are_not_passed_over(sealed: Clinic) -> None:
    sealed.database.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    with pytest.raises(SourceError, match="row-level security"):
        look("clinic", [sealed.column()], sealed.reader, sealed.trail)


def test_keys_that_the_keyring_has_not_are_told_where_it_may_be_read(sealed: Clinic) -> None:
    """As after the restore of a backup from before a key was retired."""
    sealed.keyring_file.write_bytes(sealed.keyring.extended("2027-1").without(FIRST).render().reveal())
    [status] = look("clinic", [sealed.column()], sealed.reader, sealed.trail)
    assert status.lacking == (FIRST,)
    assert sealed.records()[-1].details["users.totp_sealed keys lacking"] == (FIRST,)
    sealed.keyring_file.unlink()
    [status] = look("clinic", [sealed.column()], sealed.reader, sealed.trail)
    assert (status.key_ids, status.lacking) == ((FIRST,), ())
