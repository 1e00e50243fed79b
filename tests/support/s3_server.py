"""An S3 server over HTTP that fails on demand: on some requests, some number of times, with some status.

The server is moto's. With OFFRAMP_TEST_S3=http://host:port all requests are forwarded to that server instead, where the
credentials below must give access to BUCKET.
"""

import http.client
import logging
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


@dataclass
class Fault:
    """A failure of the first `times` requests whose method contains `method` and whose path contains `path`."""

    method: str
    path: str
    status: str = "503 Slow Down"
    times: int = 1 << 30
    cut: int = 0
    """Bytes by which the response is shorter than it says, in place of an error."""
    happens: bool = False
    """Whether the request is served before its response is lost."""
    key: str | None = None
    """What keys contain that a batched delete, which answers 200, does not delete; the status is their error."""

    @property
    def code(self) -> str:
        return self.status.split(" ", 1)[1].replace(" ", "")

    def body(self) -> bytes:
        return f"<Error><Code>{self.code}</Code><Message>the test says so</Message></Error>".encode()


def forward(upstream: str, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Forward a request unchanged, with the host's name too, which its signature covers."""
    headers = {key[5:].replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")}
    headers |= {key.replace("_", "-"): environ[key] for key in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(key)}
    headers.pop("CONNECTION", None)
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    connection = http.client.HTTPConnection(upstream, timeout=60)
    connection.request(environ["REQUEST_METHOD"], environ["REQUEST_URI"], body, headers)
    response = connection.getresponse()
    hop = ("connection", "transfer-encoding", "keep-alive")
    kept = [(name, value) for name, value in response.getheaders() if name.lower() not in hop]
    data = response.read()
    connection.close()
    start_response(f"{response.status} {response.reason}", kept)
    return [data]


class S3Server:
    """A server on a free port of this machine, open as long as the block runs."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request since the last reset."""
        upstream = os.environ.get("OFFRAMP_TEST_S3", "").removeprefix("http://")
        self.deleted: list[list[str]] = []
        """Keys of every batched delete to which a fault applied."""
        self._application = partial(forward, upstream) if upstream else DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "the-key-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "3",
        }
        names = {"aws_access_key_id": "the-key-id", "aws_secret_access_key": "a-secret-of-the-test"}
        self._client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **names)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reset(self) -> None:
        """Delete all objects, clear all faults, and make the bucket if it is not there."""
        self.faults.clear()
        self.deleted.clear()
        client = self._client
        if any(bucket["Name"] == BUCKET for bucket in client.list_buckets()["Buckets"]):
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                for item in page.get("Contents", ()):
                    client.delete_object(Bucket=BUCKET, Key=item["Key"])
        else:
            client.create_bucket(Bucket=BUCKET)
        self.requests.clear()

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        for fault in self.faults:
            if fault.method in method and fault.path in path and fault.times:
                fault.times -= 1
                return self._fail(fault, environ, start_response)
        response: Iterable[bytes] = self._application(environ, start_response)
        return response

    def _fail(self, fault: Fault, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if fault.cut:
            return [b"".join(self._application(environ, start_response))[: -fault.cut]]
        if fault.happens:
            b"".join(self._application(environ, lambda *_arguments: None))
            start_response(fault.status, [("Content-Type", "application/xml")])
            return [fault.body()]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.key is None:
            start_response(fault.status, [("Content-Type", "application/xml")])
            return [fault.body()]
        keys = re.findall("<Key>(.*?)</Key>", body.decode())
        self.deleted.append(keys)
        for key in keys:
            if fault.key not in key:
                self._client.delete_object(Bucket=BUCKET, Key=key)
        left = "".join(
            f"<Error><Key>{key}</Key><Code>{fault.code}</Code><Message>x</Message></Error>"
            for key in keys
            if fault.key in key
        )
        start_response("200 OK", [("Content-Type", "application/xml")])
        return [f"<DeleteResult>{left}</DeleteResult>".encode()]
