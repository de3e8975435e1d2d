"""The documents, held to the code: what they link to, name, quote and show is there, and the README's first backup runs."""

import ast
import base64
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from psycopg import sql

from backupd import cli, errors, manifest
from backupd.audit import open_trail_store
from backupd.audit.records import Actor, Operation, Phase, Via, parse, render
from backupd.audit.trail import Trail
from backupd.checks import table as checks
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.config import load
from backupd.config.models import Config
from backupd.drill import RESTORE
from backupd.redact import Secret
from tests.installation import edited
from tests.parts.postgres import Database, postgres_bin

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
GENERATED = {"cli.md", "configuration.md"}
A_RUN_S = 240


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def doc(name: str) -> str:
    return text_of(ROOT / "docs" / name)


def section(text: str, heading: str) -> str:
    """What stands below a heading of the second or third level, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"there is no heading {heading}"
    return re.split(rf"(?m)^#{{1,{level}}} ", rest)[0]


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of these languages, as (language, text)."""
    found = [(name, body) for name, body in re.findall(r"(?ms)^```(\w+)\n(.*?)^```", text) if name in languages]
    assert found, f"there is no block of {languages}"
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of every table's rows, without the heads."""
    body = re.sub(r"(?m)^\|.*\n\|---.*\n", "", text)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body.splitlines() if line.startswith("|")]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def code_strings() -> list[str]:
    """Every text in backupd's source, the pieces of f-strings apart."""
    nodes = (node for path in (ROOT / "backupd").rglob("*.py") for node in ast.walk(ast.parse(path.read_bytes())))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


# ------------------------------------------------------------------------------------------------------- links, headings


def anchors(path: Path) -> set[str]:
    """The anchors that a forge makes of a document's headings."""
    prose = re.sub(r"(?ms)^```.*?^```", "", text_of(path))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"(?m)^#+ (.*)$", prose)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```", "", text_of(path))):
        if target.startswith(("https://", "http://")):
            continue
        where, _, anchor = target.partition("#")
        file = (path.parent / where).resolve() if where else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_document_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [README]
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            path = path / "README.md"
        if path in reached or path.suffix != ".md":
            continue
        reached.add(path)
        targets = re.findall(r"\]\((?!http)([^)\s#]+)", text_of(path))
        waiting += [(path.parent / target).resolve() for target in targets]
    assert {str(path) for path in DOCUMENTS} <= {str(path) for path in reached}


def test_the_changelog_says_what_is_not_released_yet() -> None:
    assert section(text_of(ROOT / "CHANGELOG.md"), "## [Unreleased]").count("\n- ") >= 1


# --------------------------------------------------------------------------------------------------------- configuration


def readme_configuration() -> str:
    """The complete one."""
    return blocks(section(text_of(README), "## A configuration"), "toml")[0][1]


def configured(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "backupd.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_the_readmes_configuration_loads_and_is_ten_lines(tmp_path: Path) -> None:
    config = configured(tmp_path, readme_configuration())
    assert len(readme_configuration().splitlines()) == 10
    assert list(config.sources) == ["clinic"]
    assert config.encryption.recipients[0] == tmp_path / "keys" / "operations.pub.asc"


def fragments() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        if path.name not in GENERATED:
            for body in re.findall(r"(?ms)^```toml\n(.*?)^```", text_of(path)):
                yield path.name, body


@pytest.mark.parametrize(("name", "fragment"), [pytest.param(*each, id=f"{each[0]}-{n}") for n, each in enumerate(fragments())])
def test_every_piece_of_configuration_in_a_document_loads(tmp_path: Path, name: str, fragment: str) -> None:
    """In the README's configuration, its lines in the place of those for the same."""
    configured(tmp_path, edited(readme_configuration(), fragment))


def test_the_reference_documents_are_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=A_RUN_S
    )
    assert (done.returncode, done.stderr) == (0, "")


# -------------------------------------------------------------------------------------------------------------- commands


def command_lines(text: str) -> list[list[str]]:
    """The words of each line that runs backupd, up to what the shell does with its output."""
    found = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("backupd "):
            words = shlex.split(re.split(r"\s{2,}", line)[0], comments=True)  # an example's remark stands two blanks behind it
            end = next((index for index, word in enumerate(words) if word in {"|", "||", ">", "&&", ";"}), len(words))
            found.append(words[1:end])
    return found


def parsed(words: list[str]) -> None:
    """Let click read the line, down to the command's own options. Raises what it raises for a line that it does not take."""
    command: click.Command = cli.app
    context = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=command.name)
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    command.make_context(command.name, list(words), parent=context)


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path.name not in GENERATED], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_command_line_in_a_document_is_one_that_backupd_takes(path: Path) -> None:
    for body in re.findall(r"(?ms)^```sh\n(.*?)^```", text_of(path)):
        for words in command_lines(body):
            parsed(words)


def test_the_readme_shows_the_commands_of_a_first_backup() -> None:
    """Without this, a pattern that finds nothing would let the test above pass."""
    body = "".join(text for _, text in blocks(text_of(README), "sh"))
    shown = {words[0] for words in command_lines(body)}
    assert shown == {"keys", "check", "backup", "list", "verify", "restore-test", "restore", "audit"}


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path.name not in GENERATED], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_command_and_option_named_in_a_sentence_exists(path: Path) -> None:
    for span in re.findall(r"`backupd ([^`]+)`", re.sub(r"(?ms)^```.*?^```", "", text_of(path))):
        command: click.Command = cli.app
        for word in span.split():
            if isinstance(command, click.Group) and not word.startswith("-") and "…" not in word:
                found = command.get_command(click.Context(command), word)
                assert found is not None, f"`backupd {span}` names no command"
                command = found
            elif word.startswith("-"):
                known = {each for option in command.params for each in option.opts} | {"-h", "--help", "--version"}
                assert word in known, f"`backupd {span}` names no option of it"


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), [pytest.param(*each, id=each[0]) for each in commands(cli.app, "backupd")])
def test_every_command_shows_an_example_that_it_takes(path: str, command: click.Command) -> None:
    examples = command_lines(command.help or "")
    assert examples
    for words in examples:
        parsed(words)


