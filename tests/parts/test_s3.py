"""The S3 part does what other tests rely on."""

import datetime

import pytest
from botocore.exceptions import ClientError

from tests.parts.s3 import S3Server


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def test_an_object_comes_back(s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3_server.new_bucket()
    client.put_object(Bucket=bucket, Key="a/b", Body=b"bytes")
    assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"bytes"


def test_a_second_create_only_put_is_refused(s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3_server.new_bucket()
    client.put_object(Bucket=bucket, Key="once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=bucket, Key="once", Body=b"second", IfNoneMatch="*")
    assert _status(refused.value) == 412
    assert client.get_object(Bucket=bucket, Key="once")["Body"].read() == b"first"


def test_a_locked_version_cannot_be_deleted(s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3_server.new_bucket(object_lock=True)
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    put = client.put_object(Bucket=bucket, Key="kept", Body=b"x", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until)
    with pytest.raises(ClientError) as refused:
        client.delete_object(Bucket=bucket, Key="kept", VersionId=put["VersionId"])
    assert _status(refused.value) == 403


def test_parts_become_one_object(s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3_server.new_bucket()
    upload = client.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    five_mib = 5 * 1024 * 1024
    sent = [
        client.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=number, Body=bytes([number]) * five_mib)
        for number in (1, 2)
    ]
    client.complete_multipart_upload(
        Bucket=bucket,
        Key="big",
        UploadId=upload,
        MultipartUpload={"Parts": [{"ETag": part["ETag"], "PartNumber": number} for number, part in enumerate(sent, 1)]},
    )
    assert client.head_object(Bucket=bucket, Key="big")["ContentLength"] == 2 * five_mib
    last = client.get_object(Bucket=bucket, Key="big", Range="bytes=-3")["Body"].read()
    assert last == b"\2\2\2"


def test_the_reader_cannot_write(s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    s3_server.client().put_object(Bucket=bucket, Key="a", Body=b"x")
    reader = s3_server.client(s3_server.reader)
    assert reader.get_object(Bucket=bucket, Key="a")["Body"].read() == b"x"
    assert [found["Key"] for found in reader.list_objects_v2(Bucket=bucket)["Contents"]] == ["a"]
    with pytest.raises(ClientError) as refused:
        reader.put_object(Bucket=bucket, Key="b", Body=b"x")
    assert _status(refused.value) == 403


def test_a_bucket_that_was_never_made_is_an_error(s3_server: S3Server) -> None:
    with pytest.raises(ClientError) as refused:
        s3_server.client().put_object(Bucket="never-made", Key="a", Body=b"x")
    assert _status(refused.value) == 404


def test_twenty_buckets_can_all_be_written(s3_server: S3Server) -> None:
    """Each bucket takes volumes; a server that runs out of them would fail some later test."""
    client = s3_server.client()
    for _ in range(20):
        client.put_object(Bucket=s3_server.new_bucket(), Key="a", Body=b"x")
