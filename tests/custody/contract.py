"""What every custodian owes. A test module subclasses `CustodianContract` and defines the fixture `place`."""

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from backupd.custody import Custodian, keeper
from backupd.errors import BackupdError, CustodyError, SecretChanged, SecretUnavailable
from backupd.redact import Secret

PLANTED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


@dataclass(frozen=True)
class Place:
    """One place of secrets: how a test puts one there, takes it away, and opens a custodian (the optional field) for it."""

    keep: Callable[[bytes], None]
    lose: Callable[[], None]
    open: Callable[[str | None], Custodian]


class CustodianContract:
    @pytest.mark.parametrize(
        "value", [b"a", b"correct horse\n", "pässwörd €".encode(), PLANTED.encode(), b"{}", b"x" * 100_000]
    )
    def test_gives_the_bytes_that_are_kept(self, place: Place, value: bytes) -> None:
        place.keep(value)
        assert place.open(None).fetch().reveal() == value

    def test_fetches_anew_each_time(self, place: Place) -> None:
        custodian = place.open(None)
        place.keep(b"first")
        assert custodian.fetch().text() == "first"
        place.keep(b"second")
        assert custodian.fetch().text() == "second"

    def test_opening_fetches_nothing(self, place: Place) -> None:
        place.lose()
        assert place.open(None).locator

    def test_a_secret_that_is_not_there_is_said_to_be_unavailable_with_a_hint(self, place: Place) -> None:
        place.lose()
        with pytest.raises(SecretUnavailable) as caught:
            place.open(None).fetch()
        assert place.open(None).locator.partition("#")[0] in caught.value.message
        assert caught.value.hint

    @pytest.mark.parametrize("blank", [b"", b"\n", b" \t\r\n"])
    def test_nothing_but_blanks_is_no_secret(self, place: Place, blank: bytes) -> None:
        place.keep(blank)
        with pytest.raises(SecretUnavailable, match="is empty"):
            place.open(None).fetch()

    def test_the_locator_is_always_the_same_and_tells_nothing(self, place: Place) -> None:
        before = place.open(None).locator
        place.keep(PLANTED.encode())
        custodian = place.open(None)
        custodian.fetch()
        assert custodian.locator == before
        assert PLANTED not in custodian.locator
        kind, _, name = custodian.locator.partition(":")
        assert kind.isalpha()
        assert name

    def test_the_secret_shows_in_no_representation(self, place: Place) -> None:
        place.keep(PLANTED.encode())
        custodian = place.open(None)
        secret = custodian.fetch()
        assert PLANTED not in f"{custodian!r} {custodian!s} {secret!r} {secret!s}"

    def test_a_field_is_a_member_of_a_json_object(self, place: Place) -> None:
        place.keep(b'{"other": "x", "seed": "' + PLANTED.encode() + b'"}')
        custodian = place.open("seed")
        assert custodian.fetch().text() == PLANTED
        assert custodian.locator == place.open(None).locator.partition("#")[0] + "#seed"

    def test_a_field_that_is_an_object_is_given_as_json(self, place: Place) -> None:
        place.keep(b'{"keyring": {"current": "1", "keys": {"1": "AA=="}}}')
        assert place.open("keyring").fetch().text() == '{"current": "1", "keys": {"1": "AA=="}}'

    @pytest.mark.parametrize(
        ("kept", "reason"),
        [
            ('{"other": "%s"}', "has no member 'seed'"),
            ('{"seed": 123456, "other": "%s"}', "neither a text nor an object"),
            ('{"seed": ["%s"]}', "neither a text nor an object"),
            ('{"seed": " ", "other": "%s"}', "is empty"),
        ],
    )
    def test_a_field_that_cannot_be_given_says_why_without_the_value(self, place: Place, kept: str, reason: str) -> None:
        place.keep((kept % PLANTED).encode())
        refuses(place.open("seed"), reason)


class TextPlaceContract(CustodianContract):
    """What places owe besides that keep a text, in which a field is looked for. A vault that keeps members is none."""

    @pytest.mark.parametrize(
        ("kept", "reason"),
        [
            ('{"seed": "%s", "seed": "b"}', "not a JSON object with each member once"),
            ('{"seed": {"a": "%s", "a": 2}}', "not a JSON object with each member once"),
            ('["seed", "%s"]', "not a JSON object"),
            ("%s", "not a JSON object"),
            ('{"seed": "%s"', "not a JSON object"),
            ("[" * 20_000 + "%s", "not a JSON object"),
        ],
    )
    def test_a_text_that_is_no_object_has_no_fields_and_says_so_without_the_text(
        self, place: Place, kept: str, reason: str
    ) -> None:
        place.keep((kept % PLANTED).encode())
        refuses(place.open("seed"), reason)


