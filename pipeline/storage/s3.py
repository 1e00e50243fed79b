"""S3 and servers that speak its protocol: pyarrow.fs reads; boto3 lists, and writes with conditions.

Every file is written by a single put of at most some hundred MB. So an object appears at once and whole, and there are no
multipart uploads to abort or to clean up. Every process finds endpoint and credentials by itself in the usual way, from AWS_*
variables, profiles or the machine's role; no spec, receipt or manifest ever holds any of them.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from pipeline.errors import RefusedError, StorageError, one_line
from pipeline.storage.base import S3_SCHEME, Entry, StoredFile, translate_errors

MAX_ATTEMPTS = 8
"""Attempts at a request, with waits of up to 20 s between them: a minute at most. AWS_MAX_ATTEMPTS overrides it."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Timeouts of a connection and of a read."""
CONNECTIONS = 32
"""Connections that a process keeps open."""
NOT_FOUND = ("404", "NoSuchKey", "NotFound")
CONFLICT = ("412", "PreconditionFailed", "409", "ConditionalRequestConflict")
DEFAULT_REGION = "us-east-1"
PAGE_KEYS = 1000
"""Keys to list or to delete by one request: the protocol's own limit."""


class S3Storage:
    """The storage of s3:// addresses; it has no state, since a process makes one client for each setting of its environment."""

    def open(self, path: str) -> StoredFile:
        with translate_errors(path):
            file = arrow_filesystem(path).open_input_file(path.removeprefix(S3_SCHEME))
            version = file.metadata().get("ETag", b"").decode().strip('"')
            return StoredFile(Entry(path, file.size(), version), file)

    def read(self, path: str) -> tuple[bytes, str] | None:
        with _translate_errors(path), _ignore_not_found():
            response = _client().get_object(**_bucket_and_key(path))
            return response["Body"].read(), _version(response)
        return None

    def stat(self, path: str) -> Entry | None:
        if not _bucket_and_key(path)["Key"]:
            return None
        with _translate_errors(path), _ignore_not_found():
            response = _client().head_object(**_bucket_and_key(path))
            return Entry(path, response["ContentLength"], _version(response), response["LastModified"].timestamp())
        return None

    def walk(self, folder: str) -> Iterator[Entry]:
        for bucket, page in _pages(folder, Prefix=_key_prefix(folder)):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # consoles make such objects to show an empty folder
                    modified = item["LastModified"].timestamp()
                    yield Entry(f"{S3_SCHEME}{bucket}/{item['Key']}", item["Size"], _version(item), modified)

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        parent = _key_prefix(folder)
        for _bucket, page in _pages(folder, Prefix=parent + prefix, Delimiter="/"):
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(parent)

    def make_folder(self, path: str) -> None:
        pass  # a key needs no folder

    def write(self, path: str, data: bytes) -> None:
        with _translate_errors(path):
            _client().put_object(**_bucket_and_key(path), Body=data)

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        # The ETag is sent without its quotes, as in Amazon's examples for its command line: Ceph 16 accepts no other form.
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with _translate_errors(path):
            try:
                _client().put_object(**_bucket_and_key(path), Body=data, **condition)
            except ClientError as error:
                if _code(error) not in CONFLICT + NOT_FOUND:
                    raise
                # Our first attempt may have succeeded and its response have been lost: then the content is ours.
                present = self.read(path)
                return present is not None and present[0] == data
        return True

    def delete(self, paths: Iterable[str]) -> None:
        remaining = iter(paths)
        while batch := list(islice(remaining, PAGE_KEYS)):
            with _translate_errors(batch[0]):
                keys = [{"Key": _bucket_and_key(path)["Key"]} for path in batch]
                bucket = _bucket_and_key(batch[0])["Bucket"]
                response = _client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            for problem in response.get("Errors", ()):
                raise StorageError(f"{S3_SCHEME}{bucket}/{problem['Key']}: cannot be deleted: {problem['Code']}")


def arrow_filesystem(location: str) -> fs.S3FileSystem:
    """Return the file system through which pyarrow reads the bucket of a location; its paths have no scheme."""
    return _arrow_filesystem(_bucket_and_key(location)["Bucket"], _endpoint(), _region(), _attempts())


@lru_cache
def _arrow_filesystem(bucket: str, endpoint: str | None, region: str | None, attempts: int) -> fs.S3FileSystem:
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)  # boto3 is redirected to the right region by the server
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or DEFAULT_REGION,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def _client() -> Any:
    return _make_client(_endpoint(), _region(), _attempts())


@lru_cache
def _make_client(endpoint: str | None, region: str | None, attempts: int) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        # Many servers that speak the protocol do not know the checksums that newer boto3 adds on its own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else None,
    )
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region or DEFAULT_REGION, config=config)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _region_of_profile()


@lru_cache
def _region_of_profile() -> str | None:
    region: str | None = boto3.Session().region_name
    return region


def _attempts() -> int:
    return int(os.environ.get("AWS_MAX_ATTEMPTS", MAX_ATTEMPTS))


def _bucket_and_key(path: str) -> dict[str, str]:
    """Split an address into the arguments of boto3's calls: `{"Bucket": "bucket", "Key": "folder/a.csv"}`."""
    bucket, _, key = path.removeprefix(S3_SCHEME).partition("/")
    return {"Bucket": bucket, "Key": key}


def _key_prefix(folder: str) -> str:
    """Return the prefix that the keys below a folder have in common: "folder/", or nothing for a whole bucket."""
    key = _bucket_and_key(folder)["Key"].rstrip("/")
    return f"{key}/" if key else ""


def _pages(folder: str, **options: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the bucket and each page of a listing."""
    bucket = _bucket_and_key(folder)["Bucket"]
    with _translate_errors(folder):
        pages = _client().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, **options, PaginationConfig={"PageSize": PAGE_KEYS}):
            yield bucket, page


def _version(response: dict[str, Any]) -> str:
    return str(response["ETag"]).strip('"')


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _ignore_not_found() -> Iterator[None]:
    """Suppress the error of an object that does not exist."""
    try:
        yield
    except ClientError as error:
        if _code(error) not in NOT_FOUND:
            raise


@contextlib.contextmanager
def _translate_errors(path: str) -> Iterator[None]:
    """Turn boto3's errors into StorageErrors that name the path and the cause."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        message = error.response.get("Error", {}).get("Message") or "no reason given"
        kind = RefusedError if 400 <= status < 500 else StorageError
        raise kind(f"{path}: {_code(error)}: {message}") from error
    except BotoCoreError as error:
        raise StorageError(f"{path}: {one_line(error)}") from error
