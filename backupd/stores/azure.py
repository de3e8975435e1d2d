"""Objects as block blobs in a container of Azure Blob Storage. The only file that knows azure-storage-blob's calls.

Parts are uncommitted blocks; committing their list makes the blob, create-only (`If-None-Match: *`). The ids of an upload's
blocks begin with its token, and the blob's metadata holds it: so uploads of one name never mix, and a commit whose answer was
lost is told from somebody else's blob. Nothing is ever deleted that was ever a committed object.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from backupd.errors import ConfigError, ExtraMissing, ObjectExists, ObjectMissing, StoreDenied, StoreError, StoreUnavailable
from backupd.stores import Limits, StoredObject, check_name
from backupd.stores.access import AzureLogin, Lock
from backupd.stores.body import Body
from backupd.stores.retries import Calls, Patience

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobProperties, ContainerClient

log = logging.getLogger(__name__)

_LIMITS = Limits(parts=50_000, smallest=1, largest=4000 * 2**20)  # "Scalability targets for Blob storage"
_TOKEN = "backupdupload"  # noqa: S105  a metadata name (letters only, by Azure's rule); what it holds is no secret
_DISCARDED = "backupddiscarded"


def open_azure(
    container: str, prefix: str, endpoint_url: str | None, login: AzureLogin | None, lock: Lock | None, patience: Patience
) -> AzureStore:
    """A store in `container`, below `prefix` (no slash at its ends). Raises ConfigError; asks the server nothing."""
    try:
        from azure.core.exceptions import AzureError
        from azure.storage.blob import ContainerClient
    except ImportError as error:
        raise ExtraMissing("an azure:// store needs azure-storage-blob", "azure") from error
    from backupd.stores.azure_errors import translate

    url = f"azure://{container}/{prefix}".rstrip("/")
    options: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": patience.connect_timeout_s,
        "read_timeout": patience.read_timeout_s,
        "connection_data_block_size": 2**20,
        # One request per read: parts are the unit of everything here, and splitting them again gains nothing.
        "max_single_get_size": _LIMITS.largest,
        "max_single_put_size": 256 * 2**20,
    }
    given = [way for way in (login.connection_string, login.sas_token, login.account_key) if way] if login else []
    if login is not None and len(given) != 1:
        raise ConfigError(f"{url} needs exactly one of connection string, SAS token and account key", f"{len(given)} are given")
    try:
        if login is not None and login.connection_string is not None:
            _refuse_two_endpoints(endpoint_url)
            client = ContainerClient.from_connection_string(login.connection_string.text(), container, **options)
        else:
            if endpoint_url is None:
                raise ConfigError(f"{url} names no storage account", "set endpoint_url = https://ACCOUNT.blob.core.windows.net")
            if login is None and not endpoint_url.startswith("https://"):
                raise ConfigError(f"the login to {url} is not sent without TLS", "write endpoint_url with https://")
            client = ContainerClient(endpoint_url, container, credential=given[0].text() if given else _identity(), **options)
    except (ValueError, AzureError) as error:
        # Without the SDK's words: they may quote a connection string.
        raise ConfigError(f"cannot use {url}", "see endpoint_url and the form of the credential") from error
    return AzureStore(client, Calls(url, patience, (AzureError,), translate), prefix + "/" if prefix else "", lock)


def _refuse_two_endpoints(endpoint_url: str | None) -> None:
    if endpoint_url is not None:
        raise ConfigError(
            "a connection string names its own endpoint", "remove endpoint_url, or use a SAS token or account key"
        )


def _identity() -> Any:
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise ExtraMissing("this azure:// store needs azure-identity", "azure") from error
    return DefaultAzureCredential()


class AzureStore:
    """A store in a container; `open_azure` makes it."""

    def __init__(self, container: ContainerClient, calls: Calls, prefix: str, lock: Lock | None) -> None:
        self._container = container
        self._calls = calls
        self._prefix = prefix
        self._lock = lock

    @property
    def url(self) -> str:
        return self._calls.url

    @property
    def limits(self) -> Limits:
        return _LIMITS

    def begin(self, name: str) -> AzureUpload:
        blob = self._blob(name)
        self.refuse_taken(name)
        return AzureUpload(self, blob, name)

    def create(self, name: str, data: bytes) -> None:
        blob = self._blob(name)
        token = secrets.token_hex(8)
        try:
            self._calls(
                f"write {name}",
                lambda: blob.upload_blob(
                    data, overwrite=False, validate_content=True, metadata={_TOKEN: token}, **self._locked()
                ),
            )
        except ObjectExists:
            if not self.is_ours(name, token):
                raise
        self.confirm(name, token, len(data))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        blob = self._blob(name)
        if length == 0:
            self._properties(name)  # there is no range of no bytes, and a missing object must be told
            return b""
        try:
            return self._calls(f"read {name}", lambda: blob.download_blob(start, length).readall())
        except StoreError as error:
            if _code(error) == "InvalidRange":  # begins after the object's end
                return b""
            raise

    def sweep(self, prefix: str) -> list[str]:
        under = self._prefix + (prefix.rstrip("/") + "/" if prefix else "")
        # In this order: what is committed between the two listings is no candidate.
        unfinished = {blob.name for blob in self._listing(under, ["uncommittedblobs", "metadata"])}
        committed = {blob.name for blob in self._listing(under, ["metadata"]) if not _is_discarded(blob)}
        swept = []
        for key in sorted(unfinished - committed):
            name = key.removeprefix(self._prefix)
            if self.discard(name):
                swept.append(name)
        return swept

    # What an upload needs of its store.

    def send_block(self, blob: BlobClient, name: str, block: str, number: int, data: memoryview) -> None:
        # Azure checks MD5 or CRC64, not SHA-256. MD5 costs 1.5 s of one core per GB, outside the GIL, and finds damage between
        # the end of TLS and the disk.
        self._calls(
            f"write part {number} of {name}",
            lambda: blob.stage_block(block, Body(data), length=len(data), validate_content=True),
        )

    def uncommitted(self, blob: BlobClient, name: str) -> dict[str, int]:
        """Id and size of each block that waits under this name, as the service tells them."""
        try:
            _, blocks = self._calls(f"list the blocks of {name}", lambda: blob.get_block_list("uncommitted"))
        except ObjectMissing:
            return {}
        return {block.id: block.size for block in blocks}

    def commit_blocks(self, blob: BlobClient, name: str, token: str, blocks: Sequence[str]) -> None:
        from azure.core import MatchConditions
        from azure.storage.blob import BlobBlock

        try:
            self._calls(
                f"complete {name}",
                lambda: blob.commit_block_list(
                    [BlobBlock(block) for block in blocks],
                    match_condition=MatchConditions.IfMissing,
                    metadata={_TOKEN: token},
                    **self._locked(),
                ),
            )
        except StoreUnavailable:
            raise
        except StoreError:
            # After a lost answer the name is taken, by us; after another's commit our blocks are gone.
            if not self.is_ours(name, token):
                self.refuse_taken(name)
                raise

    def confirm(self, name: str, token: str, size: int) -> None:
        """Raise StoreError unless the object is ours and of this size."""
        found = self._properties(name)
        if found.metadata.get(_TOKEN) != token:
            raise ObjectExists(f"{name} in {self.url} was written by another run at the same time")
        if found.size != size:
            raise StoreError(f"{self.url} holds {found.size} bytes of {name}, {size} were sent", "do not trust this object")

    def is_ours(self, name: str, token: str) -> bool:
        try:
            return bool(self._properties(name).metadata.get(_TOKEN) == token)
        except ObjectMissing:
            return False

    def refuse_taken(self, name: str) -> None:
        try:
            self._properties(name)
        except ObjectMissing:
            return
        raise ObjectExists(f"{name} exists already in {self.url}, and objects are never replaced")

    def discard(self, name: str) -> bool:
        """Drop the uncommitted blocks of `name`; False when that has to be left to the service, which drops them after a week.

        The service has no call for it. Blocks go when an empty list is committed; that makes an empty blob, which is then
        deleted. Both are conditional: the first on there being no blob, the second on the blob being that very one. It is
        not done where the deletion may be refused, since an empty blob would stay: without the right to delete, which a
        harmless deletion finds out, and in a store with a lock.
        """
        from azure.core import MatchConditions

        blob = self._blob(name)
        if self._lock is not None or not self._may_delete(blob, name):
            return False
        token = secrets.token_hex(8)
        mark = {_TOKEN: token, _DISCARDED: "yes"}
        # It exists: by a request whose answer was lost, by a run that died here, or as an object. The metadata says which.
        with contextlib.suppress(ObjectExists):
            self._calls(
                f"drop the blocks of {name}",
                lambda: blob.commit_block_list([], match_condition=MatchConditions.IfMissing, metadata=mark),
            )
        try:
            found = self._properties(name)
            if found.size != 0 or _DISCARDED not in found.metadata:
                return False
            self._calls(
                f"drop the blocks of {name}",
                lambda: blob.delete_blob(etag=found.etag, match_condition=MatchConditions.IfNotModified),
            )
        except ObjectMissing:
            pass  # gone: deleted by a request whose answer was lost
        return True

    def _may_delete(self, blob: BlobClient, name: str) -> bool:
        from azure.core import MatchConditions

        try:
            # No blob has this ETag, so nothing can be deleted; a lacking right is still told before the condition is.
            self._calls(
                f"see whether {name} may be dropped",
                lambda: blob.delete_blob(etag='"0x0"', match_condition=MatchConditions.IfNotModified),
            )
        except (ObjectMissing, ObjectExists):
            return True
        except StoreDenied:
            return False
        return True

    def _blob(self, name: str) -> BlobClient:
        return self._container.get_blob_client(self._prefix + check_name(name))

    def _properties(self, name: str) -> BlobProperties:
        return self._calls(f"find {name}", lambda: self._blob(name).get_blob_properties())

    def _locked(self) -> dict[str, Any]:
        if self._lock is None:
            return {}
        from azure.storage.blob import ImmutabilityPolicy

        mode = {"governance": "Unlocked", "compliance": "Locked"}[self._lock.mode]
        return {"immutability_policy": ImmutabilityPolicy(expiry_time=self._lock.until(), policy_mode=mode)}

    def _listing(self, prefix: str, include: Any) -> Iterator[BlobProperties]:
        """All blobs, a page at a time, each page retried alone."""
        marker: str | None = None
        while True:

            def page() -> tuple[Any, str | None]:
                found = self._container.list_blobs(name_starts_with=prefix, include=include)
                pages: Any = found.by_page(marker)  # noqa: B023  called at once
                blobs = [*next(pages, ())]
                return blobs, pages.continuation_token

            blobs, marker = self._calls("list", page)
            yield from blobs
            if not marker:
                return

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        include = ["metadata", "immutabilitypolicy"] if self._lock else ["metadata"]
        found = {}
        for blob in self._listing(self._prefix + prefix, include):
            name = blob.name.removeprefix(self._prefix)
            if _is_name(name) and not _is_discarded(blob):
                until = blob.immutability_policy.expiry_time if self._lock and blob.immutability_policy else None
                found[name] = StoredObject(name, blob.size, blob.last_modified, until)
        for name in sorted(found):  # the service promises an order, but not which for characters beyond ASCII
            yield found[name]


class AzureUpload:
    """Blocks that wait under a name until their list is committed."""

    def __init__(self, store: AzureStore, blob: BlobClient, name: str) -> None:
        self._store = store
        self._blob = blob
        self._name = name
        self._token = secrets.token_hex(8)
        self._done = False

    def part(self, number: int, data: bytes | bytearray | memoryview, sha256: bytes) -> None:
        self._store.send_block(self._blob, self._name, self._block(number), number, memoryview(data).cast("B"))

    def commit(self, parts: int, size: int) -> None:
        try:
            blocks = [self._block(number) for number in range(1, parts + 1)]
            waiting = self._store.uncommitted(self._blob, self._name)
            ours = {block: length for block, length in waiting.items() if block.startswith(self._token)}
            if set(ours) != set(blocks) or sum(ours.values()) != size:
                self._store.refuse_taken(self._name)  # another upload's commit throws away the blocks of all others
                arrived = f"{len(ours)} parts with {sum(ours.values())} bytes arrived"
                raise StoreError(f"{self._name}: {arrived}, {parts} with {size} were sent", "this run is lost, start another")
            self._store.commit_blocks(self._blob, self._name, self._token, blocks)
        except Exception:  # of an interruption the caller knows, and aborts
            self.abort()
            raise
        self._done = True
        self._store.confirm(self._name, self._token, size)

    def abort(self) -> None:
        if self._done:
            return
        self._done = True
        try:
            waiting = self._store.uncommitted(self._blob, self._name)
            if waiting and all(block.startswith(self._token) for block in waiting):
                self._store.discard(self._name)
        except StoreError as error:
            log.warning("unfinished blocks of %s stay in %s until the next sweep: %s", self._name, self._store.url, error)

    def _block(self, number: int) -> str:
        return f"{self._token}-{number:05d}"  # all ids of a blob must be of one length


def _code(error: Exception) -> str:
    from backupd.stores.azure_errors import code

    return code(error.__cause__)


def _is_discarded(blob: BlobProperties) -> bool:
    """An empty blob that exists only for the moment in which blocks are being dropped."""
    return blob.size == 0 and _DISCARDED in (blob.metadata or {})


def _is_name(name: str) -> bool:
    """False for what others put below our prefix and no name of ours can mean, such as the markers of directories."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True
