"""Separation, enforced: set-ups on a real OpenBao, each refused with its reason or let pass, and what a refusal leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backupd import separation
from backupd.config import load
from backupd.config.models import SecretRef
from backupd.custody import Custodian, Servers, open_custodian
from backupd.custody import SecretRef as Reference
from backupd.custody.key_vault import KeyVaults
from backupd.errors import Refused
from backupd.openpgp import Home
from backupd.openpgp.home import Record, colons
from backupd.separation import Finding, Weight
from backupd.service import Service
from tests.audit.examples import ACTOR
from tests.installation import SOURCE, Completed, Installation, Secrets, installed, keep, plant
from tests.leak_watch import Planted
from tests.parts.key_vault import VAULT, Credential, KeyVaultServer
from tests.parts.openbao import AppRoleOf, OpenBao, lending_proxy
from tests.parts.postgres import PostgresServer

DSN = 'dsn = "postgresql://nobody@localhost/clinic"\n'
COLUMN = '[[sources.clinic.totp]]\ntable = "users"\nid_column = "id"\ncolumn = "totp_secret"\ncipher = "aes-256-gcm"\n'


@pytest.fixture(scope="module")
def secrets(planted_for_module: Planted) -> Secrets:
    return plant(planted_for_module)


@dataclass
class Rig:
    """A configuration without a database: keys in the OpenBao, in paths of its own, and who may read them."""

    directory: Path
    bao: OpenBao
    secrets: Secrets
    mount: str
    signing: str = '{ file = "signing.sec.asc" }'
    opening: str = ""
    columns: str = ""
    may: dict[str, list[str]] = field(default_factory=dict)
    one_identity: bool = False
    address: str = ""
    signs: bool = True
    role: dict[str, Any] = field(default_factory=dict)  # of the AppRole that makes backups
    token: str = ""  # instead of that AppRole
    named: bool = False  # the id of the drill's AppRole is its name
    opens: bool = True  # the configuration names keys that open
    instead: dict[str, str] = field(default_factory=dict)
    logins: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.address = self.bao.address
        self.opening = f'{{ vault = "{self.mount}/backup/operations" }}'
        self.columns = f'{{ vault = "{self.mount}/clinic/totp", field = "keyring" }}'
        self.write("backup/operations", value=self.secrets.operations.secret.reveal().decode())
        self.write("backup/signing", value=self.secrets.signing.secret.reveal().decode())
        self.write("clinic/totp", keyring=json.loads(self.secrets.keyring))

    def write(self, path: str, **data: Any) -> None:
        self.bao.ask("POST", f"{self.mount}/data/{path}", {"data": data})

    def wrap(self, path: str, value: bytes, key: str) -> str:
        """Keep a value wrapped by a Transit key, made when it is missing; the key as a reference names it."""
        from base64 import b64encode

        transit, _, name = key.partition("/")
        self.bao.ask("POST", f"{transit}/keys/{name}", {})
        answer = self.bao.ask("POST", f"{transit}/encrypt/{name}", {"plaintext": b64encode(value).decode()})
        self.write(path, value=answer["data"]["ciphertext"])
        return key

    def login(self, role: AppRoleOf, name: str) -> str:
        keep(self.directory / name, role.secret_id.encode())
        self.secrets.planted.register(role.secret_id, "secret id")
        return f'approle = {{ role_id = "{role.role_id}", secret_id = {{ file = "{name}" }}, mount = "{role.mount}" }}\n'

    def given_token(self) -> str:
        if not self.token:
            return ""
        keep(self.directory / "token", self.token.encode())
        self.secrets.planted.register(self.token, "Vault token")
        return 'token = { file = "token" }\n'

    def service(self) -> Service:
        """The installation of this configuration. Opening everything is allowed to the drill's identity."""
        for name, pair in (
            ("operations", self.secrets.operations),
            ("escrow", self.secrets.escrow),
            ("signing", self.secrets.signing),
        ):
            (self.directory / f"{name}.pub.asc").write_bytes(pair.public)
        keep(self.directory / "signing.sec.asc", self.secrets.signing.secret.reveal())
        policy = self.bao.new_policy({"unrelated/*": ["read"]})
        backups = self.bao.new_approle(policy, **self.role)
        opens = self.bao.new_approle("default", self.bao.new_policy({"*": ["read", "update"]}))
        if self.named:
            self.bao.ask("POST", f"{opens.path}/role-id", {"role_id": opens.name})
            opens = replace(opens, role_id=opens.name)
        names = {"mount": self.mount, "policy": policy, "backups": backups.path, "opens": opens.path}
        if self.may:
            self.bao.write_policy(policy, {path.format(**names): able for path, able in self.may.items()})
        makes = self.given_token() or self.login(opens if self.one_identity else backups, "backups.id")
        opens_as = self.login(opens, "opens.id")
        makes, opens_as = self.logins.get("backups", makes), self.logins.get("opens", opens_as)
        signer = f"signing_key = {self.signing}" if self.signs else 'signers = ["signing.pub.asc"]'
        path = self.directory / "backupd.toml"
        text = (
            f'[store]\nurl = "file://{self.directory}/store"\n'
            f'[encryption]\nrecipients = ["operations.pub.asc", "escrow.pub.asc"]\n{signer}\n'
            f'[audit]\nurl = "sqlite:///{self.directory}/audit.db"\n'
            f'[vault]\naddress = "{self.address}"\n{makes}{self.logins.get("more", "")}'
            + (f"[drill]\nsecret_key = {self.opening}\n" if self.opens else "")
            + ("" if self.one_identity or not self.opens else f"[drill.vault]\n{opens_as}")
            + f"[sources.clinic]\n{DSN}"
            + (COLUMN + f"keys = {self.columns}\n" if self.opens else "")
        )
        for usual, other in self.instead.items():
            assert usual in text
            text = text.replace(usual, other)
        path.write_text(text)
        return Service(load(path), ACTOR, {})

    def findings(self, *, opens: bool = False) -> list[Finding]:
        with self.service() as service:
            return list(separation.examine(service.config, ("clinic",), service.identities(), opens=opens))

    def shared(self, *, opens: bool = False) -> list[str]:
        return [each.text for each in self.findings(opens=opens) if each.weight is Weight.SHARED]


@pytest.fixture
def rig(tmp_path: Path, openbao: OpenBao, secrets: Secrets) -> Rig:
    return Rig(tmp_path, openbao, secrets, openbao.new_mount())


# ----------------------------------------------------------------------------------------------------- what is legitimate


def test_two_identities_each_with_its_own_are_apart(rig: Rig) -> None:
    rig.signing = f'{{ vault = "{rig.mount}/backup/signing" }}'
    rig.may = {f"{rig.mount}/data/backup/signing": ["read"]}
    for opens in (False, True):
        assert rig.shared(opens=opens) == []
    unread = [each.text for each in rig.findings() if "not read here" in each.text]
    assert len(unread) == 1  # a backup says what it did not compare, for it asks for no key that it does not need
    assert not any("not read here" in each.text for each in rig.findings(opens=True))


