"""A configuration is read whole or not at all, and everything that is wrong with it is told at once, in plain words."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd import manifest
from backupd.config import load
from backupd.config.models import MOST_RECIPIENTS, SOURCE_NAME, Config
from backupd.config.problems import InvalidConfig, Problem
from backupd.errors import ConfigError
from backupd.redact import scrub

ROOT = Path(__file__).parent.parent

VALID: dict[str, Any] = {
    "store": {"url": "s3://bucket/prefix", "lock": {"mode": "compliance", "days": 35}},
    "encryption": {"recipients": ["keys/a.asc", "/keys/b.asc"], "signing_key": {"credential": "signing"}},
    "audit": {"url": "sqlite:////var/lib/backupd/audit.db"},
    "sources": {
        "clinic": {
            "dsn": "postgresql://backup_ro@db/clinic",
            "password": {"file": "password"},
            "schedule": "0 2 * * *",
            "retention": {"daily": 7},
            "totp": [
                {
                    "table": "users",
                    "id_column": "id",
                    "column": "totp_secret",
                    "enrolled": "is_on",
                    "cipher": "fernet",
                    "keys": {"env": "KEYS", "field": "totp"},
                    "canary": {"id": 7, "secret": {"file": "/canary"}},
                }
            ],
            "sql": [{"name": "staff", "query": "select 1, 'a'", "expect": [[1, "a", True, 2.5]]}],
        }
    },
    "drill": {"schedule": "0 3 1 1,4,7,10 *", "secret_key": {"credential": "ops"}},
    "limits": {"upload_concurrency": 3},
}


def toml(value: object) -> str:
    """A value as inline TOML; JSON's strings, numbers and lists are TOML already."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write(path: Path, tables: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(key)} = {toml(each)}\n" for key, each in tables.items()), encoding="utf-8")
    return path


def changed(place: str, value: object) -> dict[str, Any]:
    """VALID, with another value at `sources.clinic.dsn`; a number in the place is an index."""
    tables: Any = copy.deepcopy(VALID)
    found = tables
    *way, last = (int(step) if step.isdigit() else step for step in place.split("."))
    for step in way:
        found = found[step]
    if value is None:
        del found[last]
    else:
        found[last] = value
    return dict(tables)


def problems(path: Path, tables: dict[str, Any]) -> tuple[Problem, ...]:
    with pytest.raises(InvalidConfig) as caught:
        load(write(path, tables))
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "backupd.toml"


# -------------------------------------------------------------------------------------------------------- what is valid


def test_the_example_is_valid() -> None:
    """The file that users start from loads as it stands."""
    config = load(ROOT / "config" / "backupd.toml")
    assert list(config.sources) == ["clinic"]
    assert config.drill.max_age_days == 92


def test_what_was_read_is_typed_frozen_and_complete(file: Path) -> None:
    config = load(write(file, VALID))
    source = config.sources["clinic"]
    assert config.store.lock is not None
    assert (config.store.scheme, config.store.lock.days) == ("s3", 35)
    assert source.totp[0].canary is not None
    assert source.totp[0].canary.id == "7"
    assert source.sql[0].expect == ((1, "a", True, 2.5),)
    assert (source.expectations, source.compression, source.globals, source.lock_timeout_s) == ("rows", "auto", True, 30)
    assert (config.limits.upload_concurrency, config.drill.rpo_hours) == (3, 26)
    with pytest.raises(ValueError, match="frozen"):
        source.dsn = "other"  # type: ignore[misc]  # that it is refused is what is tested


def test_the_digest_is_that_of_the_files_bytes(file: Path) -> None:
    config = load(write(file, VALID))
    assert config.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert config.path == file


