"""Secrets do not print, and text that is about to be shown holds none of them."""

from __future__ import annotations

import pickle

import pytest

from backupd.redact import Secret, scrub


def test_a_secret_shows_nothing_of_itself() -> None:
    """repr, str, format and percent formatting give the same harmless text."""
    secret = Secret("correct horse battery")
    shown = {repr(secret), str(secret), f"{secret}", f"{secret!r:>9}", "%s" % secret, format(secret, "x")}  # noqa: UP031  that is the test
    assert {"battery" in each for each in shown} == {False}


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret("correct horse battery"))


def test_a_living_secret_is_removed_from_text() -> None:
    secret = Secret("correct horse battery")
    assert scrub("the password is correct horse battery, really") == "the password is **redacted**, really"
    assert secret.text() == "correct horse battery"
