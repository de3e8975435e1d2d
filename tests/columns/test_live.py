"""A keyring in a running application follows its custodian, and is turned against it by neither failures nor forged values."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from backupd.columns import Cell, KeysUnusable, Malformed, NotAuthentic, RetiredKey, UnknownKey
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.columns.live import MAX_AGE_S, PAUSE_S, LiveKeyring
from backupd.errors import SecretUnavailable
from backupd.redact import Secret
from tests.columns.frames import variables

CELL = Cell("users", "totp_secret", "42")
SEED = Secret("KRSXG5CTMVRXEZLU")  # lives for as long as the process, and so is redacted in every other test
FIRST = Keyring.generate("2025-1")
SECOND = FIRST.extended("2026-1")


class Custodian:
    """Gives what it has, or fails; counts how often it was asked."""

    def __init__(self, keyring: Keyring) -> None:
        self.has: Callable[[], Secret] = keyring.render
        self.asked = 0

    def fetch(self) -> Secret:
        self.asked += 1
        return self.has()

    def down(self) -> Secret:
        raise SecretUnavailable("vault:secret/clinic is sealed", "unseal it")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def custodian() -> Custodian:
    return Custodian(FIRST)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(custodian: Custodian, clock: Clock) -> LiveKeyring:
    return LiveKeyring(custodian.fetch, clock=clock)


def test_nothing_is_fetched_before_it_is_needed_and_then_once(keys: LiveKeyring, custodian: Custodian) -> None:
    assert custodian.asked == 0
    assert keys.load() == FIRST
    for _ in range(3):
        assert keys.decrypt(CELL, keys.encrypt(CELL, SEED)) == SEED
    assert custodian.asked == 1


def test_a_value_under_a_new_key_brings_the_new_keyring_at_once(keys: LiveKeyring, custodian: Custodian) -> None:
    keys.load()
    custodian.has = SECOND.render
    assert keys.decrypt(CELL, AesGcm(SECOND).encrypt(CELL, SEED)) == SEED
    assert keys.key_id(keys.encrypt(CELL, SEED)) == "2026-1"
    assert custodian.asked == 2


def test_two_rotations_on_the_heels_of_each_other_are_followed(keys: LiveKeyring, custodian: Custodian) -> None:
    third = SECOND.extended("2027-1")
    keys.load()
    for keyring in (SECOND, third):
        custodian.has = keyring.render
        assert keys.decrypt(CELL, AesGcm(keyring).encrypt(CELL, SEED)) == SEED


def test_an_application_that_only_writes_follows_within_the_keyrings_age(
    keys: LiveKeyring, custodian: Custodian, clock: Clock
) -> None:
    keys.load()
    custodian.has = SECOND.render
    clock.now = MAX_AGE_S - 1
    assert keys.key_id(keys.encrypt(CELL, SEED)) == "2025-1"
    clock.now = MAX_AGE_S
    assert keys.key_id(keys.encrypt(CELL, SEED)) == "2026-1"


def test_values_under_keys_that_do_not_exist_are_not_turned_into_requests(
    keys: LiveKeyring, custodian: Custodian, clock: Clock
) -> None:
    forged = [AesGcm(Keyring.generate(f"forged-{number}")).encrypt(CELL, SEED) for number in range(50)]
    keys.load()
    for value in forged:
        with pytest.raises(UnknownKey, match="forged-"):
            keys.decrypt(CELL, value)
    assert custodian.asked == 2
    clock.now = PAUSE_S
    with pytest.raises(UnknownKey):
        keys.decrypt(CELL, forged[0])
    assert custodian.asked == 3


def test_a_retired_key_is_told_from_an_unknown_one(keys: LiveKeyring, custodian: Custodian) -> None:
    old = AesGcm(FIRST).encrypt(CELL, SEED)
    custodian.has = SECOND.without("2025-1").render
    with pytest.raises(RetiredKey):
        keys.decrypt(CELL, old)


def test_a_custodian_that_is_down_at_the_start_is_an_error_and_is_asked_again(keys: LiveKeyring, custodian: Custodian) -> None:
    custodian.has = custodian.down
    with pytest.raises(SecretUnavailable):
        keys.load()
    custodian.has = FIRST.render
    assert keys.load() == FIRST


def test_a_keyring_that_is_none_at_the_start_is_an_error(custodian: Custodian) -> None:
    custodian.has = lambda: Secret("{}")
    with pytest.raises(KeysUnusable):
        LiveKeyring(custodian.fetch).load()


@pytest.mark.parametrize("kind", [str, str.encode])
def test_a_function_that_returns_no_secret_is_told_so_and_the_keys_are_not_shown(
    custodian: Custodian, kind: Callable[[str], object]
) -> None:
    written = FIRST.render().text()
    custodian.has = lambda: kind(written)  # type: ignore[assignment,return-value]  # what is tested
    with pytest.raises(TypeError, match=r"returns is a Secret, not (str|bytes): wrap text in backupd") as caught:
        LiveKeyring(custodian.fetch).load()
    assert "keys" not in variables(caught.value)


def test_a_keyring_is_fetched_by_a_function_alone() -> None:
    with pytest.raises(TypeError, match="takes a function that returns the keyring, not Secret"):
        LiveKeyring(FIRST.render())  # type: ignore[arg-type]  # what is tested


def broken(custodian: Custodian) -> list[Callable[[], Secret]]:
    def fails() -> Secret:
        raise OSError("a message with a password in it: hunter2hunter2")

    return [custodian.down, lambda: Secret("no keyring"), fails]


@pytest.mark.parametrize("how", range(3))
def test_a_custodian_that_fails_later_takes_nothing_away(
    keys: LiveKeyring, custodian: Custodian, clock: Clock, how: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there serves on; a warning says why, in words of ours; the custodian is left in peace for a while."""
    value = keys.encrypt(CELL, SEED)
    custodian.has = broken(custodian)[how]
    clock.now = MAX_AGE_S
    for _ in range(5):
        assert keys.decrypt(CELL, value) == SEED
    assert custodian.asked == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "serves on" in caplog.text
    assert "hunter2" not in caplog.text
    clock.now += PAUSE_S
    custodian.has = SECOND.render
    assert keys.key_id(keys.encrypt(CELL, SEED)) == "2026-1"


