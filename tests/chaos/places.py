"""Where a round's output is: a folder on disk, or in a bucket of an S3 server on this machine."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from tests.support.s3_server import BUCKET


@dataclass(frozen=True)
class Disk:
    """A folder."""

    folder: Path
    poll_seconds = 0.002
    """Between two looks at it, which must be short: what shows a step comes and goes."""
    has_orphans = False
    """Whether parts of a run that was killed may outlive the publishing."""

    @property
    def location(self) -> str:
        return str(self.folder)

    def find(self, pattern: str) -> dict[str, int]:
        """Return the sizes of the files that match a glob."""
        found = {}
        for path in self.folder.glob(pattern):
            try:
                found[str(path.relative_to(self.folder))] = path.stat().st_size
            except FileNotFoundError:
                continue
        return found

    def fetch(self) -> Path:
        """Return a folder to be audited."""
        return self.folder


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket; `copy` is where it is fetched to."""

    prefix: str
    copy: Path
    poll_seconds = 0.1
    has_orphans = True

    @property
    def location(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def find(self, pattern: str) -> dict[str, int]:
        """Return the sizes of the objects that match a glob of folders and a last `*`."""
        folder = pattern.split("*", 1)[0]
        return {name: size for name, size in self._objects(folder).items() if Path(name).match(pattern)}

    def fetch(self) -> Path:
        """Copy all objects to a folder on disk."""
        shutil.rmtree(self.copy, ignore_errors=True)
        for name in self._objects(""):
            path = self.copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _client().download_file(BUCKET, f"{self.prefix}/{name}", str(path))
        return self.copy

    def _objects(self, start: str) -> dict[str, int]:
        listing = _client().get_paginator("list_objects_v2")
        pages = listing.paginate(Bucket=BUCKET, Prefix=f"{self.prefix}/{start}")
        objects: list[Any] = [found for page in pages for found in page.get("Contents", ())]
        return {found["Key"].removeprefix(f"{self.prefix}/"): found["Size"] for found in objects}


Place = Disk | Bucket


@functools.cache
def _client() -> Any:
    return boto3.client("s3")
