"""Secrets do not print, and text that is about to be shown holds none of them, while ids, hashes and names stay readable."""

from __future__ import annotations

import base64
import copy
import dataclasses
import gc
import hashlib
import io
import json
import pickle
import random
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, quote_plus
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backupd.redact import REDACTED, Secret, printable, scrub, scrub_value

SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
FINGERPRINT = "ABCDEF234567ABCDEF234567ABCDEF234567ABCD"  # every digit of it could be base32
BACKUP = "20261124T020000Z-5f3c9a"


# ------------------------------------------------------------------------------------------------------------ the holder


@dataclasses.dataclass
class Holder:
    name: str
    secret: Secret


@pytest.mark.parametrize("value", [5, None, [1, 2], 1.5, Secret("a")])
def test_a_secret_is_made_of_text_or_bytes_alone(value: object) -> None:
    """`bytes(5)` is five zeros."""
    with pytest.raises(TypeError, match=f"text or bytes, not of {type(value).__name__}"):
        Secret(value)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("value", ["abc", b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_every_kind_of_text_and_bytes_is_taken(value: bytes) -> None:
    assert Secret(value).reveal() == b"abc"


def _rich(value: object) -> str:
    from rich.console import Console
    from rich.pretty import Pretty

    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(value, Pretty(value), {"a": value})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _locals_of_a_traceback(value: object) -> str:
    try:
        local = value
        raise KeyError(local)
    except KeyError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{}".format,
        "{!r:>40}".format,
        "{:x}".format,
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031  this way of formatting is what is tested
        lambda secret: repr([copy.copy(secret), copy.deepcopy(secret)]),
        lambda secret: repr(dataclasses.asdict(Holder("a", secret))),
        lambda secret: repr(Holder("a", secret)),
        lambda secret: json.dumps({"secret": secret}, default=str),
        lambda secret: str(ValueError(secret)),
        _locals_of_a_traceback,
        _rich,
    ],
)
def test_a_secret_shows_nothing_of_itself(show: Callable[[Secret], str]) -> None:
    """Whichever way a secret is shown, only its placeholder is."""
    shown = show(Secret("correct horse battery"))
    assert "horse" not in shown
    assert REDACTED in shown


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret("correct horse battery"), protocol)


def test_a_secret_becomes_neither_json_nor_bytes_by_accident() -> None:
    secret = Secret("correct horse battery")
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        bytes(secret)  # type: ignore[call-overload]  # that it is an error is what is tested
    with pytest.raises(TypeError):
        vars(secret)


def test_a_secret_does_not_change_and_is_not_hashed() -> None:
    secret = Secret("correct horse battery", "database password")
    with pytest.raises(AttributeError):
        secret.label = "other"
    with pytest.raises(AttributeError):
        del secret.label
    with pytest.raises(TypeError):
        hash(secret)
    assert secret.label == "database password"


def test_secrets_are_equal_by_their_bytes_and_to_secrets_only() -> None:
    assert Secret("abc") == Secret(b"abc", "another label")
    assert Secret("abc") != Secret("abd")
    assert Secret("abc") != "abc"
    assert len(Secret("äb")) == 3


@pytest.mark.parametrize(
    ("stored", "password"), [(b"pw\n", "pw"), (b"pw\r\n", "pw"), (b"pw\n\n", "pw\n"), (b" pw ", " pw "), (b"\n", ""), (b"", "")]
)
def test_a_password_loses_one_line_end_and_nothing_else(stored: bytes, password: str) -> None:
    assert Secret(stored).text() == password


def test_bytes_that_are_no_text_are_named_but_not_shown() -> None:
    with pytest.raises(ValueError, match="the canary is not UTF-8 text") as caught:
        Secret(b"\xff\xfe\xfd", "canary").text()
    assert caught.value.__cause__ is caught.value.__context__ is None


# --------------------------------------------------------------------------------------------------------- living secrets

PASSWORD = 'k9!$ü/ "q\\z&+x'


@pytest.mark.parametrize(
    "spell",
    [
        str,
        lambda text: text.encode().hex(),
        lambda text: text.encode().hex().upper(),
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
        lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
        lambda text: base64.b32encode(text.encode()).decode().lower().rstrip("="),
        quote,
        quote_plus,
        lambda text: quote(text, safe=""),
        lambda text: re.sub("%..", lambda escape: escape[0].lower(), quote(text, safe="")),
        lambda text: json.dumps(text)[1:-1],
        lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
        lambda text: repr(text.encode())[2:-1],
    ],
)
def test_a_living_secret_is_removed_in_every_spelling(spell: Callable[[str], str]) -> None:
    secret = Secret(PASSWORD)
    shown = scrub(f"before <{spell(PASSWORD)}> after")
    assert spell(PASSWORD).strip("=")[3:-3] not in shown
    assert shown.startswith("before <**redacted**")
    assert shown.endswith("> after")
    assert secret.text() == PASSWORD