def test_the_documented_policy_passes_without_a_warning(rig: Rig) -> None:
    """That of docs/custodians.md for what makes backups, on a host where the other login is the drill's unit's alone."""
    document = (Path(__file__).resolve().parents[1] / "docs" / "custodians.md").read_text(encoding="utf-8")
    [policy] = re.findall(r"(?ms)^bao policy write backups - <<'POLICY'\n(.*?)^POLICY$", document)
    rules = re.findall(r'path "secret/([^"]+)" +{ capabilities = (\[[^]]+]) }', policy)
    assert len(rules) == len(policy.splitlines())
    rig.may = {f"{{mount}}/{path}": json.loads(able) for path, able in rules}
    rig.named, rig.signing = True, f'{{ vault = "{rig.mount}/backup/signing" }}'
    rig.instead = {'{ file = "opens.id" }': '{ credential = "vault-drills" }'}
    assert {each.weight for each in rig.findings()} == {Weight.NOTE}


def test_a_wrapped_key_may_be_read_by_who_cannot_unwrap_it(rig: Rig) -> None:
    transit = rig.bao.new_mount("transit")
    key = rig.wrap("clinic/wrapped", rig.secrets.keyring, f"{transit}/columns")
    rig.columns = f'{{ vault = "{rig.mount}/clinic/wrapped", unwrap = "{key}" }}'
    rig.may = {f"{rig.mount}/data/clinic/*": ["read"], f"{transit}/encrypt/columns": ["update"]}
    for opens in (False, True):
        assert rig.shared(opens=opens) == []


def test_files_on_one_host_are_let_be_and_said_to_prove_nothing(rig: Rig) -> None:
    """The demo, and an installation on a single host: it works, and is told loudly what it is worth."""
    keep(rig.directory / "keyring.json", rig.secrets.keyring)
    keep(rig.directory / "operations.sec.asc", rig.secrets.operations.secret.reveal())
    rig.columns, rig.opening = '{ file = "keyring.json" }', '{ file = "operations.sec.asc" }'
    found = rig.findings()
    assert {each.weight for each in found} == {Weight.WARNING, Weight.NOTE}
    key, login = [each for each in found if each.weight is Weight.WARNING]
    assert "can read the key that opens them" in key.text
    assert "can be read by what makes backups here" in login.text
    assert any("cannot be proved from here" in each.text for each in found)


def test_a_host_that_makes_no_backups_may_open_them(rig: Rig) -> None:
    """A host of drills has one identity, which reads both: there is no other that should not."""
    rig.signs, rig.one_identity = False, True
    assert rig.shared(opens=True) == []


def test_a_vault_that_is_down_stops_no_backup(rig: Rig) -> None:
    """Whether it could have read the keys is then a doubt: nobody reads anything from a Vault that is down."""
    rig.address = "http://127.0.0.1:1"
    found = rig.findings()
    assert {each.weight for each in found} == {Weight.DOUBT, Weight.WARNING, Weight.NOTE}
    assert all("was not answered" in each.text for each in found if each.weight is Weight.DOUBT)
    assert separation.require(found) == found


# -------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("path", ["{mount}/data/clinic/totp", "{mount}/data/clinic/*", "{mount}/*", "{mount}/data/+/totp", "*"])
def test_a_policy_that_lets_what_makes_backups_read_the_column_keys_is_found(rig: Rig, path: str) -> None:
    rig.may = {path.format(mount=rig.mount): ["read"]}
    found = rig.shared()
    assert f"what makes backups may read {rig.mount}/data/clinic/totp: the column keys of clinic: users.totp_secret" in found


def test_a_policy_that_lets_what_makes_backups_open_them_is_found(rig: Rig) -> None:
    rig.may = {f"{rig.mount}/data/backup/*": ["read"]}
    assert rig.shared() == [f"what makes backups may read {rig.mount}/data/backup/operations: the drill's secret key"]


@pytest.mark.parametrize("able", ["patch", "update", "create"])
def test_a_policy_that_lets_what_makes_backups_write_the_column_keys_is_found(rig: Rig, able: str) -> None:
    """A key of its own beside the others, as the current one, would open every value that is encrypted from then on."""
    rig.may = {"{mount}/data/clinic/totp": [able]}
    assert rig.shared() == [
        f"what makes backups may write {rig.mount}/data/clinic/totp: the column keys of clinic: users.totp_secret"
    ]


def test_who_may_destroy_the_column_keys_is_warned_of(rig: Rig) -> None:
    rig.may = {"{mount}/metadata/clinic/*": ["delete"]}
    [warning] = [each for each in rig.findings() if "may destroy" in each.text]
    assert warning.weight is Weight.WARNING
    assert warning.text.startswith("the column keys of clinic: users.totp_secret: what makes backups may destroy")


def test_a_canary_and_the_password_of_who_writes_columns_are_not_for_what_makes_backups(rig: Rig) -> None:
    """The one is a seed, the other writes them."""
    canary, password = (f'{{ vault = "{rig.mount}/clinic/{each}" }}' for each in ("canary", "writer"))
    dsn = f'columns_dsn = "postgresql://writer@localhost/clinic"\ncolumns_password = {password}\n'
    rig.instead = {DSN: DSN + dsn, COLUMN: f"{COLUMN}canary = {{ id = 1, secret = {canary} }}\n"}
    assert rig.shared() == []
    rig.may = {"{mount}/data/clinic/canary": ["read"], "{mount}/data/clinic/writer": ["read"]}
    assert rig.shared() == [
        f"what makes backups may read {rig.mount}/data/clinic/writer: the password of who writes columns of clinic",
        f"what makes backups may read {rig.mount}/data/clinic/canary: the canary of clinic: users.totp_secret",
    ]


def test_one_identity_for_both_is_found(rig: Rig) -> None:
    rig.one_identity = True
    shared = rig.shared()
    assert len([each for each in shared if "what makes backups may read" in each]) == 2
    assert len([each for each in shared if "could give itself" in each]) == 1


def test_the_right_to_unwrap_is_found_even_where_the_wrapped_value_may_not_be_read(rig: Rig) -> None:
    transit = rig.bao.new_mount("transit")
    key = rig.wrap("clinic/wrapped", rig.secrets.keyring, f"{transit}/columns")
    rig.columns = f'{{ vault = "{rig.mount}/clinic/wrapped", unwrap = "{key}" }}'
    rig.may = {f"{transit}/decrypt/*": ["update"]}
    [found] = rig.shared()
    assert f"may decrypt with {transit}/keys/columns" in found


