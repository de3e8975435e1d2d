"""`backupd keys`, as processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installation import Completed, Installation
from tests.parts.process import short_directory

FILES = {f"{name}.{kind}.asc" for name in ("operations", "escrow", "signing") for kind in ("pub", "sec", "rev")}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a tmpfs."""
    with short_directory("bd-keys-") as unique:
        path = Path("/dev/shm") / unique.name
        yield path
        shutil.rmtree(path, ignore_errors=True)


def watched(clinic: Installation, directory: Path, made: Completed) -> Completed:
    """The run again, if none of the secret keys that it made is in its output."""
    planted = clinic.secrets.planted
    for path in directory.glob("*.sec.asc"):
        for line in path.read_bytes().splitlines():
            if len(line) == 64:
                planted.register(line, "new OpenPGP secret key")
    planted.assert_absent(made.stdout + made.stderr, "the output of keys generate")
    return made


def test_new_keys_are_private_files_that_are_good_to_use(lived_in: Installation, memory: Path) -> None:
    """Nine files of mode 0600; the public halves pass `keys show`; it is told where each belongs."""
    run = lived_in.run("keys", "generate", "--directory", str(memory), "--name", "Clinic", "--json")
    made = watched(lived_in, memory, run).ok().json
    assert {path.name for path in memory.iterdir()} == FILES
    assert {path.stat().st_mode & 0o777 for path in memory.iterdir()} == {0o600}
    assert memory.stat().st_mode & 0o777 == 0o700
    assert made["on_disk"] is False
    assert [key["name"] for key in made["keys"]] == ["operations", "escrow", "signing"]
    assert all(key["public"]["belongs"] and key["secret"]["belongs"] for key in made["keys"])

    shown = lived_in.run("keys", "show", *(key["public"]["file"] for key in made["keys"]), "--json").ok().json
    assert [each["fingerprint"] for each in shown] == [key["fingerprint"] for key in made["keys"]]
    assert [each["purpose"] for each in shown] == ["encrypt", "encrypt", "sign"]
    assert shown[0]["user_id"] == "Clinic, operations"
    assert [each["problems"] for each in shown] == [[], [], []]


def test_one_key_can_be_made_alone_to_replace_another(lived_in: Installation, memory: Path) -> None:
    run = lived_in.run("keys", "generate", "--directory", str(memory), "--only", "signing", "--json")
    [made] = watched(lived_in, memory, run).ok().json["keys"]
    assert made["name"] == "signing"
    assert {path.name for path in memory.iterdir()} == {f"signing.{kind}.asc" for kind in ("pub", "sec", "rev")}


def test_the_trail_tells_which_keys_were_made_and_looked_at(lived_in: Installation, memory: Path) -> None:
    """With a configuration, key work is recorded like everything else, by fingerprint."""
    made = watched(lived_in, memory, lived_in.run("keys", "generate", "--directory", str(memory), "--json")).ok().json
    done = lived_in.records()[-1]
    assert (done["operation"], done["phase"]) == ("keys", "done")
    assert done["details"]["fingerprints"] == [f"{key['name']} {key['fingerprint']}" for key in made["keys"]]


def test_secret_keys_on_a_disk_are_pointed_out(lived_in: Installation, tmp_path: Path) -> None:
    """Where the directory is no tmpfs, the person is told that the keys must be moved and the files shredded."""
    directory = tmp_path / "new"
    done = watched(lived_in, directory, lived_in.run("keys", "generate", "--directory", str(directory))).ok()
    assert "written to a disk" in done.stderr
    assert "offline, in a safe" in done.stdout


def test_keys_are_never_written_over(lived_in: Installation, memory: Path) -> None:
    """A directory that holds anything is refused, and what it holds is as it was."""
    memory.mkdir(mode=0o700)
    (memory / "operations.sec.asc").write_text("the only one")
    done = lived_in.run("keys", "generate", "--directory", str(memory), "--json")
    assert (done.code, done.error["exit_code"]) == (2, 2)
    assert "is not empty" in done.error["error"]
    assert [path.read_text() for path in memory.iterdir()] == ["the only one"]
    assert lived_in.records()[-1]["phase"] == "failed"


