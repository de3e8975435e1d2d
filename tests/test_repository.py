"""The repository's own rules, checked like any other behaviour: what a tracked file may name, how the source is laid out."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import backupd

ROOT = Path(__file__).resolve().parent.parent
LINES_AT_MOST = 450


def tracked(*patterns: str) -> list[Path]:
    """The files that git tracks and that are there, as absolute paths; all of them without a pattern."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, check=True, capture_output=True).stdout
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


def found_in_tracked_files(pattern: str, *paths: str) -> list[str]:
    """`file:line: text` for each line of a tracked text file that the regular expression matches."""
    expression = re.compile(pattern)
    hits = []
    for path in tracked(*paths):
        for number, line in enumerate(path.read_bytes().decode("utf-8", errors="replace").splitlines(), start=1):
            if expression.search(line):
                hits.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return hits


def sources() -> list[Path]:
    return tracked("backupd/*.py")


def described(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_git_lists_the_files_that_the_other_tests_look_at() -> None:
    """Without this, an empty listing would let every rule below pass."""
    assert ROOT / "backupd" / "__init__.py" in sources()
    assert ROOT / "pyproject.toml" in tracked()


@pytest.mark.parametrize(
    "host",
    ["pypi" + r"\.org", "pythonhosted" + r"\.org", "registry" + r"\.npmjs", "deb" + r"\.debian\.org", "snapshot" + r"\.debian"],
)
def test_no_tracked_file_names_a_package_registry(host: str) -> None:
    """Whoever builds this chooses the registry, by the settings of their own pip, npm and apt."""
    assert found_in_tracked_files(host) == []


@pytest.mark.parametrize("path", ["/work" + "/", "/tmp" + "/brief", "/root" + "/"])
def test_no_tracked_file_names_a_path_of_a_developers_machine(path: str) -> None:
    assert found_in_tracked_files(r"(?<![\w.])" + re.escape(path)) == []


def test_source_holds_no_open_ends() -> None:
    """What is left to do is an issue; a note in the source is read by nobody."""
    assert found_in_tracked_files(r"\b(TODO|FIXME|XXX|HACK)\b", "backupd") == []


def test_no_program_is_run_through_a_shell() -> None:
    """An argv list cannot be injected into."""
    calls = [
        f"{described(path)}:{node.lineno}"
        for path in tracked("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.keyword)
        and node.arg == "shell"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert calls == []


def test_every_source_file_is_short_enough_to_read() -> None:
    long = {described(path): lines for path in sources() if (lines := len(path.read_bytes().splitlines())) >= LINES_AT_MOST}
    assert long == {}


def test_every_source_file_says_what_it_owns() -> None:
    silent = [described(path) for path in sources() if not ast.get_docstring(ast.parse(path.read_bytes()))]
    assert silent == []


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {"utils", "util", "helpers", "helper", "common", "manager", "core", "misc"}
    assert [described(path) for path in sources() if names & {path.stem, path.parent.name}] == []


def test_imports_point_down() -> None:
    """The contracts in pyproject.toml, by the same program that `./dev lint` runs."""
    program = Path(sys.executable).with_name("lint-imports")
    # No cache: two workers that share one would be two writers of the same files.
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    """An application imports `backupd.columns` in its own process and pays for nothing else."""
    heavy = ["boto3", "azure", "gnupg", "apscheduler", "rich", "pydantic", "cryptography", "psycopg", "click", "structlog"]
    program = f"import sys, backupd; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_commands_that_ask_no_database_load_no_client_of_one() -> None:
    """Scripts run `backupd list` in loops, and loading psycopg would be the longest part of such a run."""
    heavy = ["psycopg", "boto3", "azure", "gnupg", "apscheduler", "asyncio"]
    modules = "backupd.service, backupd.cli.list, backupd.cli.verify, backupd.cli.audit, backupd.cli.keys"
    program = f"import sys, {modules}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_stated_once_in_effect() -> None:
    stated = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None
    assert stated[1] == backupd.__version__


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock", "requirements-build.lock"])
def test_a_lock_holds_only_pinned_versions_and_their_hashes(name: str) -> None:
    """No index, no link, no path: each requirement is `name==version` with at least one SHA-256."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    pinned = re.compile(r"[a-z0-9.\-]+==[\w.+]+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    loose = [line[:80] for line in text.splitlines() if not pinned.fullmatch(line.strip())]
    assert text.count("==") > 3
    assert loose == []


def test_the_small_locks_agree_with_the_large_one() -> None:
    """The demo and the image run the very files that were tested."""
    everything = set((ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines())
    for name in ("requirements.lock", "requirements-build.lock"):
        hashes = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "--hash" in line]
        assert [line for line in hashes if not {line, line.removesuffix(" \\"), line + " \\"} & everything] == []


@pytest.mark.parametrize("name", ["dev", ".ci/run"])
def test_a_script_is_executable_where_it_is_called_by_name(name: str) -> None:
    script = ROOT / name
    assert script.read_bytes().startswith(b"#!")
    assert name != "dev" or os.access(script, os.X_OK)


SKIPPING = """
import pytest

def test_skips():
    pytest.skip("the server is not here")

@pytest.mark.xfail(reason="known", strict=False)
def test_is_expected_to_fail():
    assert False

def test_runs():
    pass
"""


@pytest.mark.parametrize(("ci", "outcome"), [("true", "2 failed, 1 passed"), ("", "1 passed, 1 skipped, 1 xfailed")])
def test_in_ci_a_test_that_did_not_run_is_a_failure(tmp_path: Path, ci: str, outcome: str) -> None:
    """Run by pytest itself, with the repository's own conftest as a plugin."""
    (tmp_path / "test_that_skips.py").write_text(SKIPPING, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CI": ci},
        check=False,
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout, done.stdout + done.stderr
