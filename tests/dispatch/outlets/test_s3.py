"""Publishing to S3, against a moto server: RELEASE.json last, nothing twice, never over another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("boto3")
pytest.importorskip("moto.server")

import boto3
from moto.server import ThreadedMotoServer

from scf.dispatch.outlets import s3 as s3_module
from scf.dispatch.outlets.outlet import (
    AlreadyPublished,
    OutletFailed,
    PublishedOtherwise,
    Shipment,
)
from scf.dispatch.outlets.registry import open_outlet
from support.shipments import small_release

BUCKET = "releases"


class Bucket:
    """The double's bucket, and the server in front of it."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.start()

    def start(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    @property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}")

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [item["Key"] for item in found]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key-of-the-test",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    made = Bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{made.port}")
    made.client.create_bucket(Bucket=BUCKET)
    yield made
    emptied = made.client
    for key in made.names():
        emptied.delete_object(Bucket=BUCKET, Key=key)
    emptied.delete_bucket(Bucket=BUCKET)
    made.server.stop()


@pytest.fixture
def shipment(tmp_path: Path) -> Shipment:
    return Shipment.of(small_release(tmp_path))


def test_a_release_arrives_whole_and_once(bucket: Bucket, shipment: Shipment) -> None:
    outlet = open_outlet(f"s3://{BUCKET}/foundry/weekly")
    done = outlet.publish(shipment)

    prefix = f"foundry/weekly/{shipment.name}"
    assert done.where == f"s3://{BUCKET}/{prefix}"
    assert sorted(bucket.names()) == sorted(f"{prefix}/{piece.path}" for piece in shipment.pieces)
    for piece in shipment.pieces:
        stored = bucket.client.get_object(Bucket=BUCKET, Key=f"{prefix}/{piece.path}")
        assert stored["Body"].read() == piece.source.read_bytes()
    with pytest.raises(AlreadyPublished):
        outlet.publish(shipment)


def test_an_upload_that_is_cut_shows_no_release_and_is_gone_on_with(
    bucket: Bucket, shipment: Shipment
) -> None:
    """The server goes away after two files; the next call sends the rest alone."""
    said: list[str] = []

    def cut(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            bucket.server.stop()

    with pytest.raises(OutletFailed, match=r"connect|endpoint|reset|closed|Connection"):
        open_outlet(f"s3://{BUCKET}", talk=cut).publish(shipment)
    bucket.start()
    assert len(bucket.names()) == 2

    done = open_outlet(f"s3://{BUCKET}").publish(shipment)

    first_two = sum(piece.size_bytes for piece in shipment.pieces[:2])
    assert done.kept_bytes == first_two
    assert done.sent_bytes == sum(p.size_bytes for p in shipment.pieces) - first_two
    assert len(bucket.names()) == len(shipment.pieces)


def test_release_json_is_written_last_and_over_nothing(
    bucket: Bucket, shipment: Shipment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else publishes the name while we upload: theirs stays."""
    outlet = open_outlet(f"s3://{BUCKET}")
    send = s3_module.S3Outlet._send

    def meanwhile(self: Any, name: str, piece: Any) -> None:
        send(self, name, piece)
        if piece.path == "RELEASE.dsse.json":
            bucket.client.put_object(Bucket=BUCKET, Key=f"{name}/RELEASE.json", Body=b"theirs")

    monkeypatch.setattr(s3_module.S3Outlet, "_send", meanwhile)
    with pytest.raises(PublishedOtherwise):
        outlet.publish(shipment)
    key = f"{shipment.name}/RELEASE.json"
    assert bucket.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"theirs"


def test_long_files_go_in_parts_and_cut_ones_leave_none(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "_PART_BYTES", 5 * 2**20)
    shipment = Shipment.of(small_release(tmp_path, big_bytes=12 * 2**20))
    key = f"{shipment.name}/model/model.safetensors"
    bucket.client.create_multipart_upload(
        Bucket=BUCKET, Key=key
    )  # a part-way upload of an older try

    open_outlet(f"s3://{BUCKET}").publish(shipment)

    stored = bucket.client.get_object(Bucket=BUCKET, Key=key)
    assert stored["ETag"].strip('"').endswith("-3")
    assert stored["Body"].read() == (shipment.folder / "model/model.safetensors").read_bytes()
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=BUCKET)


def test_a_bucket_that_is_not_there_is_said(bucket: Bucket, shipment: Shipment) -> None:
    with pytest.raises(OutletFailed, match=r"NoSuchBucket|404"):
        open_outlet("s3://nobodys-bucket").publish(shipment)
