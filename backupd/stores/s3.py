"""Objects in an S3 bucket, AWS's or a compatible server's. The only file that knows boto3's calls.

Every write carries a digest that the server checks, is create-only (`If-None-Match: *`), and carries a token in its metadata.
When an answer is lost after the server did the work, the next try meets "already exists"; the token tells our own object from
somebody else's. Nothing is ever deleted but unfinished uploads.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from backupd.errors import ConfigError, ExtraMissing, ObjectExists, ObjectMissing, StoreError, StoreUnavailable
from backupd.stores import Limits, StoredObject, check_name
from backupd.stores.access import Checksum, Lock, S3Access
from backupd.stores.body import Body
from backupd.stores.retries import Calls, Patience

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

log = logging.getLogger(__name__)

_LIMITS = Limits(parts=10_000, smallest=5 * 2**20, largest=5 * 2**30)  # the S3 User Guide, "multipart upload limits"
_TOKEN = "backupd-upload"  # noqa: S105  the name of a metadata entry; what it holds is no secret


def open_s3(bucket: str, prefix: str, access: S3Access, lock: Lock | None, patience: Patience) -> S3Store:
    """A store in `bucket`, below `prefix` (no slash at its ends). Raises ConfigError; asks the server nothing."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise ExtraMissing("an s3:// store needs boto3", "s3") from error
    from backupd.stores.s3_errors import translate

    keys = access.keys
    credentials: dict[str, Any] = {}
    if keys is not None:
        credentials["aws_access_key_id"] = keys.access_key_id
        credentials["aws_secret_access_key"] = keys.secret_access_key.text()
        if keys.session_token is not None:
            credentials["aws_session_token"] = keys.session_token.text()
    config = Config(
        connect_timeout=patience.connect_timeout_s,
        read_timeout=patience.read_timeout_s,
        tcp_keepalive=True,
        max_pool_connections=32,
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation=access.checksum,
        response_checksum_validation=access.checksum,
        # Each bulk request already carries a digest in a signed header, so signing the payload would hash every byte twice.
        s3={"addressing_style": "path" if access.endpoint_url else "auto", "payload_signing_enabled": False},
    )
    try:
        session = boto3.session.Session(profile_name=access.profile, region_name=access.region, **credentials)
        # A compatible server has no regions, but a signature must name one.
        region = access.region or session.region_name or ("us-east-1" if access.endpoint_url else None)
        client = session.client("s3", endpoint_url=access.endpoint_url, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"cannot use s3://{bucket}: {error}", "see profile, region and endpoint_url of the store") from error
    calls = Calls(f"s3://{bucket}/{prefix}".rstrip("/"), patience, (BotoCoreError, ClientError), translate)
    return S3Store(client, calls, bucket, prefix + "/" if prefix else "", access.checksum, lock)