def test_relative_paths_are_relative_to_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the program runs, also when the file itself was named by a relative path."""
    write(file, changed("audit.url", "sqlite:///audit.db"))
    monkeypatch.chdir(file.parent)
    for path in (file, Path(file.name)):
        config = load(path)
        assert config.encryption.recipients == (file.parent / "keys/a.asc", Path("/keys/b.asc"))
        assert config.audit.sqlite_path == file.parent / "audit.db"
        password = config.sources["clinic"].password
        assert password is not None
        assert (password.kind, password.name, password.field) == ("file", str(file.parent / "password"), None)


def test_a_reference_names_its_kind_its_name_and_its_field(file: Path) -> None:
    keys = load(write(file, VALID)).sources["clinic"].totp[0].keys
    assert (keys.kind, keys.name, keys.field) == ("env", "KEYS", "totp")


def test_a_secret_in_vault_needs_a_server(file: Path) -> None:
    keys = {"vault": "secret/clinic/totp", "field": "keyring", "version": 3, "unwrap": "transit/clinic"}
    tree = changed("sources.clinic.totp.0.keys", keys)
    (problem,) = problems(file, tree)
    assert str(problem) == "vault: is missing"
    tree["vault"] = {"address": "https://vault.example:8200", "approle": {"role_id": "r", "secret_id": {"credential": "id"}}}
    tree["drill"]["vault"] = {"token": {"file": "token"}}
    config = load(write(file, tree))
    ref = config.sources["clinic"].totp[0].keys
    assert (ref.kind, ref.name, ref.field, ref.version, ref.unwrap) == ("vault", *keys.values()) or ref.version == "3"
    assert config.drill.vault is not None


def test_a_host_that_only_restores_needs_signers_alone(file: Path) -> None:
    config = load(write(file, changed("encryption", {"signers": ["signing.pub.asc"]})))
    assert config.encryption.signing_key is None


def test_one_recipient_must_be_wanted(file: Path) -> None:
    alone = {"recipients": ["a.asc"], "signing_key": {"credential": "signing"}}
    (problem,) = problems(file, changed("encryption", alone))
    assert problem.where == "encryption.recipients"
    assert "single_recipient = true" in (problem.hint or "")
    assert load(write(file, changed("encryption", alone | {"single_recipient": True}))).encryption.single_recipient


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(file: Path) -> None:
    write(file, VALID)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load(file).store.url == "s3://bucket/prefix"


def test_names_of_sources_are_those_that_manifests_take() -> None:
    """The two rooms may not know each other, and must agree all the same."""
    assert SOURCE_NAME.pattern == manifest.SOURCE_NAME.pattern
    assert MOST_RECIPIENTS == manifest.MOST_RECIPIENTS


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://backup_ro@db:5432/clinic?sslmode=verify-full&passfile=/etc/pgpass",
        "postgres:///clinic?host=/run/postgresql",
        "postgresql://a:@db/clinic",
        "host=db dbname=clinic user=backup_ro",
        "service=clinic",
    ],
)
def test_connection_strings_come_in_both_forms(file: Path, dsn: str) -> None:
    assert load(write(file, changed("sources.clinic.dsn", dsn))).sources["clinic"].dsn == dsn


@pytest.mark.parametrize("schedule", ["0 2 * * *", "*/15 0-6/2 1,15 jan-mar MON-fri", "59 23 31 12 7", " 0  2 * * * "])
def test_schedules_are_cron(file: Path, schedule: str) -> None:
    assert len((load(write(file, changed("drill.schedule", schedule))).drill.schedule or "").split(" ")) == 5


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_everything_that_is_wrong_is_told_at_once(file: Path) -> None:
    tables = changed("sources.clinic.totp.0.column", None)
    tables["stroe"] = {}
    tables["store"]["lock"]["days"] = "35"
    tables["sources"]["clinic"]["schedule"] = "0 25 * * *"
    tables["sources"]["Bad Name"] = tables["sources"]["clinic"]
    with pytest.raises(InvalidConfig) as caught:
        load(write(file, tables))
    told = {str(problem) for problem in caught.value.problems}
    assert told == {
        "stroe: unknown key, did you mean store?",
        "store.lock.days: expected a whole number, not text",
        "sources.clinic.schedule: the hour of this schedule is not within 0 to 23",
        "sources.clinic.totp[0].column: is missing",
        'sources."Bad Name": cannot be the name of a source',
        'sources."Bad Name".schedule: the hour of this schedule is not within 0 to 23',
        'sources."Bad Name".totp[0].column: is missing',
    }
    assert caught.value.message == f"{file} has 7 problems"
    assert caught.value.hint == "docs/configuration.md has every table and key"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        ("store.ulr", "x", "unknown key, did you mean url?"),
        ("sources.clinic.totp.0.id-column", "x", "unknown key, did you mean id_column?"),
        ("sources.clinic.password.credentials", "x", "unknown key, did you mean credential?"),
        ("sources.clinic.qqqqq", 1, "unknown key; known here: dsn, password, schedule"),
        ("store", 3, "expected a table, not a number"),
        ("sources", [], "expected a table, not a list"),
        ("sources.clinic", "x", "expected a table, not text"),
        ("sources.clinic.totp", {"a": 1}, "expected a list, not a table"),
        ("sources.clinic.globals", "yes", "expected true or false, not text"),
        ("sources.clinic.globals", 1, "expected true or false, not a number"),
        ("drill.max_age_days", 1.5, "expected a whole number, not a number with a fraction"),
        ("drill.max_age_days", True, "expected a whole number, not true or false"),
        ("drill.max_age_days", 0, "must be at least 1"),
        ("limits.upload_concurrency", 99, "must be at most 16"),
        ("sources.clinic.deadline_minutes", 99_999_999_999_999, "must be at most 44640"),
        ("encryption.recipients", ["a", 3], "expected a path in quotes"),
        ("encryption.recipients", ["a", "./a"], "names a file twice"),
        ("encryption.recipients", [f"key-{each}" for each in range(MOST_RECIPIENTS + 1)], "names more than 16 keys"),
        ("encryption.recipients", None, "is missing"),
        ("encryption.signing_key", None, "is missing"),
        ("store.lock.mode", "forever", "expected one of governance, compliance"),
        ("store.url", "", "must not be empty"),
        ("store.url", "ftp://x", "names no store"),
        ("store.url", "s3://key:hunter2@bucket", "holds more than a place"),
        ("store.url", "file://relative/x", "names no directory"),
        ("store.url", "s3:///prefix", "names no bucket or container"),
        ("store.url", "http://[", "names no store"),
        ("store.endpoint_url", "s3.example", "is not the address of a server"),
        ("store.endpoint_url", "https://a:hunter2@s3.example", "holds more than an address"),
        ("store.connection_string", {"env": "X"}, "means nothing to a store at s3://"),
        ("store.access_key_id", "x", "access_key_id and secret_access_key come together"),
        ("audit.url", "mysql://x", "names no trail"),
        ("audit.password", {"env": "X"}, "means nothing to a trail in SQLite"),
        ("audit.url", "postgresql://u:hunter2@db/audit", "holds a password"),
        ("sources.clinic.dsn", "clinic", "is not a connection string"),
        ("sources.clinic.schedule", "daily", "a schedule has five fields, not 1"),
        ("sources.clinic.schedule", "0 2 * * fri-mon", "the day of week of this schedule is not within 0 to 7"),
        ("sources.clinic.schedule", "*/0 2 * * *", "the minute of this schedule is not within 0 to 59"),
        ("sources.clinic.retention", {}, "would keep nothing"),
        ("sources.clinic.compression", "brotli", "is no compression"),
        ("sources.clinic.compression", "zstd:", "is no compression"),
        ("sources.clinic.compression", "zstd:23", "is no level of zstd"),
        ("sources.clinic.compression", "gzip:0", "is no level of gzip"),
        ("sources.clinic.compression", "lz4:13", "is no level of lz4"),
        ("sources.clinic.sql.0.expect", [1], "expected a list, not a number"),
        ("sources.clinic.sql.0.expect", [[{}]], "expected text, a number, true or false"),
        ("sources.clinic.totp.0.canary.id", True, "expected a row's id: a number, or text in quotes"),
        ("sources.clinic.totp.0.cipher", "rot13", "expected one of aes-256-gcm, fernet, pgcrypto"),
        ("sources.clinic.totp.0.digits", 9, "must be at most 8"),
        ("sources.clinic.totp.0.rotate_days", 0, "must be at least 1"),
        ("sources.clinic.totp.0.former", {"column": "old", "cipher": "fernet"}, "is missing"),
        ("sources.clinic.totp.0.former", {"column": "old", "cipher": "rot13"}, "expected one of plaintext, fernet, pgcrypto"),
        (
            "sources.clinic.totp.0.former",
            {"column": "old", "cipher": "plaintext", "keys": {"env": "X"}},
            "means nothing to plaintext",
        ),
        ("sources.clinic.totp.0.former", {"column": "old", "cipher": "plaintext"}, "means nothing to a fernet column"),
        ("sources.clinic.totp.0.archive", {"env": "X"}, "means nothing to a fernet column"),
        ("sources.clinic.columns_dsn", "postgresql://u:hunter2@db/clinic", "holds a password"),
        ("sources.clinic.columns_password", {"env": "X"}, "is the password of nobody"),
        ("sources.clinic.password", "hunter2", "expected a reference to a secret, not the secret itself"),
        ("sources.clinic.password", {}, "expected exactly one of file, env, credential, vault, azure"),
        ("sources.clinic.password", {"file": "a", "env": "B"}, "expected exactly one of file, env, credential, vault, azure"),
        ("sources.clinic.password", {"field": "a"}, "expected exactly one of file, env, credential, vault, azure"),
        ("sources.clinic.password", {"file": "a", "version": 1}, "means nothing to file"),
        ("sources.clinic.password", {"env": "A", "unwrap": "transit/a"}, "means nothing to env"),
        ("sources.clinic.password", {"azure": "https://a", "version": 0}, "expected a version"),
        ("sources.clinic.password", {"azure": "https://a", "version": True}, "expected a version"),
        ("vault", {"address": "https://a"}, "expected exactly one of token, approle, kubernetes"),
        ("vault", {"address": "https://a", "token": {"vault": "secret/a"}}, "would itself be kept behind a login"),
        ("vault", {"token": {"file": "a"}}, "is missing"),
        ("azure_key_vault", {"tenant_id": "a"}, "means nothing without client_secret"),
        ("azure_key_vault", {"client_secret": {"file": "a"}}, "needs client_id and tenant_id beside it"),
        ("sources.clinic.password", {"file": ""}, "expected a path in quotes"),
    ],
)
def test_a_mistake_is_told_in_plain_words(file: Path, place: str, value: object, what: str) -> None:
    """One problem, that begins at its place, says what, and repeats no value that could be a secret."""
    (problem,) = problems(file, changed(place, value))
    assert problem.what.startswith(what)
    assert "hunter2" not in f"{problem} {problem.hint}"
    assert problem.where.split(".")[0] == place.split(".")[0]


def test_a_column_is_not_moved_into_itself(file: Path) -> None:
    column = VALID["sources"]["clinic"]["totp"][0] | {
        "cipher": "aes-256-gcm",
        "former": {"column": "totp_secret", "cipher": "plaintext"},
    }
    (problem,) = problems(file, changed("sources.clinic.totp", [column]))
    assert problem.what == "is the column itself"


def test_a_column_or_a_question_that_stands_twice_is_told(file: Path) -> None:
    for key in ("totp", "sql"):
        (problem,) = problems(file, changed(f"sources.clinic.{key}", VALID["sources"]["clinic"][key] * 2))
        assert problem.where == f"sources.clinic.{key}"
        assert "twice" in problem.what


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:hunter2@db/clinic",
        "postgresql://u@db/clinic?password=hunter2",
        "postgresql://u@db/clinic?sslmode=require&sslpassword=hunter2",
        "host=db password=hunter2",
        "host=db PASSWORD = 'hunter2'",
        "password=hunter2 host=db",
    ],
)
def test_a_password_in_a_connection_string_is_an_error_whose_hint_survives_scrubbing(file: Path, dsn: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(write(file, changed("sources.clinic.dsn", dsn)))
    said = f"{caught.value} {caught.value.hint}"
    assert "hunter2" not in said
    assert 'password = { file = "…" }' in said
    assert scrub(said) == said


@pytest.mark.parametrize("value", ["hunter2", {}])
@pytest.mark.parametrize("place", ["encryption.signing_key", "sources.clinic.password", "sources.clinic.totp.0.keys"])
def test_what_is_told_of_a_secret_in_the_file_survives_scrubbing(file: Path, place: str, value: object) -> None:
    [problem] = problems(file, changed(place, value))
    assert problem.hint is not None
    assert '{ file = "/etc/backupd/secret" }' in problem.hint
    assert scrub(f"{problem}. {problem.hint}") == f"{problem}. {problem.hint}"


def test_the_error_carries_no_value_along(file: Path) -> None:
    """pydantic's own error holds the whole input; it must not be reachable as cause or context."""
    with pytest.raises(InvalidConfig) as caught:
        load(write(file, changed("sources.clinic.password", "hunter2")))
    assert caught.value.__cause__ is caught.value.__context__ is None