def test_a_directory_open_to_others_gets_no_keys(lived_in: Installation, memory: Path) -> None:
    """A directory that was there already must be private."""
    memory.mkdir(mode=0o755)
    memory.chmod(0o755)
    done = lived_in.run("keys", "generate", "--directory", str(memory), "--json")
    assert done.code == 2
    assert "open to other users" in done.error["error"]
    assert list(memory.iterdir()) == []


def test_a_directory_of_another_user_gets_no_keys(lived_in: Installation, memory: Path) -> None:
    """In /dev/shm anybody could have made it before, and would exchange a public key for one of their own."""
    directory = memory
    if os.geteuid() == 0:
        directory.mkdir(mode=0o700)
        os.chown(directory, 65534, -1)
    else:
        directory = Path("/")
    done = lived_in.run("keys", "generate", "--directory", str(directory), "--json")
    assert (done.code, done.error["exit_code"]) == (4, 4)
    assert "belongs to another user" in done.error["error"]
    assert "one of your own" in done.error["hint"]
    assert not FILES & {path.name for path in directory.iterdir()}
    assert lived_in.records()[-1]["phase"] == "refused"


@pytest.mark.parametrize("led_to", ["a directory", "nothing"])
def test_no_keys_are_written_through_a_link(lived_in: Installation, memory: Path, tmp_path: Path, led_to: str) -> None:
    """Not though it leads into a directory that is one's own: whose the link is may change it."""
    end = tmp_path / "end"
    if led_to == "a directory":
        end.mkdir(mode=0o700)
    memory.symlink_to(end)
    try:
        done = lived_in.run("keys", "generate", "--directory", f"{memory}/", "--json")
    finally:
        memory.unlink()
    assert done.code == 4
    assert "is a symbolic link" in done.error["error"]
    assert done.error["hint"]
    assert not end.exists() or list(end.iterdir()) == []


def test_configured_keys_are_shown_with_what_each_is_for(lived_in: Installation) -> None:
    """Without files, the recipients and the signing key of the configuration are looked at."""
    shown = lived_in.run("keys", "show", "--json").ok().json
    secrets = lived_in.secrets
    wanted = [secrets.operations.fingerprint, secrets.escrow.fingerprint, secrets.signing.fingerprint]
    assert [each["fingerprint"] for each in shown] == wanted
    assert [each["purpose"] for each in shown] == ["encrypt", "encrypt", "sign"]
    assert "Clinic backups, escrow" in lived_in.run("keys", "show").ok().stdout


def test_a_secret_key_among_public_ones_is_told(lived_in: Installation) -> None:
    """It is unusable as a recipient, the exit code is 1, and not a line of it is printed."""
    done = lived_in.run("keys", "show", str(lived_in.keys / "escrow.pub.asc"), str(lived_in.secret_key), "--json")
    assert done.code == 1
    good, bad = done.json
    assert good["problems"] == []
    assert bad["fingerprint"] is None
    assert [(each["fatal"], "secret key" in each["message"]) for each in bad["problems"]] == [(True, True)]


def test_keys_are_made_before_the_configuration_that_the_environment_names_is_written(
    lived_in: Installation, memory: Path, tmp_path: Path
) -> None:
    """Its absence counts as none; an absent one that was given by hand is told, and so is one where the keys are configured."""
    absent = tmp_path / "still-to-come.toml"
    made = lived_in.run("keys", "generate", "--directory", str(memory), "--json", config=absent)
    public = watched(lived_in, memory, made).ok().json["keys"][0]["public"]["file"]
    lived_in.run("keys", "show", public, config=absent).ok()
    for arguments in (("keys", "show"), ("keys", "show", public, "-c", str(absent))):
        assert lived_in.run(*arguments, config=absent).code == 2