@given(before=st.binary(max_size=5), secret=st.binary(min_size=6, max_size=40), after=st.binary(max_size=5), url=st.booleans())
def test_a_secret_inside_a_longer_base64_text_is_removed(before: bytes, secret: bytes, after: bytes, url: bool) -> None:
    """At each of the three places that a byte may have in base64, no four characters of the secret's own survive."""
    assume(len(secret.strip(b"\r\n")) >= 6)
    held = Secret(secret)
    encode = base64.urlsafe_b64encode if url else base64.b64encode
    encoded = encode(before + secret + after).decode()
    shown = scrub(f"({encoded})")
    assert REDACTED in shown
    kept = len(shown) - len(REDACTED) - 2
    assert kept <= len(encoded) - (len(held.reveal().strip(b"\r\n") or secret) * 8 - 10) // 6


@given(secret=st.text(st.characters(exclude_categories=["Cs"]), min_size=6, max_size=30), around=st.text(max_size=20))
def test_no_living_secret_survives_in_any_text(secret: str, around: str) -> None:
    """The secret is gone wherever it stands, unless the text around or the placeholder happens to spell it."""
    held = Secret(secret)
    bare = secret.strip("\r\n")
    assume(len(bare) >= 6 and bare not in around + REDACTED + around)
    assert bare not in scrub(around + secret + around).replace(REDACTED, "\x00")
    assert len(held) >= 6


def test_secrets_that_overlap_leave_nothing_between_them() -> None:
    first, second = Secret("alpha-bravo-charlie"), Secret("charlie-delta-echo")
    assert scrub("x alpha-bravo-charlie-delta-echo y") == f"x {REDACTED} y"
    assert first != second


def test_the_longer_of_two_secrets_with_one_beginning_goes_whole() -> None:
    held = [Secret("correct horse"), Secret("correct horse battery")]
    assert scrub("correct horse battery") == REDACTED
    assert len(held) == 2


def test_the_rest_of_a_longer_base32_text_goes_with_a_living_secret() -> None:
    """The rest alone may be shorter than what looks like a secret."""
    held = Secret("OBQXG43XN5ZGIYLT")
    for around in ("{}MFRGGZDF", "MFRGGZDF{}", "MFRGGZDF{}MFRGG==="):
        assert scrub("seed " + around.format(held.text())) == "seed **redacted**"


def test_what_is_shorter_than_six_characters_is_not_looked_for() -> None:
    secret = Secret("abcde")
    assert scrub("abcde") == "abcde"
    assert len(secret) == 5


def test_a_secret_of_several_lines_is_removed_line_by_line() -> None:
    """A program that shows one line of a key file shows a secret."""
    line = "lQVYBGg1ZsUBDAC7mY2n3f8s9k2l4q6w8e0r"
    secret = Secret(f"-----BEGIN X-----\nshort\n{line}\n-----END X-----\n")
    assert scrub(f"gpg: invalid line: {line}!") == f"gpg: invalid line: {REDACTED}!"
    assert scrub("short -----BEGIN X-----") == "short -----BEGIN X-----"
    assert len(secret) > 40


def test_a_totp_secret_is_removed_as_people_write_it_down() -> None:
    secret = Secret("JBSWY3DPEHPK3PXP")
    for spelt in ("jbswy3dpehpk3pxp", "jbsw y3dp ehpk 3pxp", "jbsw-y3dp-ehpk-3pxp", "JBSW Y3DP EHPK 3PXP"):
        assert scrub(f"<{spelt}>") == f"<{REDACTED}>"
    assert len(secret) == 16


def test_a_dead_secret_is_forgotten() -> None:
    """The register holds no copy of a secret that nobody holds any more."""
    secret = Secret("a passing secret")
    assert scrub("a passing secret") == REDACTED
    del secret
    gc.collect()
    assert scrub("a passing secret") == "a passing secret"


def test_a_secret_held_twice_is_looked_for_until_both_are_gone() -> None:
    first, second = Secret("a doubled secret"), Secret("a doubled secret")
    assert scrub("a doubled secret") == REDACTED
    del first
    gc.collect()
    assert scrub("a doubled secret") == REDACTED
    assert len(second) == 16