class S3Store:
    """A store in a bucket; `open_s3` makes it."""

    def __init__(self, client: S3Client, calls: Calls, bucket: str, prefix: str, checksum: Checksum, lock: Lock | None) -> None:
        self._client = client
        self._calls = calls
        self._bucket = bucket
        self._prefix = prefix
        self._checksum = checksum
        self._lock = lock

    @property
    def url(self) -> str:
        return self._calls.url

    @property
    def limits(self) -> Limits:
        return _LIMITS

    def begin(self, name: str) -> S3Upload:
        key = self._key(name)
        self._refuse_taken(name)
        token = secrets.token_hex(16)
        extra: dict[str, Any] = self._locked() | ({"ChecksumAlgorithm": "SHA256"} if self._checksum == "when_supported" else {})
        try:
            answer = self._calls(
                f"begin {name}",
                lambda: self._client.create_multipart_upload(Bucket=self._bucket, Key=key, Metadata={_TOKEN: token}, **extra),
            )
        except StoreError as error:
            self._explain_lock(error)
            raise
        return S3Upload(self, name, answer["UploadId"], token)

    def create(self, name: str, data: bytes) -> None:
        key = self._key(name)
        self._refuse_taken(name)
        token = secrets.token_hex(16)
        extra: dict[str, Any] = self._locked() | self.digest(data, hashlib.sha256(data).digest())

        def put() -> None:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={_TOKEN: token}, **extra)

        try:
            self._calls(f"write {name}", put)
        except ObjectExists:
            if not self.is_ours(name, token):
                raise
        except StoreError as error:
            self._explain_lock(error)
            raise
        self.confirm(name, token, len(data))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        key = self._key(name)
        if length == 0:
            self._head(name)  # S3 has no way to ask for no bytes, and a missing object must be told
            return b""
        whole = start == 0 and length is None
        end = "" if length is None else str(start + length - 1)
        extra: dict[str, Any] = {} if whole else {"Range": f"bytes={start}-{end}"}

        def get() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=key, **extra)
            if not whole and not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise StoreError(f"{self.url} gave other bytes of {name} than were asked for", "is a cache in between?")
            data = answer["Body"].read()
            if len(data) != answer["ContentLength"]:
                raise StoreUnavailable(f"{self.url} gave {len(data)} of {answer['ContentLength']} bytes of {name}")
            return data

        try:
            return self._calls(f"read {name}", get)
        except StoreError as error:
            if _code(error) == "InvalidRange":  # begins after the object's end
                return b""
            raise

    def sweep(self, prefix: str) -> list[str]:
        under = self._prefix + (prefix.rstrip("/") + "/" if prefix else "")
        dead = [(key, upload) for key, upload in self._unfinished(under) if key.startswith(under)]
        for key, upload in dead:
            self.drop(key, upload)
        return sorted(key.removeprefix(self._prefix) for key, _ in dead)

    # What an upload needs of its store.

    def digest(self, data: bytes | bytearray | memoryview, sha256: bytes) -> dict[str, str]:
        """The arguments that make the server check what it got. Servers without SHA-256 checksums all know Content-MD5."""
        if self._checksum == "when_supported":
            return {"ChecksumSHA256": base64.b64encode(sha256).decode()}
        return {"ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}

    def send_part(self, name: str, upload: str, number: int, data: memoryview, sha256: bytes) -> CompletedPartTypeDef:
        extra: dict[str, Any] = self.digest(data, sha256)
        place: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(name), "UploadId": upload, "PartNumber": number}

        def send() -> CompletedPartTypeDef:
            answer = self._client.upload_part(**place, **extra, Body=cast(IO[bytes], Body(data)))
            done: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
            if "ChecksumSHA256" in extra:
                if answer.get("ChecksumSHA256", extra["ChecksumSHA256"]) != extra["ChecksumSHA256"]:
                    raise StoreUnavailable(f"{self.url} has other bytes of part {number} of {name} than were sent")
                done["ChecksumSHA256"] = extra["ChecksumSHA256"]
            return done

        return self._calls(f"write part {number} of {name}", send)

    def complete(self, name: str, upload: str, token: str, parts: Sequence[CompletedPartTypeDef]) -> None:
        key = self._key(name)

        def complete() -> None:
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )

        self._refuse_taken(name)  # for servers that do not know If-None-Match here
        try:
            self._calls(f"complete {name}", complete)
        except StoreUnavailable:
            raise
        except StoreError as error:
            # After a lost answer the upload is gone and the name is taken, by us: servers say either.
            if not self.is_ours(name, token):
                if _code(error) == "NoSuchUpload":
                    hint = "another run swept it, or a lifecycle rule of the bucket aborts uploads too soon"
                    raise StoreError(f"the upload of {name} is gone from {self.url}", hint) from error
                raise

    def confirm(self, name: str, token: str, size: int) -> None:
        """Raise StoreError unless the object is ours and of this size: some servers take a condition and ignore it."""
        head = self._head(name)
        if head.get("Metadata", {}).get(_TOKEN) != token:
            raise ObjectExists(f"{name} in {self.url} was written by another run at the same time")
        if head["ContentLength"] != size:
            raise StoreError(
                f"{self.url} holds {head['ContentLength']} bytes of {name}, {size} were sent", "do not trust this object"
            )

    def is_ours(self, name: str, token: str) -> bool:
        try:
            return bool(self._head(name).get("Metadata", {}).get(_TOKEN) == token)
        except ObjectMissing:
            return False

    def drop(self, key: str, upload: str) -> None:
        try:
            self._calls(
                f"abort the upload of {key}",
                lambda: self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload),
            )
        except StoreError as error:
            if _code(error) != "NoSuchUpload" and not isinstance(error, ObjectMissing):
                raise

    def drop_quietly(self, name: str, upload: str) -> None:
        try:
            self.drop(self._key(name), upload)
        except StoreError as error:
            log.warning("an unfinished upload of %s stays in %s until the next sweep: %s", name, self.url, error)

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _head(self, name: str) -> Any:
        return self._calls(f"find {name}", lambda: self._client.head_object(Bucket=self._bucket, Key=self._key(name)))

    def _refuse_taken(self, name: str) -> None:
        try:
            self._head(name)
        except ObjectMissing:
            return
        raise ObjectExists(f"{name} exists already in {self.url}, and objects are never replaced")

    def _explain_lock(self, error: StoreError) -> None:
        """With a lock, servers say no more than `InvalidRequest` when the bucket cannot lock: raise what that means."""
        if self._lock is not None and _code(error) == "InvalidRequest":
            hint = "the bucket must be made with Object Lock enabled; or remove `lock` from the store"
            raise StoreError(f"{error.message} (written with a lock)", hint) from error

    def _locked(self) -> dict[str, Any]:
        if self._lock is None:
            return {}
        return {"ObjectLockMode": self._lock.mode.upper(), "ObjectLockRetainUntilDate": self._lock.until()}

    def _with_lock(self, entry: StoredObject) -> StoredObject:
        until = self._head(entry.name).get("ObjectLockRetainUntilDate")
        return StoredObject(entry.name, entry.size, entry.modified_at, until)

    def _unfinished(self, under: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        extra: dict[str, Any] = {}
        while True:
            page = self._calls(
                "list unfinished uploads",
                lambda: self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=under, **extra),  # noqa: B023  called at once
            )
            found += [(upload["Key"], upload["UploadId"]) for upload in page.get("Uploads", ())]
            if not page.get("IsTruncated"):
                return found
            extra = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        found: dict[str, StoredObject] = {}
        extra: dict[str, Any] = {}
        while True:
            page = self._calls(
                f"list {prefix}".rstrip(),
                lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + prefix, **extra),  # noqa: B023  called at once
            )
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                if _is_name(name):
                    found[name] = StoredObject(name, entry["Size"], entry["LastModified"])
            if not page.get("IsTruncated"):
                break
            extra = {"ContinuationToken": page["NextContinuationToken"]}
        # Not every compatible server sorts by code points (those that keep directories do not), nor gives each key once.
        for name in sorted(found):
            entry_ = found[name]
            yield self._with_lock(entry_) if self._lock else entry_


