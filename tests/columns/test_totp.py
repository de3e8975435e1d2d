"""One-time passwords, against the tables of RFC 4226 and RFC 6238."""

import hashlib
from base64 import b32encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyotp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.columns import SeedInvalid
from backupd.columns.totp import (
    STANDARD,
    Algorithm,
    Parameters,
    accepted_step,
    code,
    decode_seed,
    hotp,
    new_seed,
    provisioning_uri,
    verify,
    wrong_code,
)
from backupd.redact import Secret
from tests.columns.frames import variables

KEY = Secret(b"12345678901234567890")
RFC_KEYS = {
    Algorithm.SHA1: KEY,
    Algorithm.SHA256: Secret(b"12345678901234567890123456789012"),
    Algorithm.SHA512: Secret(b"1234567890123456789012345678901234567890123456789012345678901234"),
}
RFC_4226 = ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"]
RFC_6238 = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]
NOW = datetime(2026, 11, 24, 2, 0, 10, tzinfo=UTC)
PARAMETERS = [Parameters(digits, 30, algorithm) for digits in (6, 8) for algorithm in Algorithm]
keys = st.binary(min_size=10, max_size=64).map(Secret)
times = st.datetimes(datetime(1970, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC))


def moment(seconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(("counter", "expected"), list(enumerate(RFC_4226)))
def test_hotp_of_rfc_4226_appendix_d(counter: int, expected: str) -> None:
    assert hotp(KEY, counter) == expected


@pytest.mark.parametrize(("seconds", "sha1", "sha256", "sha512"), RFC_6238)
def test_totp_of_rfc_6238_appendix_b(seconds: int, sha1: str, sha256: str, sha512: str) -> None:
    for algorithm, expected in zip(Algorithm, (sha1, sha256, sha512), strict=True):
        eight, six = Parameters(8, 30, algorithm), Parameters(6, 30, algorithm)
        assert code(RFC_KEYS[algorithm], moment(seconds), eight) == expected
        assert code(RFC_KEYS[algorithm], moment(seconds), six) == expected[-6:]
        assert verify(RFC_KEYS[algorithm], expected, moment(seconds), eight, window=0)


def test_a_code_holds_for_its_period_and_no_longer() -> None:
    assert code(KEY, moment(59)) == code(KEY, moment(30)) == "287082"
    assert code(KEY, moment(60)) == "359152"
    assert code(KEY, moment(119), Parameters(period_s=60)) == code(KEY, moment(60), Parameters(period_s=60)) == "287082"


def test_a_time_is_the_same_moment_in_every_zone() -> None:
    assert code(KEY, moment(59).astimezone(timezone(timedelta(hours=5, minutes=45)))) == "287082"


@pytest.mark.parametrize("at", [datetime(2026, 11, 24), moment(-1)])
def test_a_naive_time_and_one_before_1970_are_bugs(at: datetime) -> None:
    with pytest.raises(ValueError, match="aware"):
        code(KEY, at)


def test_the_window_is_one_period_to_each_side() -> None:
    for periods, good in [(-2, False), (-1, True), (0, True), (1, True), (2, False)]:
        shown = code(KEY, NOW + timedelta(seconds=30 * periods))
        assert verify(KEY, shown, NOW) is good
        assert verify(KEY, shown, NOW, window=0) is (periods == 0)


def test_in_the_first_period_of_all_there_is_none_before() -> None:
    assert verify(KEY, RFC_4226[0], moment(0))
    assert verify(KEY, RFC_4226[1], moment(0))
    assert not verify(KEY, RFC_4226[2], moment(0))


@pytest.mark.parametrize(
    "given_code",
    [
        "",
        "28708",
        "2870822",
        " 287082",
        "287082 ",
        "287 082",
        "\uff12\uff18\uff17\uff10\uff18\uff12",
        "abcdef",
        "\0" * 6,
        "\ud800",
    ],
)
def test_what_is_not_exactly_the_code_is_refused(given_code: str) -> None:
    assert verify(KEY, "287082", moment(59))
    assert not verify(KEY, given_code, moment(59))


@given(keys, times, st.sampled_from(PARAMETERS), st.integers(0, 3))
def test_the_right_code_verifies_and_the_wrong_one_never_does(
    key: Secret, at: datetime, parameters: Parameters, window: int
) -> None:
    right, wrong = code(key, at, parameters), wrong_code(key, at, parameters, window=window)
    assert verify(key, right, at, parameters, window=window)
    assert not verify(key, wrong, at, parameters, window=window)
    assert len(wrong) == len(right) == parameters.digits
    assert wrong.isdigit()


def test_the_wrong_code_steps_over_the_code_of_a_neighbouring_period() -> None:
    """At this moment, found by search, the next number after the right code is the right code of the next period."""
    at = moment(1401316 * 30)
    assert (code(KEY, at), code(KEY, at + timedelta(seconds=30))) == ("258751", "258752")
    assert wrong_code(KEY, at, window=0) == "258752"
    assert wrong_code(KEY, at) == "258753"


@given(st.binary(min_size=10, max_size=80))
def test_every_seed_decodes_to_its_bytes(data: bytes) -> None:
    written = b32encode(data).decode()
    grouped = " ".join(written.rstrip("=")[start : start + 4] for start in range(0, len(written), 4))
    for spelling in (
        written,
        written.rstrip("="),
        written.lower(),
        grouped,
        grouped.lower(),
        grouped.replace(" ", "-"),
        written + "\n",
    ):
        seed = decode_seed(Secret(spelling))
        assert seed.key.reveal() == data
        assert seed.warnings == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("\n", "empty"),
        ("    ", "empty"),
        ("====", "empty"),
        ("JBSWY3DPEHPK3PX1", "characters"),
        ("JBSWY3DPEHPK3PX0", "characters"),
        ("JBSWY3DPEHPK3PX8", "characters"),
        ("JBSWY3DP=EHPK3PXP", "characters"),
        ("JBSWY3DPEHPK3PXP\n\n", "characters"),
        ("JBSWY3DPEHPK3PX\u0131", "ASCII"),
        ("JBSWY3DPEHPK3PX\u017f", "ASCII"),
        ("JBSWY3DPEHPK3PXP\u00a0", "ASCII"),
        ("JBSWY3DPEHPK3PXPA", "length"),
        ("JBSWY3DPEHPK3PXPAAA", "length"),
        ("JBSWY3DPEHPK3PXPAAAAAA", "length"),
        ("JBSWY3DPEHPK3PXP=", "length"),
        ("JBSWY3DPEHPK3PXPAA=", "length"),
        ("JBSWY3DPEHPK3PXPAA=======", "length"),
        ("otpauth://totp/x?secret=JBSWY3DPEHPK3PXP", "characters"),
        ("cw_0x689RpI-jtRR7oE8h", "characters"),
    ],
)
def test_what_is_no_base32_is_refused_without_being_shown(text: str, reason: str) -> None:
    with pytest.raises(SeedInvalid, match=reason) as caught:
        decode_seed(Secret(text))
    shown = f"{caught.value.message} {caught.value.hint} {variables(caught.value)}"
    assert not any(piece in shown for piece in ("JBSWY3DP", "cw_0x689RpI"))


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(SeedInvalid, match="not even text") as caught:
        decode_seed(Secret(b"\xff\xfe"))
    assert r"\xff" not in variables(caught.value)