def test_ten_thousand_living_secrets_are_all_found_in_one_text() -> None:
    """One lookup per character, not per secret: a text of all of them is done in no more than a breath."""
    rng = random.Random(20261124)
    plain = [f"{rng.getrandbits(80):020x}".translate(str.maketrans("0189", "ghij")) for _ in range(10_000)]
    held = [Secret(each) for each in plain]
    shown = scrub(" ".join(plain) + " end " * 50_000)
    assert shown.count(REDACTED) == len(held)
    assert not any(each in shown for each in plain[::97])


# ---------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"seed {SEED}, next", "seed **redacted**, next"),
        ("JBSWY3DPEHPK3PXP", "**redacted**"),
        ("NVSWG5LONFXGOZLSNVSWG5LONE======.", "**redacted**."),
        ("JBSW Y3DP EHPK 3PXP", "**redacted**"),
        ("NVSW-G5LO-NFXG-OZLS-NV", "**redacted**"),  # a seed that no other test has, which may be alive still
        (f"Key (totp_secret)=({SEED}) already exists.", "Key (totp_secret)=(**redacted**) already exists."),
        (f"escaped \\n{SEED}\\n", "escaped \\n**redacted**\\n"),
        (f"seed_{SEED}", "seed_**redacted**"),
        ("<otpauth://totp/Clinic:alice?secret=abc&issuer=x>", "<otpauth://**redacted**>"),
        ("otpauth-migration://offline?data=CjEK", "otpauth-migration://**redacted**"),
        ("otpauth://totp/My Clinic?secret=jbswy3dp&digits=6", "otpauth://**redacted** Clinic?secret=**redacted**&digits=6"),
        ("postgresql://backup:hunter2@db:5432/clinic", "postgresql://backup:**redacted**@db:5432/clinic"),
        ("postgresql://backup:p@ss:w/ord@db/clinic?x=1", "postgresql://backup:**redacted**@db/clinic?x=1"),
        ("postgresql://backup:pa?s#s@db/clinic", "postgresql://backup:**redacted**@db/clinic"),
        ("postgresql://:hunter2@db/clinic", "postgresql://:**redacted**@db/clinic"),
        (
            "postgresql://db/c?password=hunter2&sslmode=off",
            "postgresql://db/c?password=**redacted**&sslmode=off",
        ),
        ("host=db password=hunter2 user=x", "host=db password=**redacted** user=x"),
        ("host=db password = 'hun\\'ter 2' user=x", "host=db password = '**redacted**' user=x"),
        ("password='unfinished quote", "password='**redacted**'"),
        ("PGPASSWORD=hun;ter&2 pg_dump", "PGPASSWORD=**redacted** pg_dump"),
        ("sslpassword=x", "sslpassword=**redacted**"),
        ('{"password": "x\\"y", "port": 1}', '{"password": "**redacted**", "port": 1}'),
        ("{'db_password': b'x', 'port': 1}", "{'db_password': b'**redacted**', 'port': 1}"),
        ('{\\"client_secret\\": \\"x y\\", \\"a\\": 1}', '{\\"client_secret\\": \\"**redacted**\\", \\"a\\": 1}'),
        ("CREATE ROLE a PASSWORD 'it''s me';", "CREATE ROLE a PASSWORD '**redacted**';"),
        ("rolpassword SCRAM-SHA-256$4096:c2FsdA==$c3Rv:c2Vy", "rolpassword **redacted**"),
        ("md5" + "0" * 32, "**redacted**"),
        (
            "[SQL: 1]\n[parameters: ('alice', 'x')]\n(End)",
            "[SQL: 1]\n[parameters: **redacted**]\n(End)",
        ),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer **redacted**"),
        ("'Authorization': 'Token a.b'", "'Authorization': 'Token **redacted**'"),
        ("sent Bearer abcdefgh.ijkl", "sent Bearer **redacted**"),
        ("sent Basic dXNlcjpwYXNz", "sent Basic **redacted**"),
        ("eyJhbGciOiJIUzI1.eyJzdWIi.c2ln", "**redacted**"),
        ("key AKIAIOSFODNN7EXAMPLE denied", "key **redacted** denied"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = **redacted**"),
        ("X-Amz-Signature=00ff&X-Amz-Date=1", "X-Amz-Signature=**redacted**&X-Amz-Date=1"),
        ("AccountName=a;AccountKey=abc+/==;EndpointSuffix=core", "AccountName=a;AccountKey=**redacted**;EndpointSuffix=core"),
        ("SharedAccessSignature=sv=2020&sig=abc", "SharedAccessSignature=**redacted**&sig=**redacted**"),
        ("https://a.example/c?sv=1&sig=abc%3D&se=2", "https://a.example/c?sv=1&sig=**redacted**&se=2"),
        ("hvs.CAESIJabcdefgh", "**redacted**"),
        ("https://ghp_0123456789abcdefghij@github.example", "https://**redacted**@github.example"),
        ("gpg: session key: '9:0123456789ABCDEF0123'", "gpg: session key: '**redacted**'"),
    ],
)
def test_what_looks_like_a_secret_is_removed(text: str, expected: str) -> None:
    assert scrub(text) == expected


