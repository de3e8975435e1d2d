"""What botocore raises, told as the stores' errors: one line, a hint, and whether another try may help."""

from __future__ import annotations

from botocore import exceptions as sdk

from backupd.errors import (
    BackupdError,
    ConfigError,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

_RIGHTS = "see the policy of this identity: it needs to list, read, put and abort uploads here, never to delete"
_KEYS = "see the access key, its secret and the region of this store"
_SESSION = "the session's credentials have ended: renew them, or use a role that renews itself"
_REACH = "is endpoint_url right, is the server up, is the network open?"
_CLOCK = "set the clock of this machine (NTP): the server refuses requests that are off by minutes"
_SUMS = 'if this is no AWS server, set checksum = "when_required" for the store'

_DENIED = {
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "AccountProblem": "ask the provider about the state of the account",
    "403": _RIGHTS,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AuthorizationHeaderMalformed": _KEYS,
    "401": _KEYS,
    "ExpiredToken": _SESSION,
    "ExpiredTokenException": _SESSION,
    "InvalidToken": _SESSION,
    "TokenRefreshRequired": _SESSION,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
}
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchVersion"}
_TAKEN = {"PreconditionFailed", "412"}
_FULL = {"QuotaExceeded", "InsufficientCapacity", "InsufficientStorage", "XMinioStorageFull", "NotEnoughSpace", "507"}
# Damage on the way is worth another try: the server has kept nothing of it.
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"}
_BUSY = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException"} | {
    "TooManyRequests",
    "OperationAborted",
    "ConditionalRequestConflict",
    "RequestTimeoutException",
}
_NEVER_BY_RETRY = {501, 505, 507}


def translate(error: Exception, what: str, where: str) -> BackupdError:
    """The store's error for one of botocore's; `what` is what was tried (`write a/b`), `where` the store's url or endpoint."""
    if isinstance(error, sdk.ClientError):
        return _answered(error, what, where)
    if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError | sdk.CredentialRetrievalError):
        return StoreDenied(f"no credentials to {what} in {where}", "give keys or a profile, or run under a role")
    if isinstance(error, sdk.TokenRetrievalError | sdk.UnauthorizedSSOTokenError | sdk.SSOTokenLoadError):
        return StoreDenied(f"no valid login to {what} in {where}", "log in again (aws sso login)")
    if isinstance(error, sdk.ProfileNotFound | sdk.ConfigParseError | sdk.ConfigNotFound):
        return ConfigError(_line(error), "see the AWS configuration file of the user that runs this")
    if isinstance(error, sdk.NoRegionError | sdk.InvalidRegionError | sdk.InvalidConfigError):
        return ConfigError(_line(error), "set a region for the store")
    if isinstance(error, sdk.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        hint = "trust the authority that issued it (AWS_CA_BUNDLE), or correct endpoint_url"
        return StoreError(f"{where} shows a certificate that is not trusted", hint)
    if isinstance(error, sdk.EndpointConnectionError | sdk.ConnectTimeoutError | sdk.ProxyConnectionError | sdk.SSLError):
        return StoreUnavailable(f"{where} cannot be reached to {what}", _REACH)
    if isinstance(error, sdk.ParamValidationError):
        return StoreError(f"cannot {what} in {where}: {_line(error)}")
    # Cut connections, stalls, short bodies, answers that are no XML: all of them the network's or the server's bad day.
    said = f"the connection to {where} failed while trying to {what}: {_line(error)}"
    return StoreUnavailable(said, "is the network in order?")


def _answered(error: sdk.ClientError, what: str, where: str) -> BackupdError:
    code = error.response.get("Error", {}).get("Code", "")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{where} did not {what}: {code} {_short(error.response.get('Error', {}).get('Message', ''))}".rstrip()
    if code in _MISSING:
        return ObjectMissing(f"there is nothing to {what} in {where}")
    if code in _TAKEN or status == 412:
        return ObjectExists(f"cannot {what} in {where}: the name is taken, and objects are never replaced")
    if code == "NoSuchBucket":
        return StoreError(f"there is no bucket for {where}", "make the bucket, or correct the store's url")
    if code in ("PermanentRedirect", "IllegalLocationConstraintException") or status == 301:
        return StoreError(f"the bucket of {where} is in another region", "set the region for the store")
    if code in _DENIED:
        return StoreDenied(said, _DENIED[code])
    if code in _FULL or status == 507:
        return StoreFull(said, "make room, or raise the quota")
    if code in _DAMAGED:
        return StoreUnavailable(said, "bytes changed on the way: is something between here and the server at fault?")
    if code in _BUSY or status == 429 or (status >= 500 and status not in _NEVER_BY_RETRY):
        return StoreUnavailable(said, "the server has trouble: try again later")
    if "ObjectLock" in code or "Object Lock" in said:
        return StoreError(said, "the bucket must have Object Lock enabled, or remove `lock` from the store")
    if status == 403:
        return StoreDenied(said, _RIGHTS)
    if status == 501 or "checksum" in said.lower() or "trailer" in said.lower():
        return StoreError(said, _SUMS)
    return StoreError(said or f"{where} did not {what}", "the server's own words say why")


def _line(error: Exception) -> str:
    return _short(str(error))


def _short(text: str) -> str:
    """One printable line of what somebody else wrote."""
    line = " ".join(text.split())
    return "".join(c for c in line if c.isprintable())[:300]