def refuses(custodian: Custodian, reason: str) -> None:
    """It gives no secret, for this reason, and neither the error nor what it came from holds what was planted."""
    with pytest.raises(SecretUnavailable, match=reason) as caught:
        custodian.fetch()
    error = caught.value
    assert error.hint
    assert PLANTED not in f"{error.message} {error.hint}"
    assert error.__cause__ is None
    assert PLANTED not in "".join(traceback.format_exception(error))
    context: BaseException | None = error
    while context is not None:  # also those that no traceback shows: their objects hold what they were raised over
        assert PLANTED not in repr(context.args)
        assert isinstance(context, BackupdError)
        context = context.__context__


NEWER = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


class KeeperContract:
    """What every place that takes new values owes besides. `place.open` gives what `keeper` accepts."""

    def test_a_new_value_takes_the_place_of_the_one_that_was_seen(self, place: Place) -> None:
        place.keep(PLANTED.encode())
        custodian = place.open(None)
        keeper(custodian).replace(Secret(NEWER), custodian.fetch())
        assert custodian.fetch().text() == NEWER
        assert place.open(None).fetch().text() == NEWER

    def test_a_value_that_was_changed_in_between_stays(self, place: Place) -> None:
        place.keep(PLANTED.encode())
        custodian = place.open(None)
        seen = custodian.fetch()
        place.keep(b"another's")
        with pytest.raises(SecretChanged, match="was changed by somebody else") as caught:
            keeper(custodian).replace(Secret(NEWER), seen)
        assert caught.value.hint
        assert NEWER not in "".join(traceback.format_exception(caught.value))
        assert custodian.fetch().text() == "another's"

    def test_a_place_that_holds_nothing_takes_no_new_value(self, place: Place) -> None:
        place.lose()
        with pytest.raises(SecretUnavailable):
            keeper(place.open(None)).replace(Secret(NEWER), Secret(PLANTED))

    @pytest.mark.parametrize("blank", [b"", b"\n", b"x" * (1024 * 1024 + 1)])
    def test_what_could_not_be_fetched_again_is_not_kept(self, place: Place, blank: bytes) -> None:
        place.keep(PLANTED.encode())
        custodian = place.open(None)
        with pytest.raises(CustodyError, match="empty or larger than 1 MiB"):
            keeper(custodian).replace(Secret(blank), custodian.fetch())
        assert custodian.fetch().text() == PLANTED

    def test_of_an_object_one_member_is_replaced(self, place: Place) -> None:
        place.keep(b'{"before": {"a": [1, "\xc3\xa4"]}, "seed": "' + PLANTED.encode() + b'", "after": null}')
        custodian = place.open("seed")
        keeper(custodian).replace(Secret(NEWER), custodian.fetch())
        assert custodian.fetch().text() == NEWER
        assert place.open("before").fetch().text() == json.dumps({"a": [1, "ä"]})

    def test_a_member_that_is_an_object_stays_one(self, place: Place) -> None:
        place.keep(b'{"keyring": {"current": "1", "keys": {"1": "AA=="}}}')
        custodian = place.open("keyring")
        keeper(custodian).replace(Secret('{"current":"2","keys":{}}\n'), custodian.fetch())
        assert custodian.fetch().text() == '{"current": "2", "keys": {}}'
        for other in (NEWER, '{"a": 1, "a": 2}', "[]", "\ud800"):
            with pytest.raises(CustodyError, match="not what the old one was") as caught:
                keeper(custodian).replace(Secret(other.encode("utf-8", "surrogatepass")), custodian.fetch())
            assert caught.value.__context__ is None

    def test_a_member_that_was_changed_in_between_stays(self, place: Place) -> None:
        place.keep(b'{"seed": "' + PLANTED.encode() + b'"}')
        custodian = place.open("seed")
        seen = custodian.fetch()
        place.keep(b'{"seed": "changed by another"}')
        with pytest.raises(SecretChanged):
            keeper(custodian).replace(Secret(NEWER), seen)
        assert custodian.fetch().text() == "changed by another"