def test_a_new_key_while_the_custodian_is_down_is_unknown_until_it_is_back(
    keys: LiveKeyring, custodian: Custodian, clock: Clock
) -> None:
    keys.load()
    custodian.has = custodian.down
    new = AesGcm(SECOND).encrypt(CELL, SEED)
    with pytest.raises(UnknownKey):
        keys.decrypt(CELL, new)
    custodian.has = SECOND.render
    clock.now = PAUSE_S
    assert keys.decrypt(CELL, new) == SEED


OLDER = {
    "before a key was added": (SECOND, FIRST, "without the key 2026-1"),
    "before a key was retired": (SECOND.without("2025-1"), SECOND, "has the key 2025-1, which is retired"),
    "before both": (SECOND.without("2025-1"), FIRST, "without the key 2026-1"),
    "another's": (SECOND, Keyring.generate("2025-1").extended("2026-1"), "without the key 2025-1, 2026-1"),
}


@pytest.mark.parametrize("name", OLDER)
def test_a_keyring_from_before_is_not_taken_and_an_error_says_so(
    clock: Clock, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is copied back: what was written since could not be read, and a key that is given up would be used again."""
    newest, older, reason = OLDER[name]
    custodian = Custodian(newest)
    keys = LiveKeyring(custodian.fetch, clock=clock)
    value = keys.encrypt(CELL, SEED)
    custodian.has = older.render
    clock.now = MAX_AGE_S
    assert keys.key_id(keys.encrypt(CELL, SEED)) == "2026-1"
    assert keys.decrypt(CELL, value) == SEED
    with pytest.raises(UnknownKey):
        keys.decrypt(CELL, AesGcm(Keyring.generate("2024-1")).encrypt(CELL, SEED))
    assert keys.load() == newest
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert reason in caplog.text
    clock.now += PAUSE_S
    custodian.has = newest.extended("2027-1").render
    assert keys.key_id(keys.encrypt(CELL, SEED)) == "2027-1"


def test_a_rotation_and_a_retirement_are_no_step_back(keys: LiveKeyring, custodian: Custodian, clock: Clock) -> None:
    joined = FIRST.joined(Keyring.generate("2026-1"))
    promoted = joined.promoted("2026-1")
    keys.load()
    for keyring in (joined, promoted, promoted.promoted("2025-1"), promoted, promoted.without("2025-1")):
        custodian.has = keyring.render
        clock.now += MAX_AGE_S
        assert keys.load() == keyring


def test_what_is_wrong_with_the_value_itself_asks_nobody(keys: LiveKeyring, custodian: Custodian) -> None:
    value = keys.encrypt(CELL, SEED)
    with pytest.raises(NotAuthentic):
        keys.decrypt(Cell("users", "totp_secret", "43"), value)
    with pytest.raises(Malformed):
        keys.decrypt(CELL, b"JBSWY3DPEHPK3PXP")
    assert custodian.asked == 1


def in_threads(count: int, work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_many_threads_that_meet_a_new_key_fetch_once(keys: LiveKeyring, custodian: Custodian) -> None:
    keys.load()
    custodian.has = SECOND.render
    new, start = AesGcm(SECOND).encrypt(CELL, SEED), threading.Barrier(16)

    def read() -> None:
        start.wait(60)
        assert keys.decrypt(CELL, new) == SEED

    in_threads(16, read)
    assert custodian.asked == 2


def test_a_keyring_that_is_fetched_for_its_age_keeps_no_other_thread_waiting(
    keys: LiveKeyring, custodian: Custodian, clock: Clock
) -> None:
    value, asked, answer = keys.encrypt(CELL, SEED), threading.Event(), threading.Event()

    def slow() -> Secret:
        asked.set()
        assert answer.wait(60)
        return SECOND.render()

    custodian.has = slow
    clock.now = MAX_AGE_S
    fetching = threading.Thread(target=lambda: keys.encrypt(CELL, SEED))
    fetching.start()
    assert asked.wait(60)
    assert keys.decrypt(CELL, value) == SEED
    answer.set()
    fetching.join(60)
    assert keys.load() == SECOND


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 and newer advise against just this
def test_a_process_that_is_forked_while_a_thread_fetches_can_fetch_too(
    keys: LiveKeyring, custodian: Custodian, clock: Clock
) -> None:
    """As a server that forks its workers does. The thread is not in the child, and neither may its lock be."""
    keys.load()
    new, asked, answer = AesGcm(SECOND).encrypt(CELL, SEED), threading.Event(), threading.Event()

    def slow() -> Secret:
        asked.set()
        assert answer.wait(60)
        return SECOND.render()

    custodian.has = slow
    clock.now = MAX_AGE_S
    fetching = threading.Thread(target=lambda: keys.encrypt(CELL, SEED))
    fetching.start()
    assert asked.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # which ends it, should it hang
        custodian.has = SECOND.render
        os._exit(0 if keys.decrypt(CELL, new) == SEED else 1)
    _, status = os.waitpid(child, 0)
    answer.set()
    fetching.join(60)
    assert os.waitstatus_to_exitcode(status) == 0


def test_neither_the_keyring_nor_a_key_prints(keys: LiveKeyring) -> None:
    keys.load()
    assert "Secret(**redacted**)" in repr(keys.load())
    assert "2025" not in repr(keys)
