"""S3 and servers that speak its protocol, by boto3; a key may be anything that S3 takes.

Every file is written by a single put of at most some hundred MB. So an object appears at once and whole, and there are no
multipart uploads to abort or to clean up. Every process finds endpoint and credentials by itself in the usual way, from AWS_*
variables, profiles or the machine's role; no spec, receipt or manifest ever holds any of them.

boto3 tries nothing again here: `_whole` repeats whole operations, since a body may break off after its request is done.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from pyarrow import fs

from pipeline.errors import RefusedError, StorageError, UserError, one_line, printable
from pipeline.storage.base import MAX_PATH, S3_SCHEME, Entry, StoredFile
from pipeline.storage.ranges import RangeFile
from pipeline.storage.retry import growing_waits, retried

T = TypeVar("T")

MAX_ATTEMPTS = 8
"""Attempts at an operation, with waits of up to 20 s between them, about a minute in all. AWS_MAX_ATTEMPTS overrides it."""
PASSING = {
    "BandwidthLimitExceeded",
    "EC2ThrottledException",
    "InternalError",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
}
"""Codes of errors that pass: those that botocore tries again, and what DeleteObjects answers for single keys."""
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
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
        entry = self.stat(path)
        if entry is None:
            raise RefusedError(f"{printable(path, MAX_PATH)}: no such object")
        return StoredFile(entry, RangeFile(entry.size, partial(_read_range, entry)))

    def read(self, path: str) -> tuple[bytes, str] | None:
        return _whole(path, lambda: _get(path))

    def stat(self, path: str) -> Entry | None:
        if not _bucket_and_key(path)["Key"]:
            return None
        return _whole(path, lambda: _head(path))

    def walk(self, folder: str) -> Iterator[Entry]:
        for bucket, page in _pages(folder, Prefix=_key_prefix(folder)):
            for item in page.get("Contents", ()):
                if item["Size"] or not item["Key"].endswith("/"):  # consoles make empty objects that show a folder
                    modified = item["LastModified"].timestamp()
                    yield Entry(f"{S3_SCHEME}{bucket}/{item['Key']}", item["Size"], _version(item), modified)

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        parent = _key_prefix(folder)
        for _bucket, page in _pages(folder, Prefix=parent + prefix, Delimiter="/"):
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(parent)

    def children(self, folder: str) -> Iterator[str]:
        parent = _key_prefix(folder)
        for _bucket, page in _pages(folder, Prefix=parent, Delimiter="/"):
            keys = [item["Key"] for item in page.get("Contents", ())]
            keys += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
            yield from (key.removeprefix(parent).removesuffix("/") for key in keys)

    def make_folder(self, path: str) -> None:
        pass  # a key needs no folder

    def write(self, path: str, data: bytes) -> None:
        _whole(path, lambda: _client().put_object(**_bucket_and_key(path), Body=data))

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        return _whole(path, lambda: _put_if(path, data, version))

    def delete(self, paths: Iterable[str]) -> None:
        remaining = iter(paths)
        while batch := list(islice(remaining, PAGE_KEYS)):
            bucket, keys = _bucket_and_key(batch[0])["Bucket"], [_bucket_and_key(path)["Key"] for path in batch]
            _whole(batch[0], partial(_delete, bucket, keys))


def _get(path: str) -> tuple[bytes, str] | None:
    with _ignore_not_found():
        response = _client().get_object(**_bucket_and_key(path))
        return response["Body"].read(), _version(response)
    return None


def _read_range(entry: Entry, first: int, last: int) -> bytes:
    """Read some bytes of an object; raise StorageError if it is another one than this."""
    return _whole(entry.path, lambda: _get_range(entry, first, last))


def _get_range(entry: Entry, first: int, last: int) -> bytes:
    wanted = {"Range": f"bytes={first}-{last}", "IfMatch": entry.version}
    try:
        data: bytes = _client().get_object(**_bucket_and_key(entry.path), **wanted)["Body"].read()
    except ClientError as error:
        if _code(error) in CONFLICT:
            raise StorageError(f"{printable(entry.path, MAX_PATH)}: changed after it was listed") from error
        raise
    return data


def _head(path: str) -> Entry | None:
    with _ignore_not_found():
        response = _client().head_object(**_bucket_and_key(path))
        return Entry(path, response["ContentLength"], _version(response), response["LastModified"].timestamp())
    return None


def _put_if(path: str, data: bytes, version: str | None) -> bool:
    # The ETag is sent without its quotes, as in Amazon's examples for its command line: Ceph 16 accepts no other form.
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        _client().put_object(**_bucket_and_key(path), Body=data, **condition)
    except ClientError as error:
        if _code(error) not in CONFLICT + NOT_FOUND:
            raise
        # Our first attempt may have succeeded and its response have been lost: then the content is ours.
        present = _get(path)
        return present is not None and present[0] == data
    return True


def _delete(bucket: str, keys: list[str]) -> None:
    """Delete what is left of some keys; raise an error, and keep in `keys` those that have failed, if any did."""
    wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    response = _client().delete_objects(Bucket=bucket, Delete=wanted)
    errors = [error for error in response.get("Errors", ()) if error["Code"] not in NOT_FOUND]
    keys[:] = [error["Key"] for error in errors]
    # The error that cannot pass first, if there is one.
    for error in sorted(errors, key=lambda error: error["Code"] in PASSING):
        message = f"{error['Key']} cannot be deleted: {error.get('Message') or 'no reason given'}"
        raise ClientError({"Error": {"Code": error["Code"], "Message": message}}, "DeleteObjects")


def arrow_filesystem(location: str) -> fs.S3FileSystem:
    """Return the file system through which pyarrow reads the bucket of a location; its paths have no scheme."""
    return _arrow_filesystem(_bucket_and_key(location)["Bucket"], _endpoint(), _region(), _attempts())


@lru_cache
def _arrow_filesystem(bucket: str, endpoint: str | None, region: str | None, attempts: int) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=_region_of(bucket, endpoint, region),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


@lru_cache
def _region_of(bucket: str, endpoint: str | None, region: str | None) -> str:
    """Return the region of a bucket, which Amazon tells; boto3 alone is redirected by the server."""
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    return region or DEFAULT_REGION


def object_store_options(location: str) -> dict[str, str]:
    """Return how object_store, by which libraries in Rust reach S3, finds a location's server and our client's credentials.

    Raises RefusedError if there are no credentials.
    """
    endpoint, credentials = _endpoint(), boto3.Session().get_credentials()
    if credentials is None:
        raise RefusedError("S3: there are no credentials")
    found = credentials.get_frozen_credentials()
    values = {
        "aws_access_key_id": found.access_key,
        "aws_secret_access_key": found.secret_key,
        "aws_session_token": found.token,
        "aws_region": _region_of(_bucket_and_key(location)["Bucket"], endpoint, _region()),
        "aws_endpoint": endpoint,
        "allow_http": "true" if endpoint and endpoint.startswith("http://") else None,
        "aws_conditional_put": "etag",
        "max_retries": str(_attempts() - 1),
    }
    return {name: value for name, value in values.items() if value}


def _client() -> Any:
    try:
        return _make_client(_endpoint(), _region())
    except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
        raise UserError(f"S3 cannot be reached with the settings that are given: {one_line(error)}") from error


@lru_cache
def _make_client(endpoint: str | None, region: str | None) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # `_whole` tries again
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
    """Return how often an operation is tried; raise UserError if the environment says something that is no number."""
    text = os.environ.get("AWS_MAX_ATTEMPTS") or str(MAX_ATTEMPTS)
    if not re.fullmatch("0*[1-9][0-9]{0,2}", text):
        raise UserError(f"AWS_MAX_ATTEMPTS is {printable(text, 40)!r}, and no whole number from 1 to 999")
    return int(text)


def _whole(path: str, operation: Callable[[], T]) -> T:
    """Do a whole operation, from its request to the last byte of the response, and try it again while its error may pass."""
    with _translate_errors(path):
        return retried(operation, _may_pass, growing_waits(_attempts()))


def _may_pass(error: Exception) -> bool:
    """Return whether an error is the network's or the server's for the moment, and not about the request itself."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _code(error) in PASSING or status in PASSING_STATUS
    # HTTPClientError is the client's for all that breaks on the way, a body that is read included.
    return isinstance(error, HTTPClientError | BotoConnectionError | IncompleteReadError | ResponseParserError)


