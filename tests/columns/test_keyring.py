"""Keys as custodians keep them: what is read, and that nothing else is."""

import json
import traceback
from base64 import b64encode
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from backupd.columns import KeysUnusable, RetiredKey, UnknownKey
from backupd.columns.keyring import FernetKeys, Keyring, passphrase
from backupd.redact import Secret
from tests.columns.frames import variables

OLD = bytes(range(32))
NEW = bytes(range(1, 33))
OLD_TEXT = b64encode(OLD).decode()
NEW_TEXT = b64encode(NEW).decode()
FERNET = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="  # the key of the Fernet specification's own test vectors
OTHER_FERNET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def as_json(value: object) -> Secret:
    return Secret(json.dumps(value))


def test_a_keyring_holds_its_keys_by_id() -> None:
    keyring = Keyring.parse(as_json({"current": "2026-1", "keys": {"2025-1": OLD_TEXT, "2026-1": NEW_TEXT}}))
    assert keyring.current == "2026-1"
    assert keyring.key("2025-1").reveal() == OLD
    assert keyring.key("2026-1").reveal() == NEW


def test_what_is_rendered_is_parsed_to_the_same() -> None:
    keyring = Keyring.generate("2025-1").extended("2026-1")
    assert Keyring.parse(keyring.render()) == keyring
    assert keyring.render().reveal().endswith(b"\n")


def test_extending_keeps_the_old_keys_and_makes_the_new_one_current() -> None:
    before = Keyring.generate("a")
    after = before.extended("b")
    assert after.current == "b"
    assert after.key("a") == before.key("a")
    assert len(after.key("b")) == 32
    with pytest.raises(KeysUnusable, match="already"):
        after.extended("a")


def test_the_day_a_key_was_made_is_kept_with_it() -> None:
    day = date(2026, 1, 5)
    keyring = Keyring.generate("a", day).joined(Keyring.generate("b"))
    assert dict(keyring.created) == {"a": day}
    assert Keyring.parse(keyring.render()) == keyring
    assert b'"created": {\n  "a": "2026-01-05"\n }' in keyring.render().reveal()
    assert keyring.promoted("b").without("a").created == {}


@pytest.mark.parametrize("created", [[], "2026-01-05", {"a": "20260105"}, {"a": "2026-W02"}, {"a": 5}, {"a": "2026-02-30"}])
def test_a_day_has_one_spelling(created: object) -> None:
    with pytest.raises(KeysUnusable, match="`created`"):
        Keyring.parse(as_json({"current": "a", "keys": {"a": OLD_TEXT}, "created": created}))


def test_a_day_without_its_key_is_an_error() -> None:
    with pytest.raises(KeysUnusable, match="created that is not in it"):
        Keyring.parse(as_json({"current": "a", "keys": {"a": OLD_TEXT}, "created": {"b": "2026-01-05"}}))


def test_a_key_that_joins_only_reads_until_it_is_promoted() -> None:
    before, fresh = Keyring.generate("a"), Keyring.generate("b")
    keyring = before.joined(fresh)
    assert (keyring.current, keyring.key("b")) == ("a", fresh.key("b"))
    assert keyring.promoted("b").current == "b"
    with pytest.raises(UnknownKey):
        before.promoted("b")


def test_with_the_archive_retired_keys_read_again() -> None:
    whole = Keyring.generate("a").extended("b")
    kept, archive = whole.without("a"), Keyring("a", {"a": whole.key("a")})
    together = kept.together(archive)
    assert (together.current, set(together.keys), together.retired) == ("b", {"a", "b"}, ())
    with pytest.raises(KeysUnusable, match="one key in the keyring and another in the archive"):
        whole.together(Keyring.generate("a"))


def test_generated_keys_differ() -> None:
    assert Keyring.generate("a").key("a") != Keyring.generate("a").key("a")


def test_an_unknown_id_is_named() -> None:
    with pytest.raises(UnknownKey, match="'2024-1' is not in the keyring") as caught:
        Keyring.generate("2025-1").key("2024-1")
    assert caught.value.key_id == "2024-1"


def test_a_key_that_was_taken_out_is_told_from_one_that_was_never_there() -> None:
    keyring = Keyring.parse(Keyring.generate("2025-1").extended("2026-1").without("2025-1").render())
    assert set(keyring.keys) == {"2026-1"}
    with pytest.raises(RetiredKey, match="'2025-1' is retired"):
        keyring.key("2025-1")
    with pytest.raises(UnknownKey) as caught:
        keyring.key("2024-1")
    assert not isinstance(caught.value, RetiredKey)


def test_neither_the_current_key_nor_an_unknown_one_is_taken_out_and_no_id_comes_back() -> None:
    keyring = Keyring.generate("2025-1").extended("2026-1")
    with pytest.raises(KeysUnusable, match="current"):
        keyring.without("2026-1")
    with pytest.raises(UnknownKey):
        keyring.without("2024-1")
    with pytest.raises(KeysUnusable, match="or had"):
        keyring.without("2025-1").extended("2025-1")


@pytest.mark.parametrize("key_id", ["a", "A-z.0_9", "x" * 32])
def test_ids_that_are_allowed(key_id: str) -> None:
    assert Keyring.generate(key_id).current == key_id


@pytest.mark.parametrize("key_id", ["", "x" * 33, "a b", "a/b", "ä", "a\n", "\0"])
def test_ids_that_are_not(key_id: str) -> None:
    with pytest.raises(KeysUnusable, match="not the id of a key"):
        Keyring.generate(key_id)


