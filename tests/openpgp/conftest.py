"""The keys that the tests of this room share, made once; and a home of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from backupd.openpgp import Home, keys
from backupd.openpgp.keys import KeyPair, PublicKey


@dataclass(frozen=True, slots=True)
class Ring:
    """Two recipients, a signing key that is pinned, and one of somebody else."""

    operations: KeyPair
    escrow: KeyPair
    signer: KeyPair
    stranger: KeyPair

    def recipients(self) -> tuple[PublicKey, PublicKey]:
        return keys.inspect(self.operations.public, "operations"), keys.inspect(self.escrow.public, "escrow")


@pytest.fixture(scope="session")
def ring() -> Ring:
    return Ring(
        keys.generate("Clinic backup, operations", purpose="encrypt", expires_days=None),
        keys.generate("Clinic backup, escrow", purpose="encrypt", expires_days=400),
        keys.generate("Clinic backup, signing", purpose="sign", expires_days=None),
        keys.generate("Somebody else", purpose="sign", expires_days=None),
    )


@pytest.fixture
def home() -> Iterator[Home]:
    with Home() as private:
        yield private


def make_key(home: Home, *lines: str, at: str | None = None) -> str:
    """A key of any kind, made by gpg in `home` at a moment like 20200101T000000; its fingerprint."""
    clock = ("--faked-system-time", f"{at}!") if at else ()
    text = "\n".join(("%no-protection", *lines, "%commit", ""))
    report = home.call(*clock, "--status-fd", "1", "--gen-key", stdin=text.encode()).stdout.decode()
    return next(line.split()[3] for line in report.splitlines() if " KEY_CREATED " in line)


def add_subkey(home: Home, fingerprint: str, algorithm: str, usage: str, expires: str, *, at: str) -> None:
    """One more subkey, made at a moment. gpg asks for its passphrase, and gets none."""
    nobody = ("--pinentry-mode", "loopback", "--passphrase", "")
    home.call("--faked-system-time", f"{at}!", *nobody, "--quick-add-key", fingerprint, algorithm, usage, expires)
