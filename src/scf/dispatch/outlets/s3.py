"""Publish into an S3-compatible bucket, with boto3 (extra `[s3]`).

Objects are `PREFIX/NAME/path`; a release is there once its RELEASE.json is, which is written last
and never over another. Every object carries its SHA-256, sent with the bytes and checked by the
other side; what is there already with that digest is not sent again. Credentials, region and
endpoint are found as boto3 finds them (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL_S3, ...).
"""

import base64
from typing import Any

from scf.core.errors import MissingTool
from scf.dispatch.outlets.outlet import (
    RELEASE_NAME,
    AlreadyPublished,
    OutletFailed,
    Piece,
    Published,
    PublishedOtherwise,
    Shipment,
    Talk,
)

# Longer objects go in parts; a part that was cut off is thrown away, not half an object.
_PART_BYTES = 64 * 2**20


class S3Outlet:
    """A bucket and a prefix in it."""

    def __init__(self, bucket: str, prefix: str, *, talk: Talk) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise MissingTool(
                "publishing to S3 needs boto3", remedy='Run `pip install "scf[s3]"`.'
            ) from error
        settings = Config(retries={"mode": "standard"}, connect_timeout=20, read_timeout=120)
        self._s3: Any = boto3.client("s3", config=settings)
        self._bucket, self._prefix, self._talk = bucket, prefix, talk

    @property
    def address(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def publish(self, shipment: Shipment) -> Published:
        """See `Outlet`."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self.address}/{shipment.name}"
        try:
            return self._publish(shipment, where)
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            raise OutletFailed(
                f"{where}: {error}",
                remedy="Nothing is visible there without its RELEASE.json; run the command again.",
            ) from error

    def _publish(self, shipment: Shipment, where: str) -> Published:
        self._refuse_if_there(shipment, where)
        self._abort_unfinished(shipment.name)
        sent = kept = 0
        *pieces, release = shipment.pieces
        for piece in pieces:
            if self._is_there(shipment.name, piece):
                kept += piece.size_bytes
                continue
            self._send(shipment.name, piece)
            sent += piece.size_bytes
            self._talk(f"{where}/{piece.path}: {sent + kept:,} bytes so far")
        self._write_release(shipment, release, where)
        return Published(where, sent + release.size_bytes, kept)

    def _refuse_if_there(self, shipment: Shipment, where: str) -> None:
        found = self._digest_of(shipment.name, RELEASE_NAME)
        if found == shipment.release.sha256:
            raise AlreadyPublished(shipment.name, where)
        if found is not None:
            raise PublishedOtherwise(shipment.name, where)

    def _write_release(self, shipment: Shipment, piece: Piece, where: str) -> None:
        """The last step; it fails where somebody else was faster."""
        from botocore.exceptions import ClientError

        try:
            self._s3.put_object(
                Bucket=self._bucket,
                Key=self._key(shipment.name, piece.path),
                Body=piece.source.read_bytes(),
                IfNoneMatch="*",
                ContentType="application/json",
                **_digests(piece),
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in {
                "PreconditionFailed",
                "ConditionalRequestConflict",
            }:
                self._refuse_if_there(shipment, where)
            raise

    def _send(self, name: str, piece: Piece) -> None:
        from boto3.s3.transfer import TransferConfig

        key = self._key(name, piece.path)
        if piece.size_bytes <= _PART_BYTES:
            body = piece.source.read_bytes()
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=body, **_digests(piece))
            return
        self._s3.upload_file(
            str(piece.source),
            self._bucket,
            key,
            ExtraArgs={"Metadata": {"sha256": piece.sha256}, "ChecksumAlgorithm": "SHA256"},
            Config=TransferConfig(
                multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=2
            ),
        )

    def _is_there(self, name: str, piece: Piece) -> bool:
        return self._digest_of(name, piece.path, size_bytes=piece.size_bytes) == piece.sha256

    def _digest_of(self, name: str, path: str, *, size_bytes: int | None = None) -> str | None:
        """The SHA-256 that an object was stored with; None where there is none of that size."""
        from botocore.exceptions import ClientError

        try:
            about: dict[str, Any] = self._s3.head_object(
                Bucket=self._bucket, Key=self._key(name, path)
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in {"404", "NoSuchKey", "NotFound"}:
                return None
            raise
        if size_bytes is not None and about["ContentLength"] != size_bytes:
            return None
        return str(about["Metadata"].get("sha256", ""))

    def _abort_unfinished(self, name: str) -> None:
        """Parts of uploads that were cut off are paid for until they are taken away."""
        pages = self._s3.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._key(name, "")):
            for upload in page.get("Uploads", []):
                self._s3.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )

    def _key(self, name: str, path: str) -> str:
        base = f"{self._prefix}/{name}" if self._prefix else name
        return f"{base}/{path}"


def _digests(piece: Piece) -> dict[str, Any]:
    """The digest as the other side checks it, and as we find it again."""
    checksum = base64.b64encode(bytes.fromhex(piece.sha256)).decode()
    return {"ChecksumSHA256": checksum, "Metadata": {"sha256": piece.sha256}}