def test_two_members_and_two_versions_of_one_secret_are_one_place(rig: Rig) -> None:
    rig.write("both", operations=rig.secrets.operations.secret.reveal().decode(), keyring=json.loads(rig.secrets.keyring))
    rig.opening = f'{{ vault = "{rig.mount}/both", field = "operations" }}'
    rig.columns = f'{{ vault = "{rig.mount}/both", field = "keyring" }}'
    assert [each for each in rig.shared() if f"in one place, vault:{rig.bao.address}/v1/{rig.mount}/data/both" in each]
    rig.opening = f'{{ vault = "{rig.mount}/both", field = "operations", version = 1 }}'
    rig.columns = f'{{ vault = "{rig.mount}/both", field = "keyring", version = 2 }}'
    assert [each for each in rig.shared() if "in one place" in each]


def test_one_wrapping_key_for_both_is_found(rig: Rig) -> None:
    key = f"{rig.bao.new_mount('transit')}/both"
    rig.wrap("clinic/wrapped", rig.secrets.keyring, key)
    rig.wrap("backup/wrapped", rig.secrets.operations.secret.reveal(), key)
    rig.columns = f'{{ vault = "{rig.mount}/clinic/wrapped", unwrap = "{key}" }}'
    rig.opening = f'{{ vault = "{rig.mount}/backup/wrapped", unwrap = "{key}" }}'
    assert any("are wrapped by one key" in each for each in rig.shared())


def test_the_same_bytes_in_two_places_are_found_by_who_may_read_both(rig: Rig) -> None:
    """A backup reads neither, and says so; the drill, which needs both, finds it."""
    text = rig.secrets.operations.secret.reveal().decode()
    rig.write("clinic/passphrase", value=text)
    rig.columns = f'{{ vault = "{rig.mount}/clinic/passphrase" }}'
    assert rig.shared() == []
    found = rig.shared(opens=True)
    assert any("share bytes" in each for each in found)
    assert any("are one OpenPGP key" in each for each in found)


@pytest.mark.parametrize("name", ["both.json", "/{directory}/both.json", "hard.json", "link.json", "copy.json"])
def test_members_of_one_file_are_found_whatever_it_is_called(rig: Rig, name: str) -> None:
    """And of a copy of it: whoever can read one of the two files has both keys."""
    signing, keyring = rig.secrets.signing.secret.reveal().decode(), json.loads(rig.secrets.keyring)
    both = keep(rig.directory / "both.json", json.dumps({"signing": signing, "keyring": keyring}).encode())
    (rig.directory / "hard.json").hardlink_to(both)
    (rig.directory / "link.json").symlink_to(both)
    keep(rig.directory / "copy.json", both.read_bytes() + b"\n")
    rig.signing = '{ file = "both.json", field = "signing" }'
    rig.columns = f'{{ file = "{name.format(directory=rig.directory)}", field = "keyring" }}'
    found = rig.shared()
    assert found
    assert all("in one place" in each or "in one file" in each or "as well as" in each for each in found)


@pytest.mark.parametrize("pair", ["signing", "operations"])
def test_a_key_of_backups_in_the_place_of_a_column_key_is_found_in_files(rig: Rig, pair: str) -> None:
    keep(rig.directory / "column.asc", getattr(rig.secrets, pair).secret.reveal().replace(b"\n\n", b"\nComment: x\n\n", 1))
    rig.columns = '{ file = "column.asc" }'
    found = rig.shared()
    assert any("are one OpenPGP key" in each for each in found)


@pytest.mark.parametrize("parts", ["--export-secret-keys", "--export-secret-subkeys"])
@pytest.mark.parametrize("text", ["{0}", "the key:\n{0}\nand no more"])
def test_a_secret_key_of_a_recipient_in_one_object_with_a_column_key_is_found(rig: Rig, parts: str, text: str) -> None:
    """In another export than its own file's, so that no bytes are the same. A public key there opens nothing."""
    with Home() as home:
        fingerprint = home.import_secret(rig.secrets.operations.secret)
        export = home.call("--armor", "--comment", "another", parts, fingerprint).stdout.decode()
    rig.columns = '{ file = "both.json", field = "ring" }'
    both = {"ring": json.loads(rig.secrets.keyring), "x": text.format(export)}
    keep(rig.directory / "both.json", json.dumps(both).encode())
    [found] = rig.shared()
    both_are = f"holds the recipient {fingerprint} as well as the column keys of clinic: users.totp_secret"
    assert found == f"file:{rig.directory}/both.json {both_are}"
    both["x"] = rig.secrets.operations.public.decode()
    keep(rig.directory / "both.json", json.dumps(both).encode())
    assert rig.shared() == []


@pytest.mark.parametrize("form", ["{signing}{ring}", "clinic={key}\n{signing}", "{header}", "json", "json in json"])
def test_a_column_key_that_stands_in_the_signing_keys_file_is_found(rig: Rig, form: str) -> None:
    keep(rig.directory / "keyring.json", rig.secrets.keyring)
    rig.columns = '{ file = "keyring.json" }'
    signing, ring = rig.secrets.signing.secret.reveal().decode(), json.loads(rig.secrets.keyring)
    key = ring["keys"][ring["current"]]
    beside = {"json": f"clinic={key}", "json in json": json.dumps(ring, indent=3)}.get(form)
    if beside is not None:
        rig.signing = '{ file = "signing.json", field = "signing" }'
        keep(rig.directory / "signing.json", json.dumps({"signing": signing, "x": beside}).encode())
    else:
        header = signing.replace("\n\n", f"\nComment: {key}\n\n", 1)
        rig.signing = '{ file = "both.asc" }'
        text = form.format(signing=signing, ring=json.dumps(ring, indent=3), key=key, header=header)
        keep(rig.directory / "both.asc", text.encode())
    assert any("holds the column keys of clinic: users.totp_secret as well as the signing key" in each for each in rig.shared())


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o660])
def test_a_file_that_is_open_to_others_is_compared_all_the_same(rig: Rig, mode: int) -> None:
    """Nothing uses it, so that nobody else would look at it."""
    keep(rig.directory / "column.asc", rig.secrets.signing.secret.reveal()).chmod(mode)
    rig.columns = '{ file = "column.asc" }'
    assert any("are one OpenPGP key" in each for each in rig.shared())
    keep(rig.directory / "column.json", json.dumps({"k": rig.secrets.signing.secret.reveal().decode()}).encode()).chmod(mode)
    rig.columns = '{ file = "column.json", field = "k" }'
    assert any("are one OpenPGP key" in each for each in rig.shared())
    rig.signing, rig.columns = '{ file = "column.asc" }', '{ file = "keyring.json" }'
    keep(rig.directory / "keyring.json", rig.secrets.keyring)
    keep(rig.directory / "operations.sec.asc", rig.secrets.operations.secret.reveal()).chmod(mode)
    rig.opening, rig.signing = '{ file = "operations.sec.asc" }', '{ file = "signing.sec.asc" }'
    assert any("can read the key that opens them" in each.text for each in rig.findings())