@pytest.mark.parametrize(
    "kind", ["PGP PRIVATE KEY BLOCK", "RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "PRIVATE KEY"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\\n"])
def test_a_private_key_is_removed_whole_or_cut(kind: str, newline: str) -> None:
    """With both edges, without its end, and without its beginning; what stands around it stays."""
    body = newline.join(["", "lQVYBGg1ZsUBDAC7", "mY2n3f8s9k2l4q6w==", "=aB3d", ""])
    begin, end = f"-----BEGIN {kind}-----", f"-----END {kind}-----"
    assert scrub(f"key: {begin}{body}{end}, then") == "key: **redacted**, then"
    assert scrub(f"key: {begin}{body}") == "key: **redacted**"
    assert scrub(f"key: {begin[:-5]}") == "key: **redacted**"
    assert scrub(f"cut: {body}{end}, then") == "cut:**redacted**, then"
    assert scrub(f"one {begin}{body}{end} two {begin}{body}{end} three") == "one **redacted** two **redacted** three"


@pytest.mark.parametrize(
    "text",
    [
        hashlib.sha256(b"x").hexdigest(),
        hashlib.sha256(b"x").hexdigest().upper(),
        FINGERPRINT,
        f"signed by {FINGERPRINT}\\n",
        " ".join(FINGERPRINT[at : at + 4] for at in range(0, 40, 4)),
        "ABCD EFAB CDEF ABCD EFAB  CDEF ABCD EFAB CDEF ABCD",
        "gpg: encrypted with rsa3072 key, ID ABCDEFABCDEFABCD",
        "0xABCDEFABCDEFABCD",
        BACKUP,
        f"s3://clinic-backups/prod/clinic/{BACKUP}/database.dump.gpg",
        "5F3C9A2B-AAAA-4BBB-8CCC-234567ABCDEF",
        str(UUID(int=7)),
        "COULD NOT VERIFY",
        "REPEATABLE READ READ ONLY",
        "CURRENT_TIMESTAMP and A_VERYLONGTABLENAMEINDEED_TOO",
        '"public"."TOTP_SECRETS"',
        "/var/lib/backupd/keys/operations.pub.asc",
        "postgresql://backup_ro@db:5432/clinic",
        "http://localhost:8080/path?email=a@b.example",
        "Basic authentication is off; bearer tokens are not used",
        "use `password = { file = … }` instead",
        'password = { file = "/run/password" }',
        "password authentication failed for user alice",
        "the secret key is expired; a token is missing",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\nmQGNBGg1\n-----END PGP PUBLIC KEY BLOCK-----",
        "-----BEGIN PGP SIGNED MESSAGE-----",
        "2026-11-24T02:00:00+00:00",
        "",
    ],
)
def test_what_a_reader_needs_stays(text: str) -> None:
    assert scrub(text) == text


NASTY = [
    *(
        "A",
        "a",
        "=",
        "'",
        '"',
        "\\",
        "F",
        "\x00",
        "\ud800",
        " ",
        "://",
        "://a:",
        "://a:@",
        "eyJ",
        "eyJa-",
        "ABCD ",
        "ABCD-",
        "ABC ",
    ),
    *(
        "password",
        "password=",
        "password='",
        'password"',
        'password":',
        "password ",
        "password=;",
        ";a",
        "-----BEGIN PRIVATE KEY",
    ),
    *(
        "-----END PRIVATE KEY",
        "-----BEGIN ",
        "Bearer ",
        "Basic A",
        "hvs.",
        "[parameters: ",
        "authorization:",
        "otpauth://",
        "A_",
    ),
    *("key ABCDEFABCDEFABCD ", "secret_access_", "SCRAM-SHA-256$1", "session key "),
]