def _bucket_and_key(path: str) -> dict[str, str]:
    """Split an address into the arguments of boto3's calls: `{"Bucket": "bucket", "Key": "folder/a.csv"}`."""
    bucket, _, key = path.removeprefix(S3_SCHEME).partition("/")
    return {"Bucket": bucket, "Key": key}


def _key_prefix(folder: str) -> str:
    """Return the prefix that the keys below a folder have in common: "folder/", or nothing for a whole bucket."""
    _bucket, slash, key = folder.removeprefix(S3_SCHEME).partition("/")
    return f"{key}/" if slash else ""


def _pages(folder: str, **options: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the bucket and each page of a listing; raise StorageError where a page does not say how it goes on."""
    bucket = _bucket_and_key(folder)["Bucket"]
    token: str | None = ""
    while token is not None:
        after = {"ContinuationToken": token} if token else {}
        request = {"Bucket": bucket, "MaxKeys": PAGE_KEYS, **options, **after}
        page = _whole(folder, lambda request=request: _client().list_objects_v2(**request))  # type: ignore[misc]
        yield bucket, page
        last, token = token, page.get("NextContinuationToken")
        if page.get("IsTruncated") and (token is None or token == last):
            raise StorageError(f"{folder}: the server ends its listing in the middle")


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
    where = printable(path, MAX_PATH)
    try:
        yield
    except ClientError as error:
        message = error.response.get("Error", {}).get("Message") or "no reason given"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        kind = RefusedError if 400 <= status < 500 and not _may_pass(error) else StorageError
        raise kind(f"{where}: {_code(error)}: {message}") from error
    except (NoCredentialsError, PartialCredentialsError, ParamValidationError) as error:
        raise RefusedError(f"{where}: {one_line(error)}") from error
    except (BotoCoreError, ResponseParserError) as error:
        raise StorageError(f"{where}: {one_line(error)}") from error