def test_the_exit_codes_are_those_of_the_errors() -> None:
    told = {int(code) for code, _ in rows(section(text_of(README), "## Exit codes"))}
    raised = {each.exit_code for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.Explained)}
    assert told == raised | {0}


def test_what_each_command_records_is_told() -> None:
    told = {span for row in rows(section(doc("operations.md"), "## What is recorded")) for span in spans(row[0])}
    assert told == set(cli.COMMANDS)


# ---------------------------------------------------------------------------------------------------- messages and rights


def test_every_message_that_a_document_explains_is_one_that_backupd_says() -> None:
    said = code_strings()
    messages = [span for row in rows(section(doc("operations.md"), "## When something fails")) for span in spans(row[0])]
    pieces = [piece.strip() for message in messages for piece in message.split("…") if piece.strip(" :")]
    # A store's own words stand between ours.
    unknown = [piece for piece in pieces if piece != ": AccessDenied" and not any(piece in text for text in said)]
    assert len(messages) >= 20
    assert unknown == []


def test_the_rights_that_s3_needs_are_those_of_the_calls_that_are_made() -> None:
    s3 = section(doc("operations.md"), "### S3")
    made = set(re.findall(r"self\._client\.(\w+)\(", text_of(ROOT / "backupd" / "stores" / "s3.py")))
    assert {spans(row[0])[0] for row in rows(s3)} == made
    [(_, policy)] = blocks(s3, "json")
    granted = {action for statement in json.loads(policy)["Statement"] for action in statement["Action"]}
    assert granted == {span for row in rows(s3) for span in spans(row[1])}
    assert not any("Delete" in action for action in granted)


# -------------------------------------------------------------------------------------------------------------- formats


def test_the_manifest_in_the_design_is_one() -> None:
    [(_, shown)] = blocks(section(doc("design.md"), "## The manifest, format 1"), "json")
    assert manifest.render(manifest.parse(shown)) == shown


def test_the_record_in_the_design_is_one() -> None:
    [(_, shown)] = blocks(section(doc("design.md"), "## The trail, format 1"), "json")
    assert render(parse(shown.strip().encode())) == shown.strip().encode()