def keys(**members: object) -> str:
    return json.dumps({"current": "a", "keys": members})


BAD_KEYRINGS = {
    "nothing": "",
    "no JSON": OLD_TEXT,
    "cut off": keys(a=OLD_TEXT)[:-1],
    "a list": json.dumps([OLD_TEXT]),
    "a text": json.dumps(OLD_TEXT),
    "too deep": "[" * 20_000 + OLD_TEXT,
    "no current": json.dumps({"keys": {"a": OLD_TEXT}}),
    "no keys": json.dumps({"current": "a"}),
    "no key in keys": keys(),
    "an unknown member": json.dumps({"current": "a", "keys": {"a": OLD_TEXT}, "next": "b"}),
    "current is a number": json.dumps({"current": 1, "keys": {"1": OLD_TEXT}}),
    "keys is a list": json.dumps({"current": "a", "keys": [OLD_TEXT]}),
    "current is not there": json.dumps({"current": "b", "keys": {"a": OLD_TEXT}}),
    "a doubled id": f'{{"current": "a", "keys": {{"a": "{OLD_TEXT}", "a": "{NEW_TEXT}"}}}}',
    "a doubled member": f'{{"current": "a", "current": "a", "keys": {{"a": "{OLD_TEXT}"}}}}',
    "one key twice": keys(a=OLD_TEXT, b=OLD_TEXT),
    "a placeholder": keys(a=b64encode(bytes(32)).decode()),
    "31 bytes": keys(a=b64encode(OLD[:31]).decode()),
    "33 bytes": keys(a=b64encode(OLD + b"x").decode()),
    "no padding": keys(a=OLD_TEXT.rstrip("=")),
    "padding twice": keys(a=OLD_TEXT + "="),
    "a space": keys(a=" " + OLD_TEXT),
    "a line end": keys(a=OLD_TEXT + "\n"),
    "another spelling": keys(a=OLD_TEXT[:-2] + chr(ord(OLD_TEXT[-2]) + 1) + "="),
    "urlsafe": keys(a=b64encode(b"\xff" * 31 + b"\xfe").decode().replace("/", "_")),
    "hex": keys(a=OLD.hex()),
    "a number": keys(a=1),
    "null": keys(a=None),
    "an object": keys(a={"key": OLD_TEXT}),
    "no ASCII": keys(a="é" * 44),
    "half a character": keys(a="\ud800" * 44),
    "retired is a text": json.dumps({"current": "a", "keys": {"a": OLD_TEXT}, "retired": "b"}),
    "retired holds a number": json.dumps({"current": "a", "keys": {"a": OLD_TEXT}, "retired": [1]}),
    "retired holds a bad id": json.dumps({"current": "a", "keys": {"a": OLD_TEXT}, "retired": ["a b"]}),
    "retired and there": json.dumps({"current": "a", "keys": {"a": OLD_TEXT}, "retired": ["a"]}),
    "a bad id": json.dumps({"current": "a b", "keys": {"a b": OLD_TEXT}}),
}


@pytest.mark.parametrize("name", BAD_KEYRINGS)
def test_everything_else_is_refused_and_no_message_holds_a_key(name: str) -> None:
    with pytest.raises(KeysUnusable) as caught:
        Keyring.parse(Secret(BAD_KEYRINGS[name]))
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.hint) + variables(caught.value)
    assert caught.value.hint
    assert not any(piece in shown for piece in (OLD_TEXT[:20], NEW_TEXT[:20], OLD.hex()[:20]))


def test_a_keyring_does_not_print_and_does_not_change() -> None:
    keyring = Keyring.parse(as_json({"current": "a", "keys": {"a": OLD_TEXT}}))
    assert "**redacted**" in repr(keyring)
    assert OLD_TEXT not in repr(keyring)
    with pytest.raises(TypeError):
        keyring.keys["b"] = Secret(NEW)  # type: ignore[index]  # what a careless caller would try


@pytest.mark.parametrize(
    "text",
    [
        f"{FERNET},{OTHER_FERNET}",
        f"{FERNET}\n{OTHER_FERNET}\n",
        f"{FERNET}\r\n\r\n {OTHER_FERNET} ",
        f"{FERNET}, {OTHER_FERNET},",
    ],
)
def test_fernet_keys_are_parted_by_commas_or_line_ends(text: str) -> None:
    assert [key.text() for key in FernetKeys.parse(Secret(text)).keys] == [FERNET, OTHER_FERNET]


@pytest.mark.parametrize(
    "text",
    ["", ",", FERNET[:-1], FERNET + "A", f"{FERNET} {OTHER_FERNET}", f"{FERNET},{FERNET}", "x" * 44],
)
def test_other_lists_are_refused_and_no_message_holds_a_key(text: str) -> None:
    with pytest.raises(KeysUnusable) as caught:
        FernetKeys.parse(Secret(text))
    shown = "".join(traceback.format_exception(caught.value)) + variables(caught.value)
    assert not any(piece in shown for piece in (FERNET[:12], "x" * 44))


def test_a_passphrase_loses_only_its_line_end() -> None:
    assert passphrase(Secret(b" pass phrase \n")).reveal() == b" pass phrase "


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\xfe"])
def test_no_passphrase_is_refused(data: bytes) -> None:
    with pytest.raises(KeysUnusable):
        passphrase(Secret(data))


@pytest.mark.parametrize("parse", [Keyring.parse, FernetKeys.parse])
def test_keys_come_in_a_secret(parse: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="is a Secret, not str: wrap text in"):
        parse(FERNET)