def test_a_signing_key_that_opens_backups_is_found(rig: Rig) -> None:
    keep(rig.directory / "operations.sec.asc", rig.secrets.operations.secret.reveal())
    rig.signing = '{ file = "operations.sec.asc" }'
    assert any("is also a recipient" in each for each in rig.shared())


def test_the_body_of_a_key_as_a_passphrase_is_found(rig: Rig) -> None:
    lines = rig.secrets.signing.secret.reveal().split(b"\n\n", 1)[1].splitlines()
    body = rig.secrets.planted.register(b"".join(lines[: lines.index(b"-----END PGP PRIVATE KEY BLOCK-----")]), "key's body")
    keep(rig.directory / "passphrase", body)
    rig.columns, rig.instead = '{ file = "passphrase" }', {"aes-256-gcm": "pgcrypto"}
    assert rig.shared() == ["the column keys of clinic: users.totp_secret and the signing key share bytes"]


# --------------------------------------------------------------------------------------------- what keeps the answer away


ASK = 'path "sys/capabilities-self" { capabilities = ["update"] }'


@pytest.mark.parametrize(
    ("role", "rules"),
    [({"token_no_default_policy": True}, {}), ({}, {"sys/capabilities-self": ["deny"]})],
    ids=["without the default policy", "with a rule against it"],
)
def test_an_identity_that_may_not_ask_what_it_may_do_is_refused(
    rig: Rig, role: dict[str, Any], rules: dict[str, list[str]]
) -> None:
    """The server answers, so it is no outage: this identity could read everything."""
    rig.role, rig.may = role, {"{mount}/data/*": ["read"]} | rules
    [found] = [each for each in rig.findings() if each.weight is Weight.SHARED]
    assert found.text.startswith("nothing shows that what makes backups cannot read a key that opens")
    assert ASK in found.hint


def test_a_rule_that_lets_it_ask_is_enough(rig: Rig) -> None:
    rig.role = {"token_no_default_policy": True}
    rig.may = {"sys/capabilities-self": ["update"], "{mount}/data/backup/signing": ["read"]}
    assert not {each.weight for each in rig.findings()} & {Weight.SHARED, Weight.DOUBT}


def test_a_login_that_is_refused_is_no_outage(rig: Rig) -> None:
    """A token that has no use left when it is asked about, or none at all; everything else is in files."""
    rig.token = rig.bao.new_token("default", num_uses=1)
    [found] = rig.shared()
    assert "does not know the token" in found
    rig.token = rig.bao.new_token("default")
    rig.bao.ask("POST", "auth/token/revoke", {"token": rig.token})
    [found] = rig.shared()
    assert "does not know the token" in found
    rig.token, rig.role = "", {"secret_id_num_uses": 1}
    assert rig.shared() == []
    keep(rig.directory / "keyring.json", rig.secrets.keyring)
    keep(rig.directory / "operations.sec.asc", rig.secrets.operations.secret.reveal())
    rig.columns, rig.opening = '{ file = "keyring.json" }', '{ file = "operations.sec.asc" }'
    rig.token = rig.bao.new_token("default", num_uses=1)
    [found] = rig.shared()
    assert "does not know the token" in found


def test_a_login_that_is_not_on_this_host_is_a_doubt(rig: Rig) -> None:
    """The unit of a drill need not have it: nobody reads anything by a login that is not there."""
    with rig.service() as service:
        (rig.directory / "backups.id").unlink()
        found = list(separation.examine(service.config, ("clinic",), service.identities(), opens=True))
    [doubt] = [each for each in found if each.weight in (Weight.DOUBT, Weight.SHARED)]
    assert doubt.weight is Weight.DOUBT
    assert "backups.id" in doubt.text


# -------------------------------------------------------------------------------------------------- rights over identities


@pytest.mark.parametrize(
    ("path", "able", "words"),
    [
        ("{opens}", ["update"], "change the role"),
        ("{opens}/secret-id", ["update"], "make a secret id of the role"),
        ("{opens}/custom-secret-id", ["create"], "make a secret id of the role"),
        ("{backups}", ["update"], "change its own role"),
        ("{backups}/policies", ["update"], "change its own role"),
        ("sys/policies/acl/{policy}", ["update"], "change the policy"),
        ("sys/policy/{policy}", ["update"], "change the policy"),
        ("sys/policies/acl/default", ["update"], "change the policy default"),
        ("sys/policies/acl/*", ["create", "update"], "write any policy"),
        ("auth/token/create", ["update", "sudo"], "make tokens of any policy"),
        ("auth/token/create/*", ["update"], "make tokens by a role of tokens"),
        ("auth/token/roles/*", ["create"], "change a role of tokens"),
        ("identity/entity/id/*", ["update"], "change entities"),
        ("identity/group", ["update"], "change groups"),
        ("sys/remount", ["update", "sudo"], "move what is mounted"),
        # aliases: who moves its own to another entity logs in as that
        ("identity/entity-alias", ["update"], "change entities"),
        ("identity/entity-alias/id/*", ["update"], "change entities"),
        ("identity/entity-alias/id/+", ["update"], "change entities"),
        ("identity/alias", ["create"], "change entities"),
        ("identity/alias/id/*", ["update"], "change entities"),
        ("identity/persona/id/*", ["update"], "change entities"),
        ("identity/+/id/*", ["update"], "change entities"),
        ("identity/group-alias/id/*", ["update"], "change groups"),
        # ways to log in that are nobody's here
        ("auth/{users}/users/*", ["create"], "change who logs in, by auth/{users}/users/*"),
        ("auth/{users}/users/+", ["update"], "change who logs in, by auth/{users}/users/*"),
        ("auth/{users}/users/+/password", ["update"], "change who logs in, by auth/{users}/users/*/password"),
        ("auth/{users}/*", ["update"], "change who logs in, by auth/{users}/"),
        ("auth/{users}/users/one", ["update"], "change who logs in, by auth/{users}/users/one"),
        ("auth/{users}/new/kind", ["update"], "change who logs in, by auth/{users}/new/kind"),
        ("auth/nowhere/role/*", ["create", "update", "read"], "change who logs in, by auth/nowhere/role/*"),
        ("auth/a/b/users/cl*", ["update"], "change who logs in, by auth/a/b/users/cl*"),
        ("auth/+/certs/+", ["update"], "change who logs in, by auth/*/certs/*"),
        ("auth/*", ["update"], "change who logs in, by auth/*"),
        ("sys/auth/*", ["create", "update", "sudo"], "add ways to log in"),
        ("sys/auth/team-*", ["update", "sudo"], "add ways to log in"),
        # names that only a rule knows
        ("auth/token/create/clinic-*", ["update"], "make tokens by a role of tokens"),
        ("auth/token/create/clinic", ["update"], "make tokens by a role of tokens"),
        ("auth/token/roles/clinic-*", ["update"], "change a role of tokens"),
        ("identity/group/name/clinic-*", ["create"], "change groups"),
        ("identity/group/id/one", ["update"], "change groups"),
        ("identity/entity/name/entity_*", ["update"], "change entities"),
        ("identity/entity/name/one", ["update"], "change entities"),
        ("sys/policies/acl/dr*", ["update"], "write the policy dr*"),
        ("sys/policies/acl/drills", ["update"], "write the policy drills"),
        ("sys/pol*", ["update"], "write any policy"),
        ("sys/raw/logical/*", ["read", "sudo"], "read the server's storage"),
        ("sy*", ["update", "sudo"], "read the server's storage"),
    ],
)
def test_a_right_that_is_one_step_from_the_keys_is_found(rig: Rig, path: str, able: list[str], words: str) -> None:
    users = ""
    if "{users}" in path:
        users = rig.bao.new_name("users")
        rig.bao.ask("POST", f"sys/auth/{users}", {"type": "userpass"})
    rig.named, rig.may = True, {path.replace("{users}", users): able}
    [found] = [each for each in rig.findings() if each.weight is Weight.SHARED]
    assert found.text.startswith("what makes backups could give itself the keys that open: it may ")
    assert words.replace("{users}", users) in found.text or "things more" in found.text
    assert found.hint