def test_the_phases_and_checks_in_the_design_are_those_that_there_are() -> None:
    phases = {span for row in rows(section(doc("design.md"), "## The trail, format 1")) for span in spans(row[0])}
    assert phases == set(Phase)
    told = [row[0] for row in rows(section(doc("design.md"), "## One restore test"))]
    assert told == [RESTORE, *(check.name for check in checks.ALL)]


def test_a_stranger_can_check_an_exported_trail_with_the_line_in_the_design(tmp_path: Path) -> None:
    trail = Trail(open_trail_store(f"sqlite:///{tmp_path / 'audit.db'}"), Actor("backupd", "backup1", Via.CLI))
    for number in range(3):
        with trail.recording(Operation.CHECK, number=number, odd='"record":}'):
            pass
    with (tmp_path / "trail.jsonl").open("wb") as file:
        trail.export(file)
    [(_, line)] = blocks(section(doc("design.md"), "## The trail, format 1"), "sh")
    done = subprocess.run(["sh", "-euc", line], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=A_RUN_S)
    exported = [json.loads(each) for each in text_of(tmp_path / "trail.jsonl").splitlines()]
    assert len(exported) == 6
    assert [each.split()[0] for each in done.stdout.splitlines()] == [each["sha256"] for each in exported]
    assert [each["record"]["previous"] for each in exported[1:]] == [each["sha256"] for each in exported[:-1]]


def test_the_envelope_in_the_document_opens() -> None:
    example = json.loads(blocks(section(doc("columns.md"), "## The envelope of aes-256-gcm"), "json")[0][1])
    cipher = AesGcm(Keyring.parse(Secret(json.dumps(example["keyring"]))))
    cell = Cell(example["table"], example["column"], example["row_id"])
    assert cipher.decrypt(cell, bytes.fromhex(example["envelope"])).reveal() == b"JBSWY3DPEHPK3PXP"


def test_the_python_in_the_document_runs() -> None:
    program = "".join(body for _, body in blocks(doc("columns.md"), "python"))
    ring = '{"current": "2026-1", "keys": {"2026-1": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}}'
    whole = f"keyring_json = {ring!r}\n{program}\nprint(seed.decode())"
    done = subprocess.run([sys.executable, "-c", whole], cwd=ROOT, capture_output=True, text=True, check=True, timeout=A_RUN_S)
    assert done.stdout == "JBSWY3DPEHPK3PXP\n"


def test_the_command_in_the_document_makes_a_keyring(tmp_path: Path) -> None:
    [(_, command)] = blocks(section(doc("columns.md"), "## The keyring"), "sh")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert "/opt/backupd/bin/python -c" in command
    here = command.replace("/opt/backupd/bin/", "")
    _run(f"cd {tmp_path}\n{here}", {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})
    made = tmp_path / "keyring.json"
    assert made.stat().st_mode & 0o777 == 0o600
    assert Keyring.parse(Secret(made.read_bytes())).current == "2026-1"


