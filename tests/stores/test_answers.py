"""What servers answer in trouble that test servers do not have: each becomes one line, a hint, and the right kind of error."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from backupd.errors import BackupdError, ObjectExists, StoreDenied, StoreError, StoreFull, StoreUnavailable
from backupd.redact import Secret
from backupd.stores import AzureLogin, Patience, S3Keys, Store, open_store
from tests.stores.contract import SMALL, Naps
from tests.stores.recorder import Answer, Recorder, untrusted_tls

KEYS = S3Keys("AKIDEXAMPLE", Secret("an-example-secret-key"))
TRIES = 3


def s3(url: str) -> Store:
    return open_store("s3://bucket/prefix", endpoint_url=url, keys=KEYS, patience=patient())


def azure(url: str) -> Store:
    key = base64.b64encode(b"an-example-account-key").decode()
    login = AzureLogin(account_key=Secret(key))
    return open_store("azure://container/prefix", endpoint_url=f"{url}/account", login=login, patience=patient())


def patient() -> Patience:
    return Patience(connect_timeout_s=30, read_timeout_s=30, tries=TRIES, sleep=Naps())


def s3_error(code: str, message: str = "Because of that.") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def assert_said_well(error: BackupdError, kind: type[BackupdError], hint: str) -> None:
    assert type(error) is kind
    assert error.hint is not None
    assert hint in error.hint
    for line in (error.message, error.hint):
        assert line.isprintable()
        assert "example-" not in line
    assert len(error.message) < 500


@pytest.mark.parametrize(
    ("status", "code", "kind", "hint", "tries"),
    [
        (403, "RequestTimeTooSkewed", StoreDenied, "clock", 1),
        (403, "AccessDenied", StoreDenied, "policy", 1),
        (403, "InvalidAccessKeyId", StoreDenied, "key", 1),
        (403, "SignatureDoesNotMatch", StoreDenied, "secret", 1),
        (400, "ExpiredToken", StoreDenied, "renew", 1),
        (400, "AuthorizationHeaderMalformed", StoreDenied, "region", 1),
        (404, "NoSuchBucket", StoreError, "bucket", 1),
        (301, "PermanentRedirect", StoreError, "region", 1),
        (507, "XMinioStorageFull", StoreFull, "room", 1),
        (403, "QuotaExceeded", StoreFull, "quota", 1),
        (412, "PreconditionFailed", ObjectExists, "", 1),
        (501, "NotImplemented", StoreError, "when_required", 1),
        (400, "InvalidRequest", StoreError, "server's own words", 1),
        (503, "SlowDown", StoreUnavailable, "later", TRIES),
        (409, "ConditionalRequestConflict", StoreUnavailable, "later", TRIES),
        (400, "BadDigest", StoreUnavailable, "bytes changed", TRIES),
        (400, "RequestTimeout", StoreUnavailable, "later", TRIES),
    ],
)
def test_an_s3_error_becomes_the_stores_own(status: int, code: str, kind: type[BackupdError], hint: str, tries: int) -> None:
    with Recorder({"PUT": Answer(status, s3_error(code, "two\nlines\tof it"))}) as server:
        with pytest.raises(BackupdError) as caught:
            s3(server.url).create("x", SMALL)
        assert sum(request.method == "PUT" for request in server.requests) == tries
    if kind is ObjectExists:
        assert type(caught.value) is ObjectExists
    else:
        assert_said_well(caught.value, kind, hint)


def test_a_listing_that_is_refused_is_told_without_a_gap() -> None:
    with Recorder({"GET": Answer(403, s3_error("AccessDenied"))}) as server:
        with pytest.raises(StoreDenied, match=r"prefix did not list: AccessDenied Because of that.$"):
            list(s3(server.url).list())
        with pytest.raises(StoreDenied, match=r"prefix did not list a/: AccessDenied Because of that.$"):
            list(s3(server.url).list("a/"))


def test_a_completion_that_fails_inside_a_good_answer_is_a_failure() -> None:
    """S3 answers CompleteMultipartUpload with 200 before it knows; the error comes in the body."""
    begun = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
    answers = {"POST": Answer(200, begun), "PUT": Answer(200, headers={"ETag": '"1"'}), "DELETE": Answer(204)}
    with Recorder(answers) as server:
        upload = s3(server.url).begin("x")
        upload.part(1, SMALL, hashlib.sha256(SMALL).digest())
        answers["POST"] = Answer(200, s3_error("InternalError"))
        with pytest.raises(StoreUnavailable) as caught:
            upload.commit(1, len(SMALL))
        assert_said_well(caught.value, StoreUnavailable, "later")
        assert [request.target for request in server.requests if request.method == "DELETE"] == ["/bucket/prefix/x?uploadId=1"]


def test_every_s3_write_carries_a_digest_and_is_create_only() -> None:
    with Recorder({"PUT": Answer(200)}) as server:
        with pytest.raises(StoreError):  # the recorder keeps nothing, and the store looks
            s3(server.url).create("x", SMALL)
        [put] = [request for request in server.requests if request.method == "PUT"]
    assert put.headers["if-none-match"] == "*"
    assert put.headers["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(SMALL).digest()).decode()
    assert "x-amz-checksum-sha256" in put.headers["authorization"]


def test_a_server_that_forgets_what_it_took_is_not_believed() -> None:
    """It answers 200 to the write and shows another size afterwards."""
    with Recorder({"PUT": Answer(200)}) as server, pytest.raises(StoreError, match="nothing to find"):
        s3(server.url).create("x", SMALL)


def test_other_bytes_than_were_asked_for_are_not_taken() -> None:
    """A cache that ignores Range answers with the whole object."""
    with Recorder({"GET": Answer(200, b"0123456789")}) as server:
        with pytest.raises(StoreError, match="other bytes"):
            s3(server.url).read("x", 3, 2)
        assert s3(server.url).read("x") == b"0123456789"


@pytest.mark.parametrize(
    ("status", "code", "kind", "hint", "tries"),
    [
        (403, "AuthenticationFailed", StoreDenied, "account key", 1),
        (403, "AuthorizationPermissionMismatch", StoreDenied, "identity needs", 1),
        (401, "NoAuthenticationInformation", StoreDenied, "account key", 1),
        (404, "ContainerNotFound", StoreError, "container", 1),
        (403, "UnauthorizedBlobOverwrite", ObjectExists, "", 1),
        (409, "BlobImmutableDueToPolicy", ObjectExists, "", 1),
        (400, "InvalidHeaderValue", StoreError, "own words", 1),
        (503, "ServerBusy", StoreUnavailable, "later", TRIES),
        (500, "OperationTimedOut", StoreUnavailable, "later", TRIES),
        (400, "Md5Mismatch", StoreUnavailable, "later", TRIES),
        (429, "TooManyRequests", StoreUnavailable, "later", TRIES),
    ],
)
def test_an_azure_error_becomes_the_stores_own(status: int, code: str, kind: type[BackupdError], hint: str, tries: int) -> None:
    with Recorder({"PUT": Answer(status, s3_error(code), {"x-ms-error-code": code})}) as server:
        with pytest.raises(BackupdError) as caught:
            azure(server.url).create("x", SMALL)
        assert sum(request.method == "PUT" for request in server.requests) == tries
    if kind is ObjectExists:
        assert type(caught.value) is ObjectExists
    else:
        assert_said_well(caught.value, kind, hint)


@pytest.mark.parametrize("open_at", [s3, azure])
def test_a_server_without_tls_where_tls_is_due_is_told(open_at: Callable[[str], Store]) -> None:
    with Recorder({}) as server, pytest.raises(StoreUnavailable) as caught:
        open_at(f"https://127.0.0.1:{server.port}").create("x", SMALL)
    assert_said_well(caught.value, StoreUnavailable, "endpoint_url")


@pytest.mark.parametrize("open_at", [s3, azure])
def test_a_certificate_that_nobody_trusts_is_told(open_at: Callable[[str], Store], tmp_path: Path) -> None:
    with Recorder({}, untrusted_tls(tmp_path)) as server, pytest.raises(StoreError) as caught:
        open_at(f"https://127.0.0.1:{server.port}").create("x", SMALL)
    assert_said_well(caught.value, StoreError, "trust")
    assert server.requests == []


@pytest.mark.parametrize("open_at", [s3, azure])
def test_an_answer_that_is_no_answer_of_such_a_server_is_told(open_at: Callable[[str], Store]) -> None:
    """A captive portal or a load balancer speaks HTML."""
    with Recorder({"GET": Answer(200, b"<html>please log in")}) as server, pytest.raises(BackupdError) as caught:
        list(open_at(server.url).list())
    assert caught.value.message.isprintable()
    assert caught.value.hint
