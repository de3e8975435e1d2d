"""docs/rotating-column-keys.md, its commands run in their order on a clinic, and what it quotes held to the program."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd import errors
from backupd.columns.forms import Form
from backupd.columns.keyring import Keyring
from backupd.redact import Secret
from backupd.rotation import encrypt, rotate
from tests.installation import CHECKOUT, KEY_ID, SOURCE, Completed, Installation, installed, keep, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer

PAGE = (CHECKOUT / "docs" / "rotating-column-keys.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", PAGE)


@pytest.fixture
def clinic(tmp_path: Path, postgres17: PostgresServer, planted: Planted) -> Iterator[Installation]:
    """An installation with the page's configuration and the page's role, its names replaced by ours."""
    with installed(tmp_path, postgres17, plant(planted)) as made:
        role, password = postgres17.create_role()
        create, grant = blocks("sql")[0].strip().splitlines()
        assert create == "CREATE ROLE clinic_columns LOGIN;"
        made.database.execute(grant.replace("clinic_columns", role))
        shutil.copytree(made.custody, made.directory / "secrets")
        keep(made.directory / "secrets" / "clinic.password", made.secrets.password.encode())
        keep(made.directory / "secrets" / "clinic_columns.password", planted.register(password, "password").encode())
        [page] = blocks("toml")
        for theirs, user in (("backup_ro", made.role), ("clinic_columns", role)):
            page = page.replace(f"postgresql://{theirs}@db.example/clinic", postgres17.dsn(made.database.name, user))
        assert tomllib.loads(page)["sources"][SOURCE]["totp"][0]["archive"] == {"file": "secrets/archive.json"}
        made.configure(source=page, totp=None)
        yield made
        made.database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def run(clinic: Installation, line: str) -> Completed | None:
    words = shlex.split(line)
    if words[0] == "backupd":
        return clinic.run(*words[1:])
    subprocess.run(["sh", "-c", line], cwd=clinic.directory, check=True, env=clinic.environment())
    return None


def test_the_commands_of_the_page_do_what_it_says(clinic: Installation) -> None:
    keyring = clinic.directory / "secrets" / "keyring.json"
    lines = [line for block in blocks("sh") for line in block.strip().splitlines()]
    assert len(lines) == 10
    for line in lines:
        done = run(clinic, line)
        assert done is None or done.code == 0, (line, done)
        if "--stage add" in line:
            assert Keyring.parse(Secret(keyring.read_bytes())).current == KEY_ID
    kept = Keyring.parse(Secret(keyring.read_bytes()))
    assert (kept.current, kept.retired) == ("2027-1", (KEY_ID,))
    [status] = clinic.run("columns", "status", "--json").ok().json
    assert status["key_ids"] == ["2027-1"]


def test_an_archive_that_is_there_is_not_begun_again(clinic: Installation) -> None:
    [begin] = [line for block in blocks("sh") for line in block.splitlines() if "install" in line]
    run(clinic, begin)
    archive = keep(clinic.directory / "secrets" / "archive.json", Keyring.generate("2025-1").render().reveal())
    before = archive.read_bytes()
    with pytest.raises(subprocess.CalledProcessError):
        run(clinic, begin)
    assert archive.read_bytes() == before


def test_every_form_and_stage_is_on_the_page() -> None:
    assert all(f"`{form.value}`" in PAGE for form in Form)
    assert all(f"`{stage.value}`" in PAGE for stage in encrypt.Stage)
    assert all(f"--stage {stage.value}" in PAGE for stage in rotate.Stage)


def test_what_the_page_quotes_is_what_the_program_says() -> None:
    """The errors of its table, without the numbers and names in them."""
    sources = "".join(path.read_text() for path in (CHECKOUT / "backupd").rglob("*.py"))
    table = PAGE.partition("## When something goes wrong")[2]
    quoted = re.findall(r"(?m)^\| `([^`]+)`", table)
    assert len(quoted) == 17
    for said in quoted:
        for piece in re.split(r"\bN\b|…", said):
            assert piece.strip() in sources, said
    assert {errors.Refused.exit_code, errors.ConfigError.exit_code, errors.SecretUnavailable.exit_code} == {4, 2, 3}
