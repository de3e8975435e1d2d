"""The Azure part does what other tests rely on."""

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.storage.blob import BlobBlock, BlobServiceClient

from tests.parts.azure import AzureServer


def test_a_blob_comes_back(azure_server: AzureServer) -> None:
    with azure_server.client() as client:
        blob = client.get_blob_client(azure_server.new_container(), "a/b")
        blob.upload_blob(b"bytes")
        assert blob.download_blob().readall() == b"bytes"


def test_a_second_create_only_put_is_refused(azure_server: AzureServer) -> None:
    with azure_server.client() as client:
        blob = client.get_blob_client(azure_server.new_container(), "once")
        blob.upload_blob(b"first", overwrite=False)
        with pytest.raises(ResourceExistsError):
            blob.upload_blob(b"second", overwrite=False)
        assert blob.download_blob().readall() == b"first"


def test_blocks_become_a_blob_only_when_committed(azure_server: AzureServer) -> None:
    with azure_server.client() as client:
        container = azure_server.new_container()
        blob = client.get_blob_client(container, "big")
        for number in ("0", "1"):
            blob.stage_block(number, number.encode() * 1024)
        assert list(client.get_container_client(container).list_blob_names()) == []
        blob.commit_block_list([BlobBlock("0"), BlobBlock("1")], match_condition=MatchConditions.IfMissing)
        assert blob.get_blob_properties().size == 2048


def test_a_wrong_key_is_refused(azure_server: AzureServer) -> None:
    wrong = BlobServiceClient(azure_server.blob_endpoint, credential="bm90IHRoZSBrZXk=", retry_total=0)
    with wrong, pytest.raises(HttpResponseError) as refused:
        wrong.create_container("never")
    assert refused.value.status_code == 403