@pytest.mark.parametrize(
    ("path", "able"),
    [
        ("auth/token/create", ["update"]),  # of its own policies, no others
        ("{backups}/secret-id", ["update"]),  # it may change its own secret id
        ("{backups}", ["read"]),
        ("{opens}/role-id", ["read"]),
        ("sys/policies/acl/{policy}", ["read"]),
        ("{backups}/*", ["read", "list"]),
        ("auth/token/*", ["read"]),
        ("auth/token/renew*", ["update"]),
        ("auth/token/revoke", ["update"]),
        ("auth/+/login", ["update"]),
        ("auth/nowhere/login/*", ["update"]),
        ("auth/nowhere/oidc/auth_url", ["update"]),
        ("{opens}/secret-id/lookup", ["update"]),
        ("identity/lookup/entity", ["update"]),
        ("identity/oidc/provider/+/authorize", ["read", "update"]),
        ("sys/auth", ["read", "sudo"]),
        ("sys/auth/*", ["read", "sudo"]),
        ("sys/mounts/*", ["read"]),
        ("sys/leases/*", ["update"]),
        ("{mount}/data/auth/nowhere/users/*", ["update"]),
        ("{mount}/data/team/sys/policies/acl/*", ["update"]),
    ],
)
def test_a_right_that_leads_nowhere_is_let_be(rig: Rig, path: str, able: list[str]) -> None:
    rig.named, rig.may = True, {path: able}
    assert rig.shared() == []


@pytest.mark.parametrize("tells", [True, False], ids=["that tells who it is", "that tells nothing"])
def test_a_proxy_that_lends_the_other_identity_to_everybody_is_found(rig: Rig, tells: bool) -> None:
    """It is asked with the token of what makes backups, and needs none."""
    opens = rig.bao.new_policy({f"{rig.mount}/data/*": ["read"]})
    role = rig.bao.new_approle(opens, token_no_default_policy=not tells)
    with lending_proxy(rig.bao, role) as rig.address:
        found = rig.shared()
    if tells:
        [text] = found
        assert f"{rig.address}/v1 answers whoever asks without a token, as somebody else than the AppRole" in text
    else:
        told = f"what makes backups may read {rig.mount}/data/clinic/totp without a token, at {rig.address}/v1"
        assert any(each.startswith(told) for each in found)


def test_a_proxy_that_lends_what_makes_backups_is_warned_of(rig: Rig) -> None:
    role = rig.bao.new_approle("default")
    rig.logins["backups"] = rig.login(role, "lent.id")
    with lending_proxy(rig.bao, role) as rig.address:
        found = rig.findings()
    assert not [each for each in found if each.weight is Weight.SHARED]
    [warning] = [each for each in found if "without a token" in each.text]
    assert warning.weight is Weight.WARNING


UNTOLD = {"sys/internal/ui/resultant-acl": ["deny"]}


def test_a_role_that_opens_is_found_where_a_rule_names_it_or_by_who_may_log_in_as_it(rig: Rig) -> None:
    """A backup knows the id of the drill's AppRole alone: without the rules, `check` and the drill ask for its name."""
    rig.may = {"{opens}/secret-id": ["update"]}
    [found] = rig.shared()
    assert "change who logs in, by auth/" in found
    rig.may |= UNTOLD
    assert rig.shared() == []
    [found] = rig.shared(opens=True)
    assert "make a secret id of the role" in found


def test_rules_that_the_server_does_not_tell_are_warned_of(rig: Rig) -> None:
    """What is asked without them still holds; `check` says which rules that does not find."""
    rig.may = UNTOLD | {"auth/token/create/clinic-*": ["update"]}
    [warning] = [each for each in rig.findings() if "does not tell" in each.text]
    assert warning.weight is Weight.WARNING
    assert "a name's beginning, is not found" in warning.text
    assert warning.hint == (
        'let it read them, in one of its policies: path "sys/internal/ui/resultant-acl" { capabilities = ["read"] }'
    )
    assert rig.shared() == []
    for path in ("auth/+/users/+", "identity/alias/id/*", "sys/auth/*"):
        rig.may = UNTOLD | {path: ["update", "sudo"]}
        assert rig.shared()
    users = rig.bao.new_name("users")
    rig.bao.ask("POST", f"sys/auth/{users}", {"type": "userpass"})
    rig.may = UNTOLD | {f"auth/{users}/users/*": ["update"]}
    assert rig.shared()  # the mounts are told to anybody


@pytest.mark.parametrize(
    ("against", "found"),
    [("identity/group/name/clinic-*", False), ("identity/group/name/clinic-a*", True), ("identity/*", True)],
)
def test_a_rule_against_a_rule_counts(rig: Rig, against: str, found: bool) -> None:
    """The rules give names to ask about; what the server answers decides."""
    other = rig.bao.new_policy({"identity/group/name/clinic-*": ["update"]})
    rig.token = rig.bao.new_token("default", other, rig.bao.new_policy({against: ["deny"]}))
    assert bool(rig.shared()) == found