@pytest.mark.parametrize(("size", "warned"), [(1, True), (9, True), (10, False), (16, False), (20, False), (64, False)])
def test_a_short_seed_is_warned_about(size: int, warned: bool) -> None:
    seed = decode_seed(Secret(b32encode(bytes(range(size)))))
    assert bool(seed.warnings) is warned
    assert len(seed.key) == size


def test_a_seed_drawn_letter_by_letter_works_and_is_warned_about() -> None:
    """26 random letters are 130 bits; apps drop the last two, and so do we."""
    clean, odd = decode_seed(Secret("A" * 25 + "E")), decode_seed(Secret("A" * 25 + "F"))
    assert clean.key == odd.key
    assert clean.warnings == ()
    assert "belong to no byte" in odd.warnings[0]


def test_a_seed_does_not_print() -> None:
    assert "1234567890" not in repr(decode_seed(Secret(b32encode(KEY.reveal()))))


@pytest.mark.parametrize("make", [lambda: Parameters(digits=5), lambda: Parameters(digits=9), lambda: Parameters(period_s=0)])
def test_parameters_that_make_no_codes_are_bugs(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="6 to 8 digits"):
        make()


def test_the_standard_is_what_authenticator_apps_assume() -> None:
    assert (STANDARD.digits, STANDARD.period_s, STANDARD.algorithm) == (6, 30, Algorithm.SHA1)


# ------------------------------------------------------------------------------------------------------------- once only


def test_a_code_tells_its_step_and_is_good_once() -> None:
    step = accepted_step(KEY, "287082", moment(59))
    assert step == 1
    assert accepted_step(KEY, "287082", moment(59), after=step) is None
    assert accepted_step(KEY, "287082", moment(89), after=step) is None
    assert accepted_step(KEY, "359152", moment(60), after=step) == 2


def test_the_step_is_that_of_the_code_and_not_of_the_clock() -> None:
    for periods in (-1, 0, 1):
        shown = code(KEY, NOW + timedelta(seconds=30 * periods))
        assert accepted_step(KEY, shown, NOW) == int(NOW.timestamp()) // 30 + periods


def test_once_the_code_of_a_fast_clock_was_accepted_those_before_it_are_spent_too() -> None:
    step = accepted_step(KEY, code(KEY, NOW + timedelta(seconds=30)), NOW)
    assert accepted_step(KEY, code(KEY, NOW), NOW, after=step) is None
    assert accepted_step(KEY, code(KEY, NOW - timedelta(seconds=30)), NOW, after=step) is None


