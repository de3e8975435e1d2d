"""OpenBao as a part: each test has mounts of its own, both kinds of listener answer, and nothing is left when it ends."""

import socket

import pytest

from tests.parts.openbao import OpenBao, running_openbao


def test_a_fresh_engine_takes_a_value_at_once(openbao: OpenBao) -> None:
    for number in range(5):
        mount = openbao.new_mount()
        openbao.ask("POST", f"{mount}/data/a", {"data": {"value": number}})
        assert openbao.ask("GET", f"{mount}/data/a")["data"]["data"] == {"value": number}


def test_a_server_with_tls_answers_under_its_own_authority_and_is_gone_afterwards() -> None:
    with running_openbao(tls=True) as bao:
        assert bao.address.startswith("https://")
        assert bao.ask("GET", "sys/seal-status")["sealed"] is False
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(bao.address.rpartition(":")[2])), timeout=5):  # noqa: PT011
        pass


def test_a_policy_is_what_it_says(openbao: OpenBao) -> None:
    mount = openbao.new_mount()
    token = openbao.new_token("default", openbao.new_policy({f"{mount}/data/a": ["read"]}))
    asked = {"paths": [f"{mount}/data/a", f"{mount}/data/b"]}
    told = openbao.ask("POST", "sys/capabilities-self", asked, token=token)["data"]
    assert told == {f"{mount}/data/a": ["read"], f"{mount}/data/b": ["deny"]}