def test_a_user_may_change_its_own_password(rig: Rig) -> None:
    users = rig.bao.new_name("users")
    rig.bao.ask("POST", f"sys/auth/{users}", {"type": "userpass"})
    own = rig.bao.new_policy({f"auth/{users}/users/backups/password": ["update"]})
    rig.bao.ask("POST", f"auth/{users}/users/backups", {"password": "of backups", "token_policies": [own]})
    answer = rig.bao.ask("POST", f"auth/{users}/login/backups", {"password": "of backups"}, token="")
    rig.token = answer["auth"]["client_token"]
    assert rig.shared() == []
    rig.bao.write_policy(own, {f"auth/{users}/users/backups/policies": ["update"]})
    assert "change its own role" in rig.shared()[0]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("auth/token/create", "make tokens of any policy"),
        ("auth/token/create/*", "make tokens by a role of tokens"),
        ("sys/policies/acl/*", "write any policy"),
        ("sys/policies/acl/drills", "write the policy drills"),
        ("identity/entity-alias/id/*", "change entities"),
        ("identity/group/id/+", "change groups"),
        ("auth/approle/role/*", "change who logs in, by {team}/auth/approle/role/*"),
        ("sys/auth/*", "add ways to log in"),
    ],
)
@pytest.mark.parametrize("inside", [True, False], ids=["[vault] namespace", "in the path"])
def test_a_right_over_identities_in_the_namespace_of_the_keys_is_found(rig: Rig, path: str, words: str, inside: bool) -> None:
    """The identity is of the namespace above it; so are its rules, which it is asked for there."""
    team = rig.bao.new_name("team")
    rig.bao.ask("POST", f"sys/namespaces/{team}", {})
    mount = rig.bao.new_mount(namespace=team)
    named = f"{mount}/" if inside else f"{team}/{mount}//"
    rig.opening, rig.columns = f'{{ vault = "{named}backup/operations" }}', f'{{ vault = "{named}clinic/totp" }}'
    rig.instead = {"[vault]\n": f'[vault]\nnamespace = "{team}"\n'} if inside else {}
    for rules, expected in ({f"{team}/{path}": ["create", "update", "sudo"]}, True), ({f"other/{path}": ["update"]}, False):
        rig.token = rig.bao.new_token("default", rig.bao.new_policy(rules))
        found = rig.shared()
        assert bool(found) == expected
        assert all(words.format(team=team) in each for each in found)


def test_on_a_host_that_names_no_key_that_opens_the_identity_is_asked_about_all_the_same(rig: Rig) -> None:
    rig.opens = False
    found = rig.findings()
    assert {each.weight for each in found} == {Weight.NOTE}
    assert "no key that opens is named here" in found[0].text
    rig.token = rig.bao.new_token("root")
    assert any("it may do anything, by the policy root" in each for each in rig.shared())
    rig.token = rig.bao.new_token("default", rig.bao.new_policy({"auth/token/create": ["update", "sudo"]}))
    assert any("make tokens of any policy" in each for each in rig.shared())


# ------------------------------------------------------------------------------------------------------------- what may be


def test_a_wrapped_key_whose_older_versions_may_be_in_clear_is_told(rig: Rig) -> None:
    transit = rig.bao.new_mount("transit")
    key = rig.wrap("clinic/totp", rig.secrets.keyring, f"{transit}/columns")  # over what was there in clear
    rig.columns = f'{{ vault = "{rig.mount}/clinic/totp", unwrap = "{key}" }}'
    assert not [each for each in rig.findings() if "older versions" in each.text]
    rig.may = {"{mount}/data/clinic/*": ["read"]}
    [warning] = [each for each in rig.findings() if "older versions" in each.text]
    assert f"may read {rig.mount}/data/clinic/totp, whose older versions are in clear" in warning.text
    assert "bao kv destroy" in warning.hint


@pytest.mark.parametrize("parts", ["--export-secret-keys", "--export-secret-subkeys"])
def test_a_signing_key_with_a_part_that_opens_backups_is_found(rig: Rig, parts: str) -> None:
    """Its certificate is no recipient's, but a recipient's has adopted its subkey: gpg needs no more than the numbers."""
    with Home() as home:
        call = ("--pinentry-mode", "loopback", "--passphrase", "")
        home.call(*call, "--quick-generate-key", "Clinic, signing", "ed25519", "sign", "never")
        [signing] = fingerprints(home)
        home.call(*call, "--quick-add-key", signing, "cv25519", "encrypt", "never")
        [_, subkey] = [each.field(10) for each in listed(home, signing) if each.kind == "grp"]
        home.call(*call, "--quick-generate-key", "Clinic, operations", "ed25519", "cert", "never")
        [operations] = set(fingerprints(home)) - {signing}
        dialogue = f"addkey\n13\n{subkey}\ns\nq\n0\nsave\n"  # an existing key, by its keygrip; not to sign; for ever
        edit = ("--no-batch", "--command-fd", "0", "--expert", "--edit-key", operations)
        home.call(*call, *edit, stdin=dialogue.encode())
        assert subkey in [each.field(10) for each in listed(home, operations) if each.kind == "grp"]
        (rig.directory / "adopted.pub.asc").write_bytes(home.call("--armor", "--export", operations).stdout)
        keep(rig.directory / "adopted.sec.asc", home.call("--armor", parts, signing).stdout)
        signs_alone = home.call("--armor", "--export-secret-keys", f"{signing}!").stdout
    rig.instead = {'"operations.pub.asc"': '"adopted.pub.asc"'}
    rig.signing = '{ file = "adopted.sec.asc" }'
    told = f"the signing key {signing} has a part of the recipient {operations}: this host can read its own backups"
    assert rig.shared() == [told]
    keep(rig.directory / "adopted.sec.asc", signs_alone)
    assert rig.shared() == []


def fingerprints(home: Home) -> list[str]:
    records = colons(home.call("--list-keys", "--with-colons").stdout)
    return [following.field(10) for record, following in pairwise(records) if record.kind == "pub"]


def listed(home: Home, fingerprint: str) -> tuple[Record, ...]:
    return colons(home.call("--list-keys", "--with-colons", "--with-keygrip", fingerprint).stdout)


# ------------------------------------------------------------------------------- the logins, and what backups are made with


def test_a_login_that_opens_is_warned_of_where_what_makes_backups_can_read_it(rig: Rig) -> None:
    """As the key that it stands for is. A drill, which has to have it, and a host without it say nothing."""
    [warning] = [each for each in rig.findings() if each.weight is Weight.WARNING]
    assert "the login to Vault of what opens them can be read by what makes backups here, file:" in warning.text
    with rig.service() as service:
        opening = service.identities().own(service.config.drill.secret_key or pytest.fail("no key"))
        found = list(separation.examine(service.config, ("clinic",), service.identities(), opening=opening, opens=True))
    assert not [each for each in found if each.weight in (Weight.WARNING, Weight.SHARED)]
    rig.instead = {'{ file = "opens.id" }': '{ credential = "vault-drills" }'}
    assert {each.weight for each in rig.findings()} == {Weight.NOTE}


