"""docs/encrypting-a-column.md, followed to the letter on a copy of the model that it is written for."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyotp
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine, create_engine, inspect, select
from sqlalchemy.orm import Session

from backupd.columns import ColumnError, forms
from backupd.columns.keyring import Keyring
from backupd.redact import Secret
from tests.installation import CHECKOUT, SOURCE, Installation, installed, keep, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer

GUIDE = (CHECKOUT / "docs" / "encrypting-a-column.md").read_text()
BEFORE = """\
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase): pass
"""
USERS = 20


def block(heading: str, language: str) -> str:
    """The one block of this language below a heading; "" is the top of the page."""
    text = re.split(r"(?m)^## ", GUIDE)
    [part] = text[:1] if not heading else [each for each in text[1:] if each.splitlines()[0].endswith(heading)]
    [found] = re.findall(rf"(?ms)^```{language}\n(.*?)^```", part)
    return str(found)


@dataclass(frozen=True, slots=True)
class Application:
    """The reader's application and the host that its owner works on."""

    clinic: Installation
    engine: Engine
    ours: dict[str, str]

    def replaced(self, text: str) -> str:
        for theirs, other in self.ours.items():
            text = text.replace(theirs, other)
        return text

    def version(self, program: str) -> dict[str, Any]:
        """A version of the application: what its modules define."""
        names: dict[str, Any] = {"__name__": "application"}
        exec(compile(self.replaced(program), "guide", "exec"), names)  # noqa: S102  the guide's own code
        return names

    def shell(self, script: str) -> str:
        """The commands of a block, as the owner types them."""
        done = subprocess.run(
            ["sh", "-euc", self.replaced(script)],
            cwd=self.clinic.directory,
            env=self.clinic.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.clinic.secrets.planted.assert_absent(done.stdout + done.stderr, "the output of the guide's commands")
        return done.stdout

    def configure(self, text: str) -> None:
        """As the whole configuration."""
        self.clinic.config.write_text(self.replaced(text))

    def configure_backups(self, fragment: str) -> None:
        """As the source of the host that makes backups and restores them."""
        self.clinic.configure(source=self.replaced(fragment), totp=None)

    def secrets_of(self, version: dict[str, Any]) -> dict[str, str | None]:
        user = version["User"]
        with Session(self.engine) as session:
            found = {each.email: each.totp_secret for each in session.scalars(select(user))}
        return {email: value.text() if isinstance(value, Secret) else value for email, value in found.items()}

    @property
    def columns(self) -> set[str]:
        return {column["name"] for column in inspect(self.engine).get_columns("users")}


@pytest.fixture
def application(tmp_path: Path, postgres17: PostgresServer, planted: Planted) -> Iterator[Application]:
    """An installation whose database belongs to the reader's application; the table is not there yet."""
    with installed(tmp_path, postgres17, plant(planted)) as clinic:
        database = clinic.database
        database.execute("DROP TABLE appointments, users")
        owner, password = postgres17.create_role()
        planted.register(password, "the owner's password")
        database.execute(f"GRANT CREATE ON SCHEMA public TO {owner}")
        keep(clinic.custody / "clinic_owner.password", password.encode())
        bin_directory = tmp_path / "bin"
        bin_directory.mkdir()
        program = bin_directory / "backupd"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m backupd "$@"\n')
        program.chmod(0o755)
        address = f"{postgres17.host}:{postgres17.port}/{database.name}"
        ours = {
            "/etc/clinic": str(clinic.custody),
            "s3://clinic-backups/prod": (clinic.directory / "store").as_uri(),
            "/var/lib/backupd": str(clinic.directory),
            "secrets/clinic_owner.password": "custody/clinic_owner.password",
            "secrets/clinic.password": "custody/password",
            "backup_ro@db.example/clinic": f"{clinic.role}@{address}",
            "clinic_owner@db.example/clinic": f"{owner}@{address}",
            "backupd columns": f"{program} columns",
        }
        (clinic.custody / "keyring.json").unlink()
        engine = create_engine(postgres17.dsn(database.name, owner, password).replace("postgresql:", "postgresql+psycopg:"))
        yield Application(clinic, engine, ours)
        engine.dispose()
        database.execute(f"DROP OWNED BY {owner}")
        postgres17.execute(f"DROP ROLE {owner}", database="postgres")


def test_the_guide_moves_an_application_over_and_no_secret_changes(application: Application, planted: Planted) -> None:
    clinic = application.clinic
    seeds: dict[str, str | None] = {f"user{n}@clinic.example": planted.seed() if n % 5 else None for n in range(USERS)}

    before = application.version(BEFORE + block("", "python"))
    before["Base"].metadata.create_all(application.engine)
    with Session(application.engine) as session, session.begin():
        session.add_all(before["User"](email=email, totp_secret=seed) for email, seed in seeds.items())

    application.shell(block("2. Make a keyring", "sh"))
    assert (clinic.custody / "keyring.json").stat().st_mode & 0o777 == 0o600
    application.configure(block("3. Add the column", "toml"))
    application.shell(block("3. Add the column", "sh"))
    assert application.columns == {"id", "email", "totp_secret", "totp_secret_sealed"}
    assert application.secrets_of(before) == seeds, "the old version does not notice"

    during = application.version(block("4. Release a version that reads both", "python"))
    during["keys"].load()
    assert application.secrets_of(during) == seeds
    seeds |= {"user1@clinic.example": planted.seed(), "new@clinic.example": planted.seed(), "user2@clinic.example": None}
    with Session(application.engine) as session, session.begin():
        for email in ("user1@clinic.example", "user2@clinic.example"):
            user = session.scalars(select(during["User"]).where(during["User"].email == email)).one()
            user.totp_secret = Secret(seeds[email] or "") if seeds[email] else None
        session.add(during["User"](email="new@clinic.example", totp_secret=Secret(seeds["new@clinic.example"] or "")))
    assert application.secrets_of(during) == seeds

    shown = application.shell(block("5. Move the rows", "sh"))
    assert "aes-256-gcm" in shown
    assert "HAZARD" not in shown
    assert application.secrets_of(during) == seeds
    assert clinic.database.execute("SELECT count(*) FROM users WHERE totp_secret IS NOT NULL") == [(0,)]

    shared = block("4. Release a version that reads both", "python").partition("class User(Base)")[0]
    after = application.version(shared + block("6. Release a version that knows the new column only", "python"))
    assert application.secrets_of(after) == seeds
    application.shell(block("6. Release a version that knows the new column only", "sh"))
    assert application.columns == {"id", "email", "totp_secret_sealed"}
    assert application.secrets_of(after) == seeds

    source = re.search(r"(?ms)^\[sources.*", block("3. Add the column", "toml"))
    assert source is not None
    application.configure_backups(re.sub(r"(?m)^former = .*\n", "", source[0]))
    assert clinic.run("columns", "status", SOURCE).code == 0
    clinic.back_up()
    drilled = clinic.run("restore-test", SOURCE, "--json").ok().json
    assert drilled["verdict"] == "PASS", "a restore test reads what the application wrote"
    [totp] = [check for check in drilled["checks"] if check["name"] == "totp"]
    assert (totp["outcome"], totp["figures"]["verified"]) == ("PASS", sum(seed is not None for seed in seeds.values()))


def test_the_codes_of_the_guide_are_those_of_an_authenticator_and_good_once(application: Application) -> None:
    application.shell(block("2. Make a keyring", "sh"))
    [column] = re.findall(r"`(last_totp_step: [^`]+)`", GUIDE)
    shared = block("4. Release a version that reads both", "python").partition("class User(Base)")[0]
    model = (
        f"from sqlalchemy import BigInteger\n{shared}{block('6. Release a version that knows the new column only', 'python')}"
    )
    version = application.version(f"{model}    {column}\n{block('Codes', 'python')}")
    version["Base"].metadata.create_all(application.engine)
    with Session(application.engine) as session:
        user = version["User"](email="a@clinic.example")
        session.add(user)
        session.commit()
        assert not version["code_is_right"](session, user, "000000"), "there is no second factor yet"
        authenticator = pyotp.parse_uri(version["enrol"](session, user))
        assert isinstance(authenticator, pyotp.TOTP)
        right = authenticator.at(datetime.now(UTC))
        wrong = f"{(int(right) + 1) % 10**6:06}"
        assert not version["code_is_right"](session, user, wrong)
        assert version["code_is_right"](session, user, right)
        assert not version["code_is_right"](session, user, right)
        session.expire_all()
        assert not version["code_is_right"](session, user, right)
        another = version["User"](email="b:c@clinic.example")
        session.add(another)
        session.commit()
        with pytest.raises(ValueError, match="without a colon"):
            version["enrol"](session, another)
        assert another.totp_secret is None, "nobody is enrolled whose authenticator got no address"


@pytest.mark.parametrize(("page", "programs"), [("encrypting-a-column.md", ""), ("columns.md", "/opt/backupd/bin/")])
def test_the_command_that_makes_a_keyring_leaves_what_is_there_and_nothing_of_its_own_when_it_fails(
    page: str, programs: str, tmp_path: Path
) -> None:
    """The application's own Python in the guide for it; that of the README's installation where backupd is set up."""
    [command] = re.findall(rf"(?m)^umask 077\n{programs}python -c .*$", (CHECKOUT / "docs" / page).read_text())
    assert f"\n{programs}pip install" in (CHECKOUT / ("README.md" if programs else f"docs/{page}")).read_text()
    command = command.replace(f"\n{programs}python", "\npython")
    file = tmp_path / "keyring.json"
    command = re.sub(r"\S*keyring\.json$", str(file), command)

    def run(script: str) -> int:
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        done = subprocess.run(
            ["sh", "-c", script], cwd=CHECKOUT, env={"PATH": path}, capture_output=True, timeout=60, check=False
        )
        return done.returncode

    assert run(command.replace("backupd.columns", "not_installed.columns")) != 0
    assert run(command.replace("2026-1", "no id")) != 0
    assert not file.exists()
    assert run(command) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    written = file.read_bytes()
    assert Keyring.parse(Secret(written)).current == "2026-1"
    assert run(command) != 0
    assert file.read_bytes() == written


def test_a_column_of_fernet_tokens_is_read_as_the_guide_says(application: Application, planted: Planted) -> None:
    key = planted.register(Fernet.generate_key())
    keep(application.clinic.custody / "fernet.keys", key + b"\n")
    application.shell(block("2. Make a keyring", "sh"))
    shared = block("4. Release a version that reads both", "python").partition("class User(Base)")[0]
    version = application.version(shared + block("Fernet and pgcrypto", "python"))
    version["Base"].metadata.create_all(application.engine)
    seed = planted.seed()
    application.clinic.database.execute(
        "INSERT INTO staff (totp_secret) VALUES (%s), (%s)", (Fernet(key).encrypt(seed.encode()).decode(), seed)
    )
    with Session(application.engine) as session:
        staff = session.scalars(select(version["Staff"])).all()
        assert [each.totp_secret for each in staff] == [Secret(seed), Secret(seed)]


def test_psycopg_alone_does_what_the_model_does(application: Application) -> None:
    """Its rows are read by the model, and the model's by it."""
    application.shell(block("2. Make a keyring", "sh"))
    shared = block("4. Release a version that reads both", "python").partition("class User(Base)")[0]
    model = shared + block("6. Release a version that knows the new column only", "python")
    version = application.version(f"from datetime import UTC, datetime\n{model}{block('With psycopg alone', 'python')}")
    version["Base"].metadata.create_all(application.engine)
    with application.clinic.database.connect() as connection:
        row_id = version["register"](connection, "a@clinic.example")
        with Session(application.engine) as session:
            [user] = session.scalars(select(version["User"]))
            authenticator = pyotp.TOTP(user.totp_secret.text())
            session.add(version["User"](email="b@clinic.example", totp_secret=user.totp_secret))
            session.commit()
        before = authenticator.at(datetime.now(UTC))
        shown = version["current_code"](connection, row_id)
        assert shown in {before, authenticator.at(datetime.now(UTC))}
        [(other,)] = connection.execute("SELECT id FROM users WHERE email = 'b@clinic.example'").fetchall()
        assert len(version["current_code"](connection, other)) == 6
        [(nobody,)] = connection.execute("INSERT INTO users (email) VALUES ('c@clinic.example') RETURNING id").fetchall()
        assert version["current_code"](connection, nobody) is None
        [(envelope,)] = connection.execute("SELECT totp_secret_sealed FROM users WHERE id = %s", (row_id,)).fetchall()
        assert forms.form_of(envelope) == forms.Told(forms.Form.AES_256_GCM, "2026-1")
        connection.execute("UPDATE users SET totp_secret_sealed = %s WHERE id = %s", (envelope, other))
        with pytest.raises(ColumnError):
            version["current_code"](connection, other)


def test_what_the_guide_installs_is_there_to_be_installed() -> None:
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [extra] = re.findall(r"pip install '\.\[(\w+)\]'", block("1. Install", "sh"))
    assert extra in extras


def test_no_block_of_the_guide_is_left_out() -> None:
    """Those that the tests above run."""
    assert len(re.findall(r"(?m)^```(python|sh|toml)$", GUIDE)) == 12
