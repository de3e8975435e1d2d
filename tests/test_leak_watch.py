"""The leak watch finds what it must, names it, and never shows it. Every value here is fixed."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.leak_watch import LeakError, Planted, Registry

pytest_plugins = ["pytester"]

SECRET = "correct-horse-battery-staple"
RAW = b"\n\x00\xff raw key\nwith line ends\n"


def _run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    pytester.makepyfile(
        f"import base64, logging, os, subprocess, sys\nimport pytest\nSECRET = {SECRET!r}\nRAW = {RAW!r}\n"
        "def test_it(planted, tmp_path):\n"
        f"    planted.register(SECRET, 'passphrase')\n    planted.register(RAW, 'key')\n{lines}\n"
    )
    return pytester.runpytest_inprocess("-p", "tests.leak_watch", "-p", "no:cacheprovider", "-p", "no:xdist")


def _refused(result: pytest.RunResult, message: str) -> None:
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*leak watch: {message}*"])
    for form in (SECRET, RAW.hex(), repr(RAW)[2:-1], base64.b64encode(RAW).decode().rstrip("=")):
        assert form not in result.stdout.str()
        assert form not in result.stderr.str()


@given(st.lists(st.binary(min_size=8, max_size=24), min_size=1, max_size=8), st.binary(max_size=40), st.data())
def test_a_search_finds_what_a_look_for_each_form_finds(secrets: list[bytes], data: bytes, choose: st.DataObject) -> None:
    """At every place, the first and the last byte too, and where two secrets begin alike."""
    registry = Registry()
    for number, secret in enumerate([*secrets, secrets[0][:8], secrets[0] + b"more"]):
        registry.add(secret, f"secret {number}")
    form = choose.draw(st.sampled_from(sorted(registry.needles)))
    at = choose.draw(st.integers(0, len(data)))
    for searched in (data, data[:at] + form + data[at:], data[:at] + form[:-1], data[:at] + form):
        found = {leak.kind for leak in registry.search(searched, "")}
        assert found == {kind for needle, kind in registry.needles.items() if needle in searched}


def test_a_test_that_keeps_its_secrets_passes(pytester: pytest.Pytester) -> None:
    result = _run(
        pytester,
        """
print("nothing of note")
(planted.watch(tmp_path) / "a.log").write_text("nothing either\\n\\n")
subprocess.run([sys.executable, "-c", ""], input=SECRET.encode(), env={**os.environ, "PW": SECRET}, check=True)
""",
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("print(SECRET)", "passphrase in Captured stdout call"),
        ("print('x' + SECRET + 'y', file=sys.stderr)", "passphrase in Captured stderr call"),
        ("logging.getLogger('a').warning('is %s', SECRET)", "passphrase in Captured log call"),
        ("print(RAW)", "key in Captured stdout call"),
        ("print(RAW.hex())", "key in Captured stdout call"),
        ("print(RAW.hex().upper())", "key in Captured stdout call"),
        ("print(base64.b64encode(RAW).decode())", "key in Captured stdout call"),
        ("print(base64.urlsafe_b64encode(RAW).decode().rstrip('='))", "key in Captured stdout call"),
    ],
)
def test_output_with_a_secret_is_refused_and_withheld(pytester: pytest.Pytester, statement: str, where: str) -> None:
    result = _run(pytester, statement)
    _refused(result, where)
    result.assert_outcomes(failed=1)


def test_a_secret_in_a_watched_file_is_refused(pytester: pytest.Pytester) -> None:
    _refused(_run(pytester, "planted.watch(tmp_path / 'a.log').write_bytes(b'x' + RAW)"), "key in file a.log")


def test_a_secret_anywhere_below_a_watched_directory_is_refused(pytester: pytest.Pytester) -> None:
    body = "(tmp_path / 'deep').mkdir()\nplanted.watch(tmp_path)\n(tmp_path / 'deep' / 'b').write_text(SECRET)"
    _refused(_run(pytester, body), "passphrase in file b")


def test_a_watched_file_that_was_never_written_is_refused(pytester: pytest.Pytester) -> None:
    _refused(_run(pytester, "planted.watch(tmp_path / 'a.log')"), "nothing to watch in a.log, which is not there")


@pytest.mark.parametrize(
    "start",
    [
        "subprocess.run(['true', '--password=' + SECRET])",
        "os.waitpid(os.posix_spawnp('true', ['true', SECRET], os.environ), 0)",
    ],
)
def test_a_secret_in_the_arguments_of_a_child_is_refused(pytester: pytest.Pytester, start: str) -> None:
    _refused(_run(pytester, start), "passphrase in the arguments of true")


def test_a_secret_in_the_arguments_of_a_grandchild_is_refused(pytester: pytest.Pytester) -> None:
    body = """