def test_a_code_that_two_steps_of_the_window_share_is_spent_for_both() -> None:
    """Found by search: the steps before and after this one have the same code."""
    middle = 153568
    shared = hotp(KEY, middle - 1)
    assert shared == hotp(KEY, middle + 1)
    assert accepted_step(KEY, shared, moment(middle * 30)) == middle + 1
    assert accepted_step(KEY, shared, moment(middle * 30), after=middle + 1) is None
    assert accepted_step(KEY, shared, moment(middle * 30), after=middle - 1) == middle + 1


@given(keys, times, st.sampled_from(PARAMETERS), st.integers(0, 3), st.integers(-4, 4), st.integers(-4, 4))
def test_only_a_later_step_of_the_window_is_accepted(
    key: Secret, at: datetime, parameters: Parameters, window: int, shown: int, last: int
) -> None:
    now = int((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) // 30
    given_code = hotp(key, max(0, now + shown), parameters)
    good = {step for step in range(max(0, now - window), now + window + 1) if hotp(key, step, parameters) == given_code}
    accepted = accepted_step(key, given_code, at, parameters, window=window, after=now + last)
    assert accepted == max((step for step in good if step > now + last), default=None)


# --------------------------------------------------------------------------------------------- pyotp as a second opinion

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":"), min_size=1, max_size=20).filter(str.strip)


@given(st.binary(min_size=14, max_size=40), names, names, st.sampled_from(PARAMETERS), st.sampled_from([15, 30, 60]))
def test_pyotp_reads_the_provisioning_uri_and_makes_the_same_codes(
    seed: bytes, account: str, issuer: str, parameters: Parameters, period_s: int
) -> None:
    ours = Parameters(parameters.digits, period_s, parameters.algorithm)
    text = Secret(b32encode(seed))
    read = pyotp.parse_uri(provisioning_uri(text, account, issuer, ours).text())
    assert isinstance(read, pyotp.TOTP)
    assert (read.name, read.issuer, read.interval, read.digits) == (account, issuer, period_s, ours.digits)
    assert read.byte_secret() == seed
    assert read.at(NOW) == code(decode_seed(text).key, NOW, ours)


@given(st.sampled_from(PARAMETERS))
def test_the_provisioning_uri_is_the_one_that_pyotp_writes(parameters: Parameters) -> None:
    text = new_seed()
    hashes = {Algorithm.SHA1: hashlib.sha1, Algorithm.SHA256: hashlib.sha256, Algorithm.SHA512: hashlib.sha512}
    theirs = pyotp.TOTP(text.text(), digits=parameters.digits, digest=hashes[parameters.algorithm])
    expected = theirs.provisioning_uri(name="ward 7 é@clinic.example", issuer_name="Clinic & Söhne")
    assert provisioning_uri(text, "ward 7 é@clinic.example", "Clinic & Söhne", parameters).text() == expected


def test_a_seed_however_it_is_spelt_goes_into_the_uri_as_authenticators_take_it() -> None:
    uri = provisioning_uri(Secret("jbsw y3dp-ehpk 3pxp\n"), "a", "b").text()
    assert uri == "otpauth://totp/b:a?secret=JBSWY3DPEHPK3PXP&issuer=b"


@pytest.mark.parametrize(("account", "issuer"), [("", "b"), ("a", " "), ("a:c", "b"), ("a", "b:c")])
def test_names_that_an_authenticator_would_part_otherwise_are_bugs(account: str, issuer: str) -> None:
    with pytest.raises(ValueError, match="without a colon"):
        provisioning_uri(new_seed(), account, issuer)


def test_a_name_that_no_address_can_hold_shows_no_seed() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        provisioning_uri(Secret("JBSWY3DPEHPK3PXP"), "half a character \ud800", "Clinic")
    assert "JBSWY3DP" not in variables(caught.value)


def test_what_is_no_seed_goes_into_no_uri() -> None:
    with pytest.raises(SeedInvalid):
        provisioning_uri(Secret("otpauth://totp/x"), "a", "b")


def test_new_seeds_are_160_random_bits_and_the_uri_does_not_print() -> None:
    first, second = new_seed(), new_seed()
    assert first != second
    assert len(first) == 32
    assert len(decode_seed(first).key) == 20
    assert "otpauth" not in repr(provisioning_uri(first, "a", "b"))


@pytest.mark.parametrize("given_code", [123456, None, b"123456"])
def test_a_code_is_text(given_code: Any) -> None:
    with pytest.raises(TypeError, match=f"a code is text as it was typed, not {type(given_code).__name__}"):
        verify(KEY, given_code, datetime(2026, 1, 1, tzinfo=UTC))


SEED_AS_TEXT: Any = "JBSWY3DPEHPK3PXP"


@pytest.mark.parametrize(
    "make",
    [
        lambda: decode_seed(SEED_AS_TEXT),
        lambda: provisioning_uri(SEED_AS_TEXT, "a", "Clinic"),
        lambda: code(SEED_AS_TEXT, datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_seed_is_a_secret(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="is a Secret, not str: wrap text in"):
        make()