@pytest.mark.parametrize("name", ["backups.id", "hard.id", "link.id", "copy.id"])
def test_one_login_for_both_identities_is_found(rig: Rig, name: str) -> None:
    """By its place, its file or its bytes; whatever roles are named beside it."""
    first = keep(rig.directory / "backups.id", b"of an earlier login")
    (rig.directory / "hard.id").hardlink_to(first)
    (rig.directory / "link.id").symlink_to(first)
    rig.instead = {'{ file = "opens.id" }': f'{{ file = "{name}" }}'}
    with rig.service() as service:  # which writes the file anew
        keep(rig.directory / "copy.id", first.read_bytes() + b"\n")
        found = list(separation.examine(service.config, ("clinic",), service.identities(), opens=False))
    shared = [each for each in found if each.weight is Weight.SHARED]
    assert shared
    for each in shared:
        assert each.text.startswith("the login to Vault of what opens them and the login to Vault of what makes backups ")
        assert "the unit of the drill" in each.hint


@pytest.mark.parametrize("other", ["the login to Vault of what makes backups", "the password of clinic", "the signing key"])
def test_a_login_that_opens_may_lie_in_one_object_with_nothing_that_backups_are_made_with(rig: Rig, other: str) -> None:
    members = {"other": rig.secrets.signing.secret.reveal().decode(), "drills": "the secret id of drills"}
    keep(rig.directory / "ids.json", json.dumps(members).encode())
    ref = '{ file = "ids.json", field = "other" }'
    rig.instead = {'{ file = "opens.id" }': '{ file = "ids.json", field = "drills" }'}
    if other == "the signing key":
        rig.signing = ref
    elif other == "the password of clinic":
        rig.instead[DSN] = f"{DSN}password = {ref}\n"
    else:
        rig.instead['{ file = "backups.id" }'] = ref
    assert f"the login to Vault of what opens them and {other} are in one place, file:{rig.directory}/ids.json" in rig.shared()


@pytest.mark.parametrize(("first", "second", "one"), [("a.jwt", "a.jwt", True), ("a.jwt", "b.jwt", False), (None, None, True)])
def test_one_service_account_for_both_identities_is_found(rig: Rig, first: str | None, second: str | None, one: bool) -> None:
    """Two roles at the server that one token logs in to, which is in one place where nothing is said, are one identity."""
    for name in ("a.jwt", "b.jwt"):
        keep(rig.directory / name, f"the token {name}".encode()).chmod(0o644)
    for identity, file in (("backups", first), ("opens", second)):
        jwt = f', jwt_file = "{rig.directory}/{file}"' if file else ""
        rig.logins[identity] = f'kubernetes = {{ role = "{identity}"{jwt} }}\n'
    found = rig.findings()
    assert any(each.weight is Weight.SHARED and "are in one place" in each.text for each in found) == one
    assert any(each.weight is Weight.WARNING and "can be read by what makes backups" in each.text for each in found) != one


def test_what_logs_in_to_key_vault_is_looked_at_too(rig: Rig) -> None:
    """Managed identities are given to a machine: who runs on it may be each of them."""
    registered = 'client_id = "{0}"\ntenant_id = "t"\nclient_secret = {{ file = "{0}.secret" }}\n'
    for name in ("backups", "drills"):
        keep(rig.directory / f"{name}.secret", f"the client secret of {name}".encode())
    rig.logins["more"] = (
        f"[azure_key_vault]\n{registered.format('backups')}[drill.azure_key_vault]\n{registered.format('drills')}"
    )
    assert rig.shared() == []
    rig.instead = {"drills.secret": "backups.secret"}
    [found] = rig.shared()
    assert found.startswith("the login to Key Vault of what opens them and the login to Key Vault of what makes backups are in")
    rig.logins["more"] = '[azure_key_vault]\nclient_id = "a"\n[drill.azure_key_vault]\nclient_id = "b"\n'
    rig.instead = {}
    warnings = [each.text for each in rig.findings() if each.weight is Weight.WARNING]
    assert any(each.startswith("the login to Key Vault of what opens them is this machine's own") for each in warnings)


def test_what_backups_are_made_with_is_not_kept_with_a_column_key(rig: Rig) -> None:
    """Backups cannot be made without the passwords, so whoever makes them reads what lies there."""
    members = {"password": "the password of the role", "keyring": json.loads(rig.secrets.keyring)}
    keep(rig.directory / "both.json", json.dumps(members).encode())
    rig.columns = '{ file = "both.json", field = "keyring" }'
    rig.instead = {DSN: DSN + 'password = { file = "both.json", field = "password" }\n'}
    both = "the column keys of clinic: users.totp_secret and the password of clinic"
    assert rig.shared() == [f"{both} are in one place, file:{rig.directory}/both.json"]
    keep(rig.directory / "password", b"the password of the role\n")
    keep(rig.directory / "passphrase", b"the password of the role")
    rig.columns = '{ file = "passphrase" }'
    rig.instead = {DSN: DSN + 'password = { file = "password" }\n', "aes-256-gcm": "pgcrypto"}
    assert rig.shared() == [f"{both} share bytes"]
    rig.signs = False  # whoever makes no backups has no need of it
    assert rig.shared() == []


# -------------------------------------------------------------------------------------------------------- Azure Key Vault


def in_key_vault(rig: Rig, server: KeyVaultServer, backups: str, columns: str, opening: str = "") -> list[Finding]:
    """What is found when what makes backups is the identity `backups` to the vault, and what opens them is `reader`."""
    rig.columns = columns
    rig.opening = opening or rig.opening
    with rig.service() as service:
        who = service.identities()

        def asked_by(identity: str, otherwise: Callable[[SecretRef], Custodian]) -> Callable[[SecretRef], Custodian]:
            vaults = KeyVaults(credential=Credential(identity), transport=server.transport, retries=0)

            def opened(ref: SecretRef) -> Custodian:
                if ref.kind != "azure":
                    return otherwise(ref)
                return open_custodian(
                    Reference(ref.kind, ref.name, ref.field, ref.version, ref.unwrap), {}, Servers(None, vaults)
                )

            return opened

        identities = replace(who, own=asked_by("reader", who.own), backups=asked_by(backups, who.backups))
        return list(separation.examine(service.config, ("clinic",), identities, opens=False))


def test_a_key_vault_that_gives_what_makes_backups_the_column_keys_is_found(rig: Rig, key_vault: KeyVaultServer) -> None:
    key_vault.keep("totp", rig.secrets.keyring.decode())
    columns = f'{{ azure = "{VAULT}/secrets/totp" }}'
    assert Weight.SHARED not in {each.weight for each in in_key_vault(rig, key_vault, "nobody", columns)}
    [found] = [each for each in in_key_vault(rig, key_vault, "reader", columns) if each.weight is Weight.SHARED]
    assert found.text == f"what makes backups may get azure:{VAULT}/secrets/totp: the column keys of clinic: users.totp_secret"
    assert "drill.azure_key_vault" in found.hint
    [doubt] = [each for each in in_key_vault(rig, key_vault, "stranger", columns) if each.weight is Weight.DOUBT]
    assert "was not answered" in doubt.text