WRONG = st.sampled_from(
    ["hunter2", "", 7, -1, 2.5, True, [], ["hunter2"], [1], {}, {"hunter3": "hunter2"}, {"file": 1}, [{}], [[]]]
)


def _places(value: object, prefix: str = "") -> list[str]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in members for place in (f"{prefix}{key}", *_places(each, f"{prefix}{key}."))]


@given(place=st.sampled_from(_places(VALID)), value=WRONG)
def test_whatever_stands_anywhere_is_taken_or_told_in_plain_words(
    tmp_path_factory: pytest.TempPathFactory, place: str, value: object
) -> None:
    """No value of any kind at any place gives pydantic's jargon, an error of another kind, or a message with the value."""
    file = tmp_path_factory.getbasetemp() / "anything.toml"
    try:
        assert isinstance(load(write(file, changed(place, value))), Config)
    except InvalidConfig as error:
        said = f"{error.message.removeprefix(str(file))} {error.hint} {error.problems}"
        assert "hunter2" not in said
        assert not [word for word in ("Input", "pydantic", "valid", "dict", "tuple", "cannot be used here") if word in said]


# ------------------------------------------------------------------------------------------------------- unusable files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[store]\nurl = "s3://x"\nlock = \n', "is not TOML: .*line 3"),
        (b"[store]\n[store]\n", "is not TOML: .*line 2"),
        (b'[store]\nurl = "\xff"\n', r"is not UTF-8 text \(line 2\)"),
        (b"x = " + b"[" * 50_000, "is nested too deeply|is not TOML"),
        (b"#" * ((1 << 20) + 1), "is larger than a configuration can be"),
        (b"", "has 3 problems$"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_its_line(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert caught.value.message.startswith(str(file))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "there is no "),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.symlink_to(path.name), "cannot read "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(file: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(file)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert str(file) in caught.value.message
    assert caught.value.hint


def test_importing_the_configuration_does_not_import_pydantic() -> None:
    code = "import sys, backupd.config; print('pydantic' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT).stdout
        == "False\n"
    )


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docs/generate.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)