class S3Upload:
    """A multipart upload."""

    def __init__(self, store: S3Store, name: str, upload: str, token: str) -> None:
        self._store = store
        self._name = name
        self._upload = upload
        self._token = token
        self._done = False
        self._parts: dict[int, tuple[CompletedPartTypeDef, int]] = {}
        self._guard = threading.Lock()

    def part(self, number: int, data: bytes | bytearray | memoryview, sha256: bytes) -> None:
        view = memoryview(data).cast("B")
        sent = self._store.send_part(self._name, self._upload, number, view, sha256)
        with self._guard:
            self._parts[number] = (sent, len(view))

    def commit(self, parts: int, size: int) -> None:
        try:
            self._store.complete(self._name, self._upload, self._token, self._ordered(parts, size))
        except Exception:  # of an interruption the caller knows, and aborts
            self.abort()
            raise
        self._done = True
        self._store.confirm(self._name, self._token, size)

    def abort(self) -> None:
        if not self._done:
            self._done = True
            self._store.drop_quietly(self._name, self._upload)

    def _ordered(self, parts: int, size: int) -> list[CompletedPartTypeDef]:
        # The server has checked the digest of every part that is counted here, so their sum is what arrived.
        arrived = sum(length for _, length in self._parts.values())
        if arrived != size or set(self._parts) != set(range(1, parts + 1)):
            raise StoreError(
                f"{self._name}: {len(self._parts)} parts with {arrived} bytes arrived, {parts} with {size} were sent",
                "this run is lost, start another",
            )
        return [self._parts[number][0] for number in range(1, parts + 1)]


def _code(error: Exception) -> str:
    """The server's own code behind a translated error."""
    response = getattr(error.__cause__, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _is_name(name: str) -> bool:
    """False for what others put below our prefix and no name of ours can mean, such as the `directory/` markers of consoles."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True