def test_the_right_to_unwrap_and_one_object_for_both_are_found_in_a_key_vault(rig: Rig, key_vault: KeyVaultServer) -> None:
    key = key_vault.new_key("both")
    key_vault.grant("unwraps", "keys/unwrapKey")
    columns = f'{{ azure = "{VAULT}/secrets/wrapped", unwrap = "{key}" }}'
    opening = f'{{ azure = "{VAULT}/secrets/operations", unwrap = "{key.rpartition("/")[0]}" }}'
    found = [each.text for each in in_key_vault(rig, key_vault, "nobody", columns, opening) if each.weight is Weight.SHARED]
    assert len(found) == 1
    assert f"are wrapped by one key, azure:{VAULT}/keys/both" in found[0]
    found = [each.text for each in in_key_vault(rig, key_vault, "unwraps", columns) if each.weight is Weight.SHARED]
    assert any(f"may unwrapKey with {key}" in each for each in found)
    one = f'{{ azure = "{VAULT}/secrets/one", field = "%s" }}'
    found = [each.text for each in in_key_vault(rig, key_vault, "nobody", one % "a", one % "b") if each.weight is Weight.SHARED]
    assert any(f"in one place, azure:{VAULT}/secrets/one" in each for each in found)


# ------------------------------------------------------------------------------------------------- what a refusal leaves


@pytest.fixture
def clinic(tmp_path: Path, postgres17: PostgresServer, openbao: OpenBao, secrets: Secrets) -> Iterator[Installation]:
    """An installation whose column keys are in Vault, where they belong, and whose host is another identity's."""
    with installed(tmp_path, postgres17, secrets) as made:
        mount = openbao.new_mount()
        openbao.ask("POST", f"{mount}/data/clinic/totp", {"data": {"keyring": json.loads(secrets.keyring)}})
        totp = made.tables["totp"].replace(
            '{ file = "custody/keyring.json" }', f'{{ vault = "{mount}/clinic/totp", field = "keyring" }}'
        )
        made.tables["totp"] = totp
        made.tables["vault"] = vault(made, openbao, {"unrelated/*": ["read"]}, {f"{mount}/data/clinic/totp": ["read"]})
        made.configure()
        made.tables["lax"] = f"{mount}/data/clinic/*"
        yield made


def vault(made: Installation, bao: OpenBao, backups: dict[str, list[str]], opens: dict[str, list[str]]) -> str:
    text = f'[vault]\naddress = "{bao.address}"\n'
    for name, table, rules in (("backups", "", backups), ("opens", "[drill.vault]\n", opens)):
        token = made.secrets.planted.register(bao.new_token("default", bao.new_policy(rules)), "Vault token")
        keep(made.custody / name, token.encode())
        text += f'{table}token = {{ file = "custody/{name}" }}\n'
    return text


def refused(done: Completed) -> str:
    assert (done.code, done.error["exit_code"]) == (4, 4)
    assert done.error["hint"]
    return str(done.error["error"])


def test_a_lax_policy_stops_backups_and_drills_and_is_recorded(clinic: Installation, openbao: OpenBao) -> None:
    """Exit code 4, before anything is dumped or opened; `check` tells the same, and a mended policy lets the work go on."""
    lax = {clinic.tables.pop("lax"): ["read"]}
    made = clinic.back_up()
    assert clinic.run("restore-test", SOURCE, "--json").ok().json["verdict"] == "PASS"
    clinic.tables["vault"] = vault(clinic, openbao, lax, lax)
    clinic.configure()
    for arguments, operation in ((("backup", SOURCE), "backup"), (("restore-test", SOURCE), "restore-test")):
        assert "what makes backups may read" in refused(clinic.run(*arguments, "--json"))
        last = clinic.records()[-1]
        assert last["operation"] == operation
        assert "what makes backups may read" in last["error"]
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert [each["area"] for each in done.json["lines"] if each["state"] == "problem"] == ["separation"]
    mute = lax | {"sys/capabilities-self": ["deny"]}
    clinic.tables["vault"] = vault(clinic, openbao, mute, lax)
    clinic.configure()
    done = clinic.run("backup", SOURCE, "--json")
    assert "nothing shows that what makes backups cannot read a key that opens" in refused(done)
    assert ASK in done.error["hint"]
    assert [each["backup_id"] for each in clinic.run("list", "--json").ok().json] == [made]
    clinic.tables["vault"] = vault(clinic, openbao, {"unrelated/*": ["read"]}, lax)
    clinic.configure()
    clinic.run("backup", SOURCE, "--json").ok()


def test_a_column_key_that_is_open_to_others_is_a_problem_of_the_host(clinic: Installation) -> None:
    """Not the sign of a host that opens nothing, though nothing else of what opens is to be had."""
    clinic.tables.pop("lax")
    totp = clinic.tables["totp"]
    clinic.tables["totp"] = totp[: totp.index("keys = ")] + 'keys = { file = "custody/keyring.json" }\n'
    clinic.tables["drill"] = ""
    clinic.configure()
    (clinic.custody / "keyring.json").chmod(0o644)
    done = clinic.run("check", "--json")
    assert done.code == 1
    lines = [each for each in done.json["lines"] if each["area"] == "custody"]
    assert [each["state"] for each in lines if "is open to others" in each["text"]] == ["problem"]
    assert not [each for each in lines if "opens neither" in each["text"]]
    (clinic.custody / "keyring.json").chmod(0o600)


def test_a_drill_whose_vault_is_away_could_not_verify(clinic: Installation) -> None:
    """And the backup before it is made all the same: an outage must not cost the backups too."""
    clinic.tables.pop("lax")
    address = clinic.tables["vault"].splitlines()[1]
    clinic.tables["vault"] = clinic.tables["vault"].replace(address, 'address = "http://127.0.0.1:1"')
    clinic.configure()
    clinic.back_up()
    done = clinic.run("restore-test", SOURCE, "--json")
    assert (done.code, done.json["verdict"]) == (3, "COULD NOT VERIFY")
    assert "cannot be reached" in json.dumps(done.json)
    lines = [each for each in clinic.run("check", "--json").json["lines"] if each["area"] == "separation"]
    assert "warning" in {each["state"] for each in lines}
    assert not [each for each in lines if "nothing that was looked at is shared" in each["text"]]


def test_require_tells_all_that_is_shared() -> None:
    found = [Finding(Weight.SHARED, "one", "first"), Finding(Weight.NOTE, "aside"), Finding(Weight.SHARED, "two", "second")]
    with pytest.raises(Refused, match="one; two") as caught:
        separation.require(found)
    assert caught.value.hint == "first"