@pytest.mark.parametrize("unit", NASTY)
def test_a_quarter_of_a_megabyte_of_anything_is_scrubbed(unit: str) -> None:
    """A pattern that scanned one run from many starts would take hours here; the run's time limit is the judge."""
    secret = Secret("password=password=")
    text = (unit * (250_000 // len(unit)))[:250_000]
    assert isinstance(scrub(text + "!"), str)
    assert len(secret) == 18


def test_the_patterns_work_doubles_when_the_text_does() -> None:
    """Counted, not timed: how often the replacements run grows with the text and no faster."""
    for unit in ("JBSWY3DPEHPK3PXP ", "password=x ", "postgresql://u:p@h ", "hvs.abcdefghijk "):
        assert scrub(unit * 2000).count(REDACTED) == 2 * scrub(unit * 1000).count(REDACTED) == 2000


@given(st.text())
def test_scrubbing_takes_any_text(text: str) -> None:
    assert isinstance(scrub(text), str)


FRAGMENTS = st.sampled_from(
    [
        "password=",
        "'",
        '"',
        " ",
        "\\",
        "x",
        "a@b",
        "://u:",
        ";",
        "&k=",
        SEED,
        "{file",
        REDACTED,
        "\n",
        "Bearer abcdefgh",
        "=",
        ":",
        "[parameters: ",
    ]
)


@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_what_was_scrubbed_holds_no_secret_when_scrubbed_again(text: str) -> None:
    """Lines are scrubbed value by value and then whole; the second pass never brings anything back."""
    once = scrub(text)
    assert SEED not in once
    assert SEED not in scrub(once)


# --------------------------------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize(
    "key",
    [
        *(
            "password",
            "PGPASSWORD",
            "db_password",
            "passphrase",
            "secret",
            "clientSecret",
            "secret_access_key",
            "token",
            "tokens",
            "key",
        ),
        *("column_key", "seed", "pin", "session_key", "authorization", "params", "otp"),
    ],
)
def test_a_field_called_like_a_secret_is_hidden_whatever_it_holds(key: str) -> None:
    for value in ("harmless", ["harmless"], {"a": "harmless"}, b"harmless", ("x", 1)):
        assert scrub_value(key, value) == REDACTED
    assert scrub_value(key, None) is None
    assert scrub_value(key, True) is True


@pytest.mark.parametrize(
    "key", ["key_id", "key_ids", "public_key", "source", "pinned", "backup_id", "secret_name", "keys_count", "monkey", ""]
)
def test_a_field_that_tells_about_a_secret_stays(key: str) -> None:
    assert scrub_value(key, "harmless") == "harmless"


def test_a_plural_with_a_number_is_a_count() -> None:
    assert scrub_value("keys", 3) == 3
    assert scrub_value("pin", 1234) == REDACTED


def test_values_become_plain_and_clean_at_every_depth() -> None:
    value = {
        "dsn": "postgresql://u:hunter2@db/x",
        "rows": [1, 2.5, None, True],
        "inner": {"password": "hunter2", "seed": Secret("x"), "path": Path("/tmp/x")},
        "raw": b"hunter2",
        "at": datetime(2026, 11, 24, tzinfo=UTC),
        "error": ValueError(f"bad {SEED}"),
        "id": UUID(int=1),
        SEED: "a key of a dict",
    }
    assert scrub_value("value", value) == {
        "dsn": "postgresql://u:**redacted**@db/x",
        "rows": [1, 2.5, None, True],
        "inner": {"password": REDACTED, "seed": REDACTED, "path": "/tmp/x"},
        "raw": "<7 bytes>",
        "at": "2026-11-24 00:00:00+00:00",
        "error": "bad **redacted**",
        "id": "00000000-0000-0000-0000-000000000001",
        REDACTED: "a key of a dict",
    }


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("hunter2")


def test_an_object_that_cannot_be_shown_is_named() -> None:
    assert scrub_value("value", Rude()) == "<Rude that cannot be shown>"


def test_a_structure_that_holds_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "[" in json.dumps(scrub_value("value", loop))


# ------------------------------------------------------------------------------------------------------------- printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clinic\x1b[2J", "clinic\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("user\u202egpj.exe", "user\\u202egpj.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("x\ud800y", "x\\ud800y"),
        ("\ufeffx\u200b\u2028", "\\ufeffx\\u200b\\u2028"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("a\u3164\u115f\u1160\uffa0\u2800b", "a\\u3164\\u115f\\u1160\\uffa0\\u2800b"),
        ("Zürich 東京 עברית 👩‍⚕️ é", "Zürich 東京 עברית 👩‍⚕️ é"),
        ("back\\slash", "back\\slash"),
        ("soft\u00adhyphen", "soft\\xadhyphen"),
        ("x" + "\u0301" * 6 + "y\u0301", "x" + "\u0301" * 4 + "\\u0301\\u0301y\u0301"),
        ("שָּׁ ế", "שָּׁ ế"),
    ],
)
def test_names_that_others_chose_cannot_steer_a_terminal(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(st.text())
def test_printable_text_is_one_line_that_every_terminal_encodes(text: str) -> None:
    shown = printable(text)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