def test_the_reference_is_what_the_types_say() -> None:
    """docs/configuration.md is written from the types; a key that changed without it would mislead."""
    done = generate("--check", "configuration.md")
    assert (done.returncode, done.stderr) == (0, "")
    stored = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for key in ("`single_recipient`", "`lock_timeout_s`", "## `[[sources.NAME.totp]]`", "`rpo_hours`"):
        assert key in stored


def test_a_stale_reference_fails_the_check_and_is_not_touched_by_it(tmp_path: Path) -> None:
    """In a copy of the program, so that the real document stays as it is."""
    shutil.copytree(ROOT / "backupd", tmp_path / "backupd", ignore=shutil.ignore_patterns("__pycache__", "cli"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    document = tmp_path / "docs" / "configuration.md"
    document.write_text("old\n", encoding="utf-8")
    command = [sys.executable, str(tmp_path / "docs" / "generate.py")]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert (checked.returncode, document.read_text(encoding="utf-8")) == (1, "old\n")
    assert "configuration.md is stale" in checked.stderr
    subprocess.run(command, check=True, timeout=60, cwd=tmp_path)
    assert document.read_text(encoding="utf-8") == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_a_document_that_is_unknown_is_a_usage_error() -> None:
    assert generate("--check", "nothing.md").returncode == 2
