"""What the Azure SDK raises, told as the stores' errors: one line, a hint, and whether another try may help."""

from __future__ import annotations

from azure.core import exceptions as sdk

from backupd.errors import BackupdError, ObjectExists, ObjectMissing, StoreDenied, StoreError, StoreFull, StoreUnavailable

_RIGHTS = "this identity needs to list, read, create and write blobs here (Storage Blob Data Contributor, or a SAS with racwl)"
_KEYS = "see the account key, or the SAS token's dates and rights; the clock of this machine must be right too"
_REACH = "is endpoint_url right, is the server up, is the network open?"
_CLOCK = "set the clock of this machine (NTP): the server refuses requests that are off by minutes"

_TAKEN = {"BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite", "BlobImmutableDueToPolicy"}
_FULL = {"InsufficientStorage", "AccountQuotaExceeded"}
# The server has kept nothing of a block whose digest was wrong.
_AGAIN = {"Md5Mismatch", "Crc64Mismatch", "ServerBusy", "InternalError", "OperationTimedOut", "IncompleteBody"}


def translate(error: Exception, what: str, where: str) -> BackupdError:
    """The store's error for one of the SDK's; `what` is what was tried (`write a/b`), `where` the store's url."""
    if isinstance(error, sdk.HttpResponseError) and error.status_code is not None:
        return _answered(error, what, where)
    if isinstance(error, sdk.ClientAuthenticationError):
        hint = "log in, give the machine an identity, or configure a connection string"
        return StoreDenied(f"no credentials to {what} in {where}: {_short(str(error))}", hint)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        hint = "trust the authority that issued it (REQUESTS_CA_BUNDLE), or correct endpoint_url"
        return StoreError(f"{where} shows a certificate that is not trusted", hint)
    if isinstance(error, sdk.ServiceRequestError):
        return StoreUnavailable(f"{where} cannot be reached to {what}", _REACH)
    # Cut connections, stalls, short or garbled bodies.
    said = f"the connection to {where} failed while trying to {what}: {_short(str(error))}"
    return StoreUnavailable(said, "is the network in order?")


def code(error: BaseException | None) -> str:
    """The service's own name of an error, `BlobNotFound`; empty when there is none."""
    named = getattr(error, "error_code", None)
    return str(getattr(named, "value", named) or "")


def _answered(error: sdk.HttpResponseError, what: str, where: str) -> BackupdError:
    name = code(error)
    status = error.status_code or 0
    said = f"{where} did not {what}: {name} {_short(error.message)}".rstrip()
    if "contentMD5 doesn't match" in error.message or name in _AGAIN or status in (408, 429):
        return StoreUnavailable(said, "try again later; if it stays, see what is between here and the server")
    if name in ("ContainerNotFound", "ContainerBeingDeleted", "ResourceNotFound"):
        return StoreError(f"there is no container for {where}", "make the container, or correct the store's url")
    if name in _TAKEN or status == 412:
        return ObjectExists(f"cannot {what} in {where}: the name is taken, and objects are never replaced")
    if status == 404:
        return ObjectMissing(f"there is nothing to {what} in {where}")
    if name in _FULL or status == 507:
        return StoreFull(said, "make room, or raise the quota of the account")
    if "date header" in error.message.lower() or "request date" in error.message.lower():
        return StoreDenied(said, _CLOCK)
    if status in (401, 403):
        return StoreDenied(said, _KEYS if "authenticat" in said.lower() else _RIGHTS)
    if status >= 500 and status != 501:
        return StoreUnavailable(said, "the server has trouble: try again later")
    return StoreError(said, "the service's own words say why")


def _short(text: str) -> str:
    """One printable line of what somebody else wrote."""
    line = (text.splitlines() or [""])[0]
    return "".join(c for c in " ".join(line.split()) if c.isprintable())[:300]
