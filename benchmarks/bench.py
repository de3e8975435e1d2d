"""The contestants, over one PostgreSQL server and one S3 server of their own."""

from __future__ import annotations

import compileall
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from backupd.openpgp import keys
from backupd.openpgp.keys import KeyPair
from tests.parts.postgres import PostgresServer, running_postgres
from tests.parts.s3 import S3Server, running_s3

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "shared_buffers": "512MB",
    # Old WAL segments are kept for reuse. Else the first of two restores fills new ones with zeros, and the second has them.
    "min_wal_size": "8GB",
    "max_wal_size": "8GB",
    # It would fall on whoever runs when it wakes.
    "autovacuum": "off",
}


@dataclass(slots=True)
class Bench:
    """What the contestants share; the methods are the contestants."""

    directory: Path
    server: PostgresServer
    store: S3Server
    bucket: str
    operations: KeyPair
    gnupg: Path
    version: str = ""
    database_bytes: int = 0
    made: int = 0
    scratch: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def running(cls, directory: Path, gigabytes: float) -> Iterator[Bench]:
        """Servers, keys, a configuration and the database."""
        os.environ.setdefault("TMPDIR", str(directory))
        with running_postgres(17, SETTINGS) as server, running_s3() as store:
            operations, escrow = (keys.generate(f"{name}@example.org", purpose="encrypt", expires_days=None) for name in "oe")
            signing = keys.generate("s@example.org", purpose="sign", expires_days=None)
            bench = cls(directory, server, store, store.new_bucket(), operations, directory / "gnupg")
            bench._configure(escrow, signing)
            bench._fill(gigabytes)
            bench._by_hand_once()
            compileall.compile_dir(ROOT / "backupd", quiet=1)  # an installation has done so, that of `aws` too
            yield bench

    def _configure(self, escrow: KeyPair, signing: KeyPair) -> None:
        for name, data in (
            ("operations.pub.asc", self.operations.public),
            ("escrow.pub.asc", escrow.public),
            ("signing.sec.asc", signing.secret.reveal()),
            ("operations.sec.asc", self.operations.secret.reveal()),
        ):
            _private(self.directory / name, data)
        _private(self.directory / "password", self._password().encode())
        _private(self.directory / "s3-secret", self.store.secret_key.encode())
        configuration = f"""
[store]
url = "s3://{self.bucket}/bench"
endpoint_url = "{self.store.endpoint}"
region = "us-east-1"
access_key_id = "{self.store.access_key}"
secret_access_key = {{ file = "s3-secret" }}

[encryption]
recipients = ["operations.pub.asc", "escrow.pub.asc"]
signing_key = {{ file = "signing.sec.asc" }}

[audit]
url = "sqlite:///{self.directory}/audit.db"

[sources.bench]
dsn = "postgresql://postgres@127.0.0.1:{self.server.port}/bench"
password = {{ file = "password" }}

[drill]
secret_key = {{ file = "operations.sec.asc" }}
"""
        bare = configuration.replace("[drill]", 'expectations = "off"\nglobals = false\n\n[drill]')
        _private(self.directory / "backupd.toml", configuration.encode())
        _private(self.directory / "bare.toml", bare.encode())
        self.gnupg.mkdir(mode=0o700)
        gpg = ["gpg", "--homedir", str(self.gnupg), "--batch", "--quiet", "--import"]
        for data in (self.operations.public, self.operations.secret.reveal(), escrow.public):
            subprocess.run(gpg, input=data, check=True)
        self.environment = {
            **os.environ,
            "PGPASSWORD": self._password(),
            "AWS_ACCESS_KEY_ID": self.store.access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _password(self) -> str:
        return self.server.dsn().split(":", 2)[2].split("@", 1)[0]

    def _fill(self, gigabytes: float) -> None:
        """Text, numbers and bytes that do not compress, in the proportions of an application's database."""
        self.server.create_database("bench")
        million = int(gigabytes / 1.8 * 1_000_000)
        sentences = list(_sentences())
        for statement in (
            "CREATE TABLE sentences (id int PRIMARY KEY, said text NOT NULL)",
            f"INSERT INTO sentences SELECT * FROM unnest(ARRAY{list(range(len(sentences)))}, ARRAY{sentences})",
            "CREATE TABLE notes (id bigint PRIMARY KEY, at timestamptz, body text)",
            "INSERT INTO notes SELECT i, now() - i * interval '1 s', concat_ws(' ', a.said, b.said, c.said)"
            f" FROM generate_series(1, {4 * million}) i"
            + "".join(
                f" JOIN sentences {name} ON {name}.id = abs(hashint8extended(i, {seed}) % {len(sentences)})"
                for seed, name in enumerate("abc")
            ),
            "CREATE TABLE readings (id bigint PRIMARY KEY, device int, value numeric, quality real)",
            "INSERT INTO readings SELECT i, i % 997, (i::bigint * 7919 % 100003) / 7.0, i % 10"
            f" FROM generate_series(1, {4 * million}) i",
            "CREATE TABLE images (id int PRIMARY KEY, body bytea)",
            "ALTER TABLE images ALTER body SET STORAGE EXTERNAL",
            "INSERT INTO images SELECT i, (SELECT string_agg(sha256((i || ':' || j)::bytea), '' ORDER BY j)"
            f" FROM generate_series(1, 1000) j) FROM generate_series(1, {million * 240 // 32_000}) i",
            # VACUUM takes no row for visible to all whose commit, or another's near it, is not on the disk yet; and ANALYZE
            # commits as it goes, asynchronously as everything here. So it runs before, with a checkpoint between.
            "ANALYZE",
            "CHECKPOINT",
            "VACUUM",
            "CHECKPOINT",
        ):
            self.server.execute(statement, database="bench")
        [(self.database_bytes, self.version)] = self.server.execute(
            "SELECT pg_database_size('bench'), current_setting('server_version')", database="bench"
        )

    def _by_hand_once(self) -> None:
        """What the restores by hand read: a file, and the same as an object."""
        self._pipe("-Z zstd:1", f"gpg {self._gpg('--cipher-algo AES256 --compress-algo none')} > {self._file}")
        self._shell(f"{self._upload()} < {self._file}")

    @property
    def _file(self) -> Path:
        return self.directory / "by-hand.gpg"

    # ------------------------------------------------------------------------------------------------------- contestants

    def prepare(self) -> None:
        """Before each: an empty target, and nothing of the last contestant's writes still under way."""
        if self.scratch:
            self.server.drop_database(self.scratch)
        self.scratch = self.server.create_database()
        self.server.execute("CHECKPOINT", database="bench")
        os.sync()

    def backup(self) -> None:
        """backupd, whole: start of the interpreter, both artifacts, the manifest and two records."""
        self._backupd("backup", "bench")

    def backup_of_data_alone(self) -> None:
        """Without the figures that a restore is compared with, and without the roles: what is left is what the pipe does."""
        self._backupd("backup", "bench", configuration="bare.toml")

    def restore(self) -> None:
        """The same for a restore, with its comparison."""
        self._backupd("restore", "bench", "--to", f"postgresql://postgres@127.0.0.1:{self.server.port}/{self.scratch}")

    def help(self) -> None:
        """What a person waits for."""
        self._backupd("--help")

    def pipe_at_its_best(self) -> None:
        """What an expert writes."""
        self._pipe("-Z zstd:1", f"gpg {self._gpg('--cipher-algo AES256 --compress-algo none')} | {self._upload()}")

    def pipe_with_defaults(self) -> None:
        """What everyone writes."""
        self._pipe("", f"gpg {self._gpg('')} | {self._upload()}")

    def restore_by_hand(self) -> None:
        """From a file on the disk."""
        self._restore_from(f"cat {self._file}")

    def restore_from_store_by_hand(self) -> None:
        """From the object store, as backupd does."""
        self._restore_from(f"{self._s3()} s3://{self.bucket}/by-hand/1 -")

    def _restore_from(self, source: str) -> None:
        self._shell(
            f"{source} | gpg --homedir {self.gnupg} --batch --quiet -d"
            f" | {self.server.bin}/pg_restore --single-transaction -d {self._dbname(self.scratch)}"
        )

    def _backupd(self, *arguments: str, configuration: str = "backupd.toml") -> None:
        command = [sys.executable, "-m", "backupd", *arguments]
        if arguments[0] != "--help":
            command += ["-c", str(self.directory / configuration)]
        subprocess.run(command, env=self.environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def _pipe(self, options: str, rest: str) -> None:
        self._shell(f"{self.server.bin}/pg_dump -Fc {options} -d {self._dbname('bench')} | {rest}")

    def _shell(self, script: str) -> None:
        subprocess.run(["/bin/bash", "-euo", "pipefail", "-c", script], env=self.environment, check=True)

    def _dbname(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.server.port}/{name}"

    def _gpg(self, options: str) -> str:
        recipients = f"-f {self.directory}/operations.pub.asc -f {self.directory}/escrow.pub.asc"
        return f"--homedir {self.gnupg} --batch --quiet {options} {recipients} -e"

    def _upload(self) -> str:
        self.made += 1
        # Without a size `aws` does not know how large its parts must be.
        return f"{self._s3()} --expected-size {self.database_bytes} - s3://{self.bucket}/by-hand/{self.made}"

    def _s3(self) -> str:
        aws = shutil.which("aws")
        if aws is None:
            raise SystemExit("the pipes need the aws command: apt-get install awscli")
        return f"{aws} --endpoint-url {self.store.endpoint} s3 cp --only-show-errors"


def _sentences(count: int = 50_000, seed: int = 1) -> Iterator[str]:
    """Sentences of 6 to 18 words from a vocabulary of 4,000, the n-th of which is used in proportion to 1/n (Zipf's law).

    What a clinic writes is like that, and compresses like that; hex digits and repeated phrases do not.
    """
    chance = random.Random(seed)
    syllables = [c + v + e for c in "bcdfghlmnprstv" for v in "aeiou" for e in ("", "n", "r", "s")]
    words = ["".join(chance.choices(syllables, k=chance.choice((1, 2, 2, 3)))) for _ in range(4_000)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for _ in range(count):
        yield " ".join(chance.choices(words, cum_weights=weights, k=chance.randint(6, 18))) + "."


def _private(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)