code = "import subprocess, sys; subprocess.run(['true', sys.stdin.read()])"
subprocess.run([sys.executable, "-c", code], input=SECRET.encode(), env=os.environ | planted.child_environment(), check=True)
"""
    _refused(_run(pytester, body), "passphrase in the arguments of true")


def test_a_later_test_is_watched_for_the_secrets_of_an_earlier_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        SECRET = {SECRET!r}
        def test_first(planted):
            planted.register(SECRET)
        def test_second():
            print(SECRET)
        """
    )
    result = pytester.runpytest_inprocess("-p", "tests.leak_watch", "-p", "no:cacheprovider", "-p", "no:xdist")
    result.assert_outcomes(passed=1, failed=1)
    _refused(result, "secret in Captured stdout call")


def test_output_while_fixtures_end_is_watched(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        SECRET = {SECRET!r}
        @pytest.fixture
        def noisy(planted):
            yield planted.register(SECRET)
            print(SECRET)
        def test_it(noisy):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "tests.leak_watch", "-p", "no:cacheprovider", "-p", "no:xdist")
    result.assert_outcomes(passed=1, errors=1)
    _refused(result, "secret in Captured stdout teardown")


def test_a_failed_test_that_leaks_keeps_its_own_failure(pytester: pytest.Pytester) -> None:
    result = _run(pytester, "print(SECRET)\nassert 1 == 2")
    _refused(result, "passphrase in Captured stdout call")
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])


def test_a_secret_across_two_blocks_of_a_file_is_found(tmp_path: Path) -> None:
    registry = Registry()
    registry.add(RAW, "key")
    file = tmp_path / "large"
    for before in ((1 << 20) - 5, (1 << 20) - len(RAW) + 1, 2 << 20):
        file.write_bytes(b"." * before + RAW + b"." * 100)
        assert [leak.kind for leak in registry.search_file(file, "large")] == ["key"]


@pytest.mark.parametrize("secret", [b"", b"1234567", b"\n"])
def test_a_secret_that_would_be_found_everywhere_is_refused(planted: Planted, secret: bytes) -> None:
    with pytest.raises(ValueError, match="at least 8 bytes"):
        planted.register(secret)


def test_planted_secrets_are_what_they_say_and_all_differ(planted: Planted) -> None:
    seeds = {planted.seed() for _ in range(3)}
    assert {len(base64.b32decode(seed)) for seed in seeds} == {20}
    assert {len(seed) for seed in seeds} == {32}
    assert len(planted.key()) == 32
    assert len(planted.password()) == 24
    assert len(planted.passphrase()) == 29
    assert len(seeds | {planted.seed(), planted.password(), planted.passphrase()}) == 6


def test_output_that_a_test_read_itself_can_be_checked(planted: Planted) -> None:
    seed = planted.seed()
    planted.assert_absent("no secret\n\n", "the answer")
    with pytest.raises(LeakError) as found:
        planted.assert_absent(f"secret={seed}", "the answer")
    assert str(found.value) == "leak watch: TOTP seed in the answer"


def test_arguments_of_a_running_process_can_be_checked(tmp_path: Path) -> None:
    apart = Planted(Registry(), "a registry that does not watch this test", tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()", SECRET], stdin=subprocess.PIPE) as child:
        apart.assert_not_in_argv(child.pid)
        apart.register(SECRET)
        with pytest.raises(LeakError, match=f"^leak watch: secret in the arguments of process {child.pid}$"):
            apart.assert_not_in_argv(child.pid)
        child.communicate(b"\n", timeout=60)