def test_the_rooms_and_seams_of_the_architecture_are_those_that_there_are() -> None:
    text = doc("architecture.md")
    named = {span for row in rows(section(text, "## Layers")) for span in spans(row[1])}
    there = {path.name for path in (ROOT / "backupd").iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"}
    assert {name.rstrip("/") for name in named} == there - {"__init__.py", "__main__.py"}
    for protocols, where, *_ in rows(section(text, "## Seams"))[:6]:
        for name in spans(protocols):
            assert f"class {name}(Protocol)" in text_of(ROOT / "backupd" / spans(where)[0])


# ----------------------------------------------------------------------------------------------------- the first backup


@contextmanager
def shared_memory() -> Iterator[Path]:
    """A directory in /dev/shm, for the README's."""
    path = Path("/dev/shm", f"bd-readme-{secrets.token_hex(6)}")
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.mark.timeout(600)
def test_the_first_backup_of_the_readme_runs_as_it_stands(tmp_path: Path, database17: Database) -> None:
    """Other paths, names and a store in a directory; every command and statement is the README's, in its order."""
    server, role, restored = database17.server, f"ro_{database17.name}", f"{database17.name}_restored"
    keyring = Keyring.generate("2026-1")
    _users(database17, keyring)
    readme = section(text_of(README), "## The first backup")
    [(_, second_factors)] = blocks(readme, "toml")
    configuration = readme_configuration()
    with shared_memory() as memory:
        ours = {
            "/dev/shm": str(memory),
            "/etc/backupd": str(tmp_path / "etc"),
            "/var/lib/backupd": str(tmp_path / "var"),
            "s3://clinic-backups/prod": f"file://{tmp_path / 'store'}",
            "@db.example/clinic_restored": f"@{server.host}:{server.port}/{restored}",
            "@db.example/clinic": f"@{server.host}:{server.port}/{database17.name}",
            "-h db.example": f"-h {server.host} -p {server.port}",
            "clinic_restored": restored,
            "backup_ro": role,
        }
        path = f"{_program(tmp_path)}:{postgres_bin(17)}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
        printed = ""
        try:
            for language, body in blocks(readme, "sh", "sql", "toml"):
                if language == "toml":
                    configuration += second_factors
                    (tmp_path / "etc" / "backupd.toml").write_text(_replaced(configuration, ours), encoding="utf-8")
                    continue
                _human(body, tmp_path, memory, _replaced(configuration, ours), keyring)
                if language == "sql":
                    database17.execute(_replaced(body, ours))
                    continue
                if "createdb" in body:
                    environment["PGPASSWORD"] = server.password
                printed += _run(_replaced(body, ours), environment)
                environment |= dict(re.findall(r"(?m)^export (\w+)=(.*)$", _replaced(body, ours)))
            assert server.execute("SELECT count(*) FROM users", database=restored) == [(40,)]
            public = [tmp_path / "etc" / "keys", *(tmp_path / "etc" / "keys").iterdir()]  # for the service's account
            assert [path.stat().st_mode & 0o777 for path in public] == [0o755, 0o644, 0o644, 0o644]
        finally:
            server.drop_database(restored)
            with server.connect() as connection:
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
    for expected in (
        "0 problems",
        "committed",
        "every part",
        "PASS",
        "all that was expected is there",
        "the trail is whole",
        "all 40 enrolled seeds",
    ):
        assert expected in printed


def _users(database: Database, keyring: Keyring) -> None:
    """The table that the README's `[[sources.clinic.totp]]` names."""
    database.execute("CREATE TABLE users (id int PRIMARY KEY, totp_secret bytea, is_totp_enabled boolean NOT NULL)")
    cipher = AesGcm(keyring)
    for number in range(1, 41):
        seed = Secret(base64.b32encode(secrets.token_bytes(20)), "planted seed")
        sealed = cipher.encrypt(Cell("users", "totp_secret", str(number)), seed)
        database.execute("INSERT INTO users VALUES (%s, %s, true)", (number, sealed))


def _human(body: str, directory: Path, memory: Path, configuration: str, keyring: Keyring) -> None:
    """What the section's sentences ask of the reader, before the block that needs it."""
    if body.startswith("rm -r "):
        shutil.copy(memory / "backupd-keys" / "operations.sec.asc", memory / "operations.sec.asc")
    if body.startswith("backupd restore-test "):
        ring = memory / "clinic-totp-keyring.json"
        ring.touch(mode=0o600)
        ring.write_bytes(keyring.render().reveal())
    if body.startswith("export "):
        password = directory / "etc" / "secrets" / "clinic.password"
        password.touch(mode=0o600)
        password.write_text("choose-one\n", encoding="utf-8")
        (directory / "etc" / "backupd.toml").write_text(configuration, encoding="utf-8")


def _replaced(text: str, ours: dict[str, str]) -> str:
    for theirs, other in ours.items():
        text = text.replace(theirs, other)
    return text


def _program(directory: Path) -> Path:
    """A directory with `backupd` in it, as an installation would have."""
    programs = directory / "bin"
    programs.mkdir()
    program = programs / "backupd"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m backupd "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return programs


def _run(script: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sh", "-euc", script],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=A_RUN_S,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout
