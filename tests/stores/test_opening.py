"""Opening a store by its url, names that every store takes or refuses, and the retry loop by itself."""

import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from backupd.errors import ConfigError, Interrupted, StoreDenied, StoreUnavailable
from backupd.redact import Secret
from backupd.stores import AzureLogin, Lock, Patience, S3Keys, check_name, open_store
from backupd.stores.retries import attempt
from tests.stores.contract import Naps

CHECKOUT = Path(__file__).parents[2]
ENDPOINT = "http://127.0.0.1:1"
KEYS = S3Keys("id", Secret("a secret of S3"))
LOGIN = AzureLogin(account_key=Secret("YSBzZWNyZXQ="))


@pytest.mark.parametrize(
    ("url", "options", "shown"),
    [
        ("file:///var/lib/backupd/store", {}, "file:///var/lib/backupd/store"),
        ("file:///with%20space", {}, "file:///with%20space"),
        ("file://localhost/srv", {}, "file:///srv"),
        ("s3://bucket", {"endpoint_url": ENDPOINT, "keys": KEYS}, "s3://bucket"),
        ("s3://bucket/a/b/", {"endpoint_url": ENDPOINT, "keys": KEYS}, "s3://bucket/a/b"),
        ("s3://bucket", {"keys": KEYS}, "s3://bucket"),
        ("s3://bucket/a", {"region": "eu-central-1", "keys": KEYS}, "s3://bucket/a"),
        ("azure://container/a", {"endpoint_url": f"{ENDPOINT}/account", "login": LOGIN}, "azure://container/a"),
    ],
)
def test_each_scheme_opens_its_store_without_asking_any_server(url: str, options: dict[str, Any], shown: str) -> None:
    store = open_store(url, **options)
    assert store.url == shown
    assert store.limits.smallest <= 5 * 2**20 < store.limits.largest
    assert store.limits.parts >= 10_000


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("s4://bucket", "did you mean s3://"),
        ("azur://container", "did you mean azure://"),
        ("files:///x", "did you mean file://"),
        ("gopher://x", "file, s3, azure"),
        ("/var/lib", "file, s3, azure"),
        ("", "file, s3, azure"),
        ("file://var/lib", "three slashes"),
        ("file:relative", "three slashes"),
        ("s3://", "s3://name/prefix"),
        ("s3:///prefix", "s3://name/prefix"),
        ("azure:///prefix", "azure://name/prefix"),
        ("s3://bucket/a//b", "slashes"),
        ("s3://bucket/../b", "slashes"),
        ("s3://[bucket", "azure://container/prefix"),
    ],
)
def test_a_url_that_names_no_store_is_a_configuration_error(url: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize("url", ["s3://KEY:hunter2@bucket/p", "azure://container/p?sig=hunter2", "s3://bucket/p#hunter2"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("file:///x", {"lock": Lock("compliance", 7)}),
        ("file:///x", {"keys": KEYS}),
        ("file:///x", {"endpoint_url": ENDPOINT}),
        ("s3://bucket", {"login": LOGIN}),
        ("azure://container", {"region": "eu"}),
        ("azure://container", {"profile": "p"}),
    ],
)
def test_an_option_that_a_store_cannot_honour_is_refused(url: str, options: dict[str, Any]) -> None:
    """A lock that is silently ignored would seem to protect."""
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} means nothing"):
        open_store(url, **options)


def test_secrets_do_not_show_in_what_reaches_a_store() -> None:
    assert "a secret of S3" not in repr(KEYS)
    assert "YSBzZWNyZXQ=" not in repr(LOGIN)


@pytest.mark.parametrize(("missing", "url", "extra"), [("boto3", "s3://bucket", "s3"), ("azure", "azure://container", "azure")])
def test_a_missing_sdk_is_told_with_what_to_install(missing: str, url: str, extra: str) -> None:
    script = textwrap.dedent("""
        import sys
        sys.modules[sys.argv[1]] = None  # Python's own way to make an import fail
        from backupd.errors import ConfigError
        from backupd.stores import open_store
        try:
            open_store(sys.argv[2])
        except ConfigError as error:
            print(error.hint)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, missing, url], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert f"pip install '.[{extra}]'" in done.stdout
    assert f"pip install 'backupd[{extra}]'" not in done.stdout  # no index has it, unless somebody else took the name


def test_a_store_of_files_imports_no_sdk() -> None:
    """The command line must start quickly, and work where only a directory is used."""
    script = textwrap.dedent("""
        import sys
        from backupd.stores import open_store
        open_store("file:///x")
        print("boto3" in sys.modules, "azure" in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("name", ["a", "a/b-c_d.e/f", "x" * 900, ".hidden", "a/.unfinished", "ü/日本"])
def test_a_good_name_is_returned_as_it_is(name: str) -> None:
    assert check_name(name) == name


# ------------------------------------------------------------------------------------------------------------- retries


class Flaky:
    """Fails as often as told, then gives 7."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_what_may_pass_is_tried_again_and_each_retry_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    naps = Naps()
    call = Flaky(StoreUnavailable("busy"), StoreUnavailable("still busy"))
    with caplog.at_level(logging.WARNING):
        assert attempt("write x", call, Patience(tries=5, base_s=4, cap_s=6, sleep=naps)) == 7
    assert call.calls == 3
    assert 0 <= naps.taken[0] <= 4
    assert 0 <= naps.taken[1] <= 6
    assert [("write x" in line, "busy" in line) for line in caplog.messages] == [(True, True), (True, True)]


def test_the_last_error_is_raised_when_the_tries_are_used_up() -> None:
    naps = Naps()
    call = Flaky(*(StoreUnavailable(f"try {n}") for n in range(1, 10)))
    with pytest.raises(StoreUnavailable, match="try 3"):
        attempt("write x", call, Patience(tries=3, sleep=naps))
    assert call.calls == 3
    assert len(naps.taken) == 2


@pytest.mark.parametrize("error", [StoreDenied("no"), ValueError("bug"), Interrupted("signal")])
def test_what_does_not_pass_is_raised_at_once(error: BaseException) -> None:
    naps = Naps()
    call = Flaky(error)
    with pytest.raises(type(error)):
        attempt("write x", call, Patience(sleep=naps))
    assert (call.calls, naps.taken) == (1, [])
