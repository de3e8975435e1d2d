"""The fault proxy is invisible until told otherwise, and each fault is what its name says."""

import socket
import threading
from collections.abc import Iterator

import boto3
import pytest
from azure.core.exceptions import ServiceResponseError
from azure.storage.blob import BlobServiceClient
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError
from mypy_boto3_s3 import S3Client

from tests.parts.azure import AzureServer
from tests.parts.ports import claim_port, release_port
from tests.parts.proxy import FaultProxy, MakeProxy
from tests.parts.s3 import REGION, S3Server

BODY = bytes(range(256)) * 1024


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def proxy(s3_server: S3Server, make_proxy: MakeProxy) -> FaultProxy:
    return make_proxy("127.0.0.1", s3_server.port)


@pytest.fixture
def client(s3_server: S3Server, proxy: FaultProxy) -> Iterator[S3Client]:
    """Goes through the proxy and never tries twice, so that each fault shows as it is."""
    made = boto3.session.Session().client(
        "s3",
        endpoint_url=proxy.url,
        region_name=REGION,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, proxies={}),
    )
    yield made
    made.close()


def test_everything_passes_by_default(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert client.head_object(Bucket=bucket, Key="a")["ContentLength"] == len(BODY)
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == BODY
    client.delete_object(Bucket=bucket, Key="a")
    assert [request.method for request in proxy.requests()] == ["PUT", "HEAD", "GET", "DELETE"]
    assert proxy.count("PUT", f"/{bucket}/a") == 1
    assert proxy.bytes_up >= len(BODY)
    assert proxy.bytes_down >= len(BODY)


def test_clients_keep_their_connection(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    """One connection carries all of a client's requests."""
    for _ in range(5):
        client.put_object(Bucket=bucket, Key="a", Body=b"x")
    assert proxy.count("PUT") == 5
    assert proxy.connections == 1


def test_a_failed_request_never_reaches_the_server(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    proxy.fail_next(2, 503, method="PUT", path="/a")
    client.put_object(Bucket=bucket, Key="other", Body=BODY)
    for _ in range(2):
        with pytest.raises(ClientError) as failed:
            client.put_object(Bucket=bucket, Key="a", Body=BODY)
        assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["other"]
    client.put_object(Bucket=bucket, Key="a", Body=BODY)


def test_a_cut_request_never_reaches_the_server(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    proxy.cut_next(method="PUT")
    with pytest.raises(HTTPClientError):
        client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)


def test_a_lost_answer_was_a_done_request(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    proxy.lose_answer_next(method="PUT")
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == BODY


def test_a_cut_answer_ends_early(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=BODY)
    proxy.cut_answer_next(after=5000, method="GET")
    with pytest.raises(HTTPClientError):
        client.get_object(Bucket=bucket, Key="a")["Body"].read()
    assert proxy.bytes_down == 5000
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == BODY


def test_a_stalled_request_passes_when_released(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    proxy.stall_next(method="PUT")
    put = threading.Thread(target=client.put_object, kwargs={"Bucket": bucket, "Key": "a", "Body": BODY})
    put.start()
    proxy.wait_until_stalled()
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    proxy.release()
    put.join(60)
    assert not put.is_alive()
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == BODY


def test_close_drops_a_stalled_request(client: S3Client, proxy: FaultProxy, bucket: str) -> None:
    proxy.stall_next()
    outcome: list[BaseException] = []

    def put() -> None:
        try:
            client.put_object(Bucket=bucket, Key="a", Body=BODY)
        except HTTPClientError as error:
            outcome.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    proxy.wait_until_stalled()
    proxy.close()
    thread.join(60)
    assert len(outcome) == 1


def test_azure_passes_fails_and_loses_answers(azure_server: AzureServer, make_proxy: MakeProxy) -> None:
    proxy = make_proxy("127.0.0.1", azure_server.port)
    way = azure_server.connection_string_for(f"{proxy.url}/{azure_server.account}")
    with BlobServiceClient.from_connection_string(way, retry_total=0) as client:
        blob = client.get_blob_client(azure_server.new_container(), "a")
        blob.upload_blob(BODY)
        assert blob.download_blob().readall() == BODY
        proxy.lose_answer_next(method="PUT")
        with pytest.raises(ServiceResponseError):
            blob.upload_blob(b"lost", overwrite=True)
        assert blob.download_blob().readall() == b"lost"


class _Echo:
    """A server that answers one connection with what it received, as one chunked body."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.received = b""
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            while not self.received.endswith(b"0\r\n\r\n"):
                self.received += connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")

    def close(self) -> None:
        self.thread.join(60)
        self.listener.close()


def test_expect_and_chunks_pass_unchanged(make_proxy: MakeProxy) -> None:
    echo = _Echo()
    proxy = make_proxy("127.0.0.1", echo.port)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as client, client.makefile("rb") as answer:
        client.sendall(b"PUT /x?y=1 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answer.readline() == b"\r\n"
        client.sendall(b"3;ext=1\r\nabc\r\n0\r\n\r\n")
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        assert answer.readline() == b"Transfer-Encoding: chunked\r\n"
        assert answer.read(len(b"\r\n5\r\nhello\r\n0\r\n\r\n")) == b"\r\n5\r\nhello\r\n0\r\n\r\n"
    echo.close()
    assert echo.received == b"PUT /x?y=1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + (
        b"3;ext=1\r\nabc\r\n0\r\n\r\n"
    )


def test_a_failed_request_that_expects_is_answered_before_its_body(make_proxy: MakeProxy) -> None:
    proxy = make_proxy("127.0.0.1", 1)
    proxy.fail_next(status=507)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as client, client.makefile("rb") as answer:
        client.sendall(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        assert answer.readline().startswith(b"HTTP/1.1 507 ")


def test_a_server_that_is_not_there_ends_the_connection(make_proxy: MakeProxy) -> None:
    port = claim_port()
    proxy = make_proxy("127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(1) == b""
    release_port(port)
