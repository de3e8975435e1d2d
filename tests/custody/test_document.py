"""The set-up that docs/custodians.md shows, run as it stands on a fresh server: it makes the two identities that it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backupd.custody import SecretRef, Servers, open_custodian, vault_rights
from backupd.custody.rights import Rights
from backupd.custody.vault import VaultSecret
from backupd.custody.vault_login import AppRole
from backupd.custody.vault_session import VaultSession
from backupd.errors import SecretUnavailable
from tests.custody.kept import InHand
from tests.leak_watch import Planted
from tests.parts.openbao import running_openbao

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "custodians.md"


def test_the_documented_set_up_makes_two_identities(tmp_path: Path, planted: Planted) -> None:
    [script] = re.findall(r"(?ms)^```sh\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"))
    (tmp_path / "operations.sec.asc").write_text(planted.register("the operations key\n", "operations key"))
    (tmp_path / "keyring.json").write_text(json.dumps({"current": "1", "keys": {}}))
    with running_openbao() as bao:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(tmp_path),
            "BAO_ADDR": bao.address,
            "BAO_TOKEN": bao.root_token,
        }
        done = subprocess.run(["sh", "-eu", "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        backups, drills = (logged_in(bao.address, tmp_path, name) for name in ("backups", "drills"))
        operations, totp = SecretRef("vault", "secret/backup/operations"), SecretRef("vault", "secret/clinic/totp", "keyring")
        assert secret(operations, drills).fetch().text() == "the operations key"
        assert json.loads(secret(totp, drills).fetch().reveal()) == {"current": "1", "keys": {}}
        for each in (operations, totp):
            assert secret(each, drills).rights().give
            assert secret(each, backups).rights() == Rights()
            with pytest.raises(SecretUnavailable, match="denies it to the AppRole backups"):
                secret(each, backups).fetch()
        assert vault_rights.over_identities(backups, drills, opens=True) == Rights()
        for session in (backups, drills):
            session.close()


def logged_in(address: str, directory: Path, name: str) -> VaultSession:
    path = directory / f"vault-{name}"
    assert path.stat().st_mode & 0o777 == 0o600
    return VaultSession(address, AppRole(name, InHand(path.read_text())))


def secret(ref: SecretRef, session: VaultSession) -> VaultSecret:
    found = open_custodian(ref, {}, Servers(vault=session))
    assert isinstance(found, VaultSecret)
    return found
