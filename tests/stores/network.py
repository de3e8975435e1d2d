"""What every store behind a network owes, as tests, whatever the network does. It adds to the contract of all stores.

A test module subclasses `NetworkContract` and gives the fixtures `place` and `proxied`.
"""

from dataclasses import dataclass

import pytest

from backupd.errors import ObjectExists, StoreUnavailable
from backupd.stores import Patience, Store
from tests.parts.proxy import FaultProxy
from tests.stores.contract import (
    IMPATIENT,
    MIB,
    PARTS,
    QUICK,
    SMALL,
    WHOLE,
    Naps,
    Place,
    StoreContract,
    assert_nothing_left,
    names,
    send,
    send_part,
)


@dataclass(frozen=True)
class Proxied:
    """A store whose requests go through a proxy that can fail, and the same place without it."""

    place: Place
    direct: Store
    proxy: FaultProxy

    def open(self, patience: Patience = QUICK) -> Store:
        return self.place.open(patience=patience)


class NetworkContract(StoreContract):
    """What holds for a store behind a network, whatever the network does."""

    def test_a_store_below_a_prefix_sees_only_what_is_there(self, place: Place) -> None:
        inner, neighbour, outer = place.open("a/b"), place.open("a/bc"), place.open()
        inner.create("1", SMALL)
        neighbour.create("2", SMALL)
        send_part(inner.begin("dead"), 1, SMALL)
        send_part(neighbour.begin("dying"), 1, SMALL)
        assert names(inner) == ["1"]
        assert names(outer) == ["a/b/1", "a/bc/2"]
        assert inner.sweep("") == ["dead"]
        assert outer.sweep("") == ["a/bc/dying"]

    @pytest.mark.parametrize("status", [500, 503])
    def test_a_server_with_trouble_is_asked_again(self, proxied: Proxied, status: int) -> None:
        store = proxied.open()
        proxied.proxy.fail_next(2, status)
        upload = store.begin("x")
        for number, data in enumerate(PARTS, 1):
            proxied.proxy.fail_next(1, status)
            send_part(upload, number, data)
        proxied.proxy.fail_next(3, status)
        upload.commit(len(PARTS), len(WHOLE))
        proxied.proxy.fail_next(3, status)
        assert store.read("x") == WHOLE
        proxied.proxy.fail_next(3, status)
        assert names(store) == ["x"]
        proxied.proxy.fail_next(3, status)
        store.create("y", SMALL)
        assert proxied.direct.read("y") == SMALL
        assert store.sweep("") == []

    def test_waits_grow_and_are_recorded(self, proxied: Proxied) -> None:
        naps = Naps()
        store = proxied.open(Patience(read_timeout_s=60, tries=5, base_s=1.0, cap_s=3.0, sleep=naps))
        proxied.proxy.fail_next(4, 503)
        assert names(store) == []
        assert len(naps.taken) == 4
        assert all(0 <= nap <= limit for nap, limit in zip(naps.taken, (1, 2, 3, 3), strict=True))

    def test_a_connection_cut_in_the_middle_of_a_part_is_used_anew(self, proxied: Proxied) -> None:
        store = proxied.open()
        upload = store.begin("x")
        for number, data in enumerate(PARTS, 1):
            proxied.proxy.cut_next(2, after=number * 100_000, method="PUT")
            send_part(upload, number, data)
        upload.commit(len(PARTS), len(WHOLE))
        assert proxied.direct.read("x") == WHOLE
        assert proxied.direct.sweep("") == []

    def test_a_read_that_is_cut_is_never_a_short_answer(self, proxied: Proxied) -> None:
        proxied.direct.create("x", PARTS[0])
        store = proxied.open()
        for after in (0, 100_000):
            proxied.proxy.cut_answer_next(1, after=after, method="GET")
            assert store.read("x") == PARTS[0]
        proxied.proxy.cut_answer_next(2, after=4 * MIB, method="GET")
        assert store.read("x", 7, 5 * MIB - 7) == PARTS[0][7 : 5 * MIB]

    def test_a_server_that_stalls_is_given_up_and_asked_again(self, proxied: Proxied) -> None:
        store = proxied.open(IMPATIENT)
        upload = store.begin("x")
        proxied.proxy.stall_next(1, method="PUT")
        send_part(upload, 1, PARTS[0])
        proxied.proxy.stall_next(1)
        upload.commit(1, len(PARTS[0]))
        proxied.proxy.stall_next(1, method="GET")
        assert store.read("x") == PARTS[0]

    def test_parts_whose_answers_are_lost_are_sent_again(self, proxied: Proxied) -> None:
        store = proxied.open()
        upload = store.begin("x")
        proxied.proxy.lose_answer_next(2, method="PUT")
        send(upload)
        upload.commit(len(PARTS), len(WHOLE))
        assert proxied.direct.read("x") == WHOLE

    def test_a_creation_whose_answer_was_lost_is_a_success(self, proxied: Proxied) -> None:
        proxied.proxy.lose_answer_next(1, method="PUT")
        proxied.open().create("x", SMALL)
        assert proxied.direct.read("x") == SMALL

    def test_a_creation_after_trouble_still_respects_what_others_wrote(self, proxied: Proxied) -> None:
        """Even the same bytes: to have been first is what a lock or a manifest is about."""
        proxied.direct.create("x", SMALL)
        proxied.proxy.fail_next(1, 503, method="PUT")
        with pytest.raises(ObjectExists):
            proxied.open().create("x", SMALL)

    def test_an_abort_whose_answer_was_lost_leaves_nothing(self, proxied: Proxied) -> None:
        upload = proxied.open().begin("x")
        send(upload, PARTS[:1])
        proxied.proxy.lose_answer_next(1)
        upload.abort()
        assert_nothing_left(proxied.direct)

    def test_a_part_that_fails_for_good_leaves_nothing(self, proxied: Proxied) -> None:
        store = proxied.open()
        upload = store.begin("x")
        send_part(upload, 1, PARTS[0])
        proxied.proxy.fail_next(QUICK.tries, 500, method="PUT")
        with pytest.raises(StoreUnavailable) as caught:
            send_part(upload, 2, PARTS[1])
        assert caught.value.hint
        assert "\n" not in caught.value.message
        upload.abort()
        assert_nothing_left(proxied.direct)

    def test_an_abort_that_fails_for_good_is_left_to_the_sweep(self, proxied: Proxied) -> None:
        upload = proxied.open().begin("x")
        send_part(upload, 1, PARTS[0])
        proxied.proxy.fail_next(100, 503)
        upload.abort()
        assert names(proxied.direct) == []
        assert proxied.direct.sweep("") == ["x"]

    def test_a_server_that_is_not_there_is_told_in_one_line(self, proxied: Proxied) -> None:
        store = proxied.open()
        proxied.proxy.close()
        with pytest.raises(StoreUnavailable, match=r"cannot be reached|connection") as caught:
            store.read("x")
        assert caught.value.hint
        assert "\n" not in caught.value.message
