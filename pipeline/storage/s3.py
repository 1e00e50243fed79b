"""S3, and what speaks its protocol: pyarrow.fs reads; boto3 lists, and writes with conditions.

Everything is written by a single put of at most some hundred MB. So an object appears at once, and nothing half-made can stay
behind: there are no multipart uploads to abort or to clean up. Endpoint and credentials come the usual way, from AWS_*
variables, profiles or the machine's role, in every process anew; none of them is ever put on a spec, receipt or manifest.
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

from pipeline.errors import RefusedError, StorageError
from pipeline.storage.base import S3_SCHEME, Entry, StoredFile, naming

MAX_ATTEMPTS = 8
"""Of a request, with growing waits of up to 20 s between them: up to a minute in all. AWS_MAX_ATTEMPTS overrides it."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
ABSENT = ("404", "NoSuchKey", "NotFound")
CONFLICT = ("412", "PreconditionFailed", "409", "ConditionalRequestConflict")
ANY_REGION = "us-east-1"
AT_ONCE = 1000
"""Keys listed or deleted by a request: the protocol's own limit."""


class S3Storage:
    """Buckets. Holds nothing: clients are made once a process and found again by the environment."""

    def open(self, path: str) -> StoredFile:
        with naming(path):
            file = arrow_filesystem(path).open_input_file(path.removeprefix(S3_SCHEME))
            version = file.metadata().get("ETag", b"").decode().strip('"')
            return StoredFile(Entry(path, file.size(), version), file)

    def read(self, path: str) -> tuple[bytes, str] | None:
        with _naming(path), _absent():
            answer = _client().get_object(**_place(path))
            return answer["Body"].read(), _version(answer)
        return None

    def stat(self, path: str) -> Entry | None:
        if not _place(path)["Key"]:
            return None
        with _naming(path), _absent():
            answer = _client().head_object(**_place(path))
            return Entry(path, answer["ContentLength"], _version(answer))
        return None

    def walk(self, folder: str) -> Iterator[Entry]:
        for bucket, found in _pages(folder, Prefix=_below(folder)):
            for item in found.get("Contents", ()):
                if not item["Key"].endswith("/"):  # what consoles make to show an empty folder
                    yield Entry(f"{S3_SCHEME}{bucket}/{item['Key']}", item["Size"], _version(item))

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        below = _below(folder)
        for _bucket, found in _pages(folder, Prefix=below + prefix, Delimiter="/"):
            for item in found.get("Contents", ()):
                yield item["Key"].removeprefix(below)

    def make_folder(self, path: str) -> None:
        pass  # keys need none

    def write(self, path: str, data: bytes) -> None:
        with _naming(path):
            _client().put_object(**_place(path), Body=data)

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        # The ETag goes without its quotes, as in Amazon's examples for its command line: Ceph 16 takes it only like this.
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with _naming(path):
            try:
                _client().put_object(**_place(path), Body=data, **condition)
            except ClientError as error:
                if _code(error) not in CONFLICT + ABSENT:
                    raise
                there = self.read(path)  # our own, where the answer to a first try was lost on the way
                return there is not None and there[0] == data
        return True

    def delete(self, paths: Iterable[str]) -> None:
        left = iter(paths)
        while batch := list(islice(left, AT_ONCE)):
            with _naming(batch[0]):
                keys = [{"Key": _place(path)["Key"]} for path in batch]
                bucket = _place(batch[0])["Bucket"]
                answer = _client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            for problem in answer.get("Errors", ()):
                raise StorageError(f"{S3_SCHEME}{bucket}/{problem['Key']}: cannot be deleted: {problem['Code']}")


def arrow_filesystem(location: str) -> fs.S3FileSystem:
    """Make the file system that pyarrow reads this bucket through; paths in it have no scheme."""
    return _arrow_filesystem(_place(location)["Bucket"], _endpoint(), _region(), _attempts())


@lru_cache
def _arrow_filesystem(bucket: str, endpoint: str | None, region: str | None, attempts: int) -> fs.S3FileSystem:
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)  # boto3 is sent to the right one by itself
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or ANY_REGION,
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
        max_pool_connections=32,
        # Checksums that newer boto3 adds on its own are unknown to many servers that speak the protocol.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else None,
    )
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region or ANY_REGION, config=config)


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


def _place(path: str) -> dict[str, str]:
    bucket, _, key = path.removeprefix(S3_SCHEME).partition("/")
    return {"Bucket": bucket, "Key": key}


def _below(folder: str) -> str:
    key = _place(folder)["Key"].rstrip("/")
    return f"{key}/" if key else ""


def _pages(folder: str, **options: str) -> Iterator[tuple[str, dict[str, Any]]]:
    bucket = _place(folder)["Bucket"]
    with _naming(folder):
        pages = _client().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, **options, PaginationConfig={"PageSize": AT_ONCE}):
            yield bucket, page


def _version(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _absent() -> Iterator[None]:
    """Pass over the error that says that there is no such object."""
    try:
        yield
    except ClientError as error:
        if _code(error) not in ABSENT:
            raise


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn boto3's errors into StorageErrors that name the path and the cause."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        what = error.response.get("Error", {}).get("Message") or "no reason given"
        kind = RefusedError if 400 <= status < 500 else StorageError
        raise kind(f"{path}: {_code(error)}: {what}") from error
    except BotoCoreError as error:
        raise StorageError(f"{path}: {' '.join(str(error).split())}") from error
