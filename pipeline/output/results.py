"""Reading what a run has published: the manifest first, and then only the parts that it lists.

    dataset = open_results("s3://bucket/out")           # a pyarrow.dataset.Dataset, over as many parts as there are
    dataset.to_table(filter=pc.field("score") < 0.6)
    open_rejects("out").to_table().to_pandas()

A folder holds more than its results while a run adds to them or replaces them, and after a run that was stopped. The manifest
is written last, atomically, so whoever reads this way never sees half a run. A run may publish while somebody is between the
manifest and its list of shards; the manifest is then read again.
"""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.corpus.listing import Corpus, list_inputs, of_entries
from pipeline.errors import UserError
from pipeline.output.generations import Generations
from pipeline.output.manifest import PART, REJECTS_PART, DamagedNoteError, Manifest, read_manifest
from pipeline.output.parts import MANIFEST, RECEIPTS_FOLDER, Output
from pipeline.output.receipt_log import distinct, read_segments
from pipeline.output.receipts import RECEIPTS
from pipeline.schema import REJECTS
from pipeline.storage.base import S3_SCHEME, absolute, is_remote
from pipeline.storage.locate import storage_of


def open_results(folder: str | Path) -> ds.Dataset:
    """Open the results in an output folder, local or s3://; raise UserError if none have been published yet."""
    return _dataset(published(folder), PART)


def open_rejects(folder: str | Path) -> ds.Dataset:
    """Open the rejected rows in an output folder, by `schema.REJECTS`; raise UserError if nothing has been published yet."""
    return _dataset(published(folder), REJECTS_PART)


def published(folder: str | Path) -> Manifest:
    """Read the manifest of an output folder; raise UserError if there is none."""
    location = absolute(str(folder))
    manifest = read_manifest(location)
    if manifest is None:
        ended = "the run that writes there has not ended; the same command goes on"
        what = ended if _has_begun(location) else "no results are there"
        raise UserError(f"{folder}: no {MANIFEST}: {what}")
    return manifest


def shards(manifest: Manifest, columns: list[str] | None = None) -> pa.Table:
    """Read the list of published shards, one row each: all columns (`receipts.RECEIPTS`; fewer in an older one), or some.

    It is that of a later manifest if runs have published since this one was read, and its own list is gone.
    """
    return pq.read_table(BytesIO(_with_list(manifest)[1]), columns=columns)


def _with_list(manifest: Manifest) -> tuple[Manifest, bytes]:
    """Read the list of a manifest, or of the current one if runs have published since it was read; return both."""
    while True:
        try:
            return manifest, manifest.read_shards()
        except DamagedNoteError:
            now = published(manifest.folder)
            if now.version == manifest.version:
                raise
            manifest = now


def finished_shards(output: Output) -> pa.Table:
    """Read the shards of an output folder that are done, published or not, by `receipts.RECEIPTS`."""
    manifest = read_manifest(output.folder)
    sources = [_with_list(manifest)[1]] if manifest and manifest.generation == output.generation else []
    segments = read_segments(Generations.read(output.folder).segments.get(output.generation, ()))
    return pa.concat_tables([RECEIPTS.empty_table(), *distinct([*segments.whole, *sources])])


def results_as_corpus(folder: str) -> Corpus:
    """List the published parts of a folder as input files, for a job that reads what another one wrote.

    A file, or a folder that no run has written to, is listed as any input is.
    """
    location = absolute(folder)
    if read_manifest(location) is None and not _has_begun(location):
        return list_inputs(folder)
    manifest = published(folder)
    parts = set(shards(manifest, [PART])[PART].to_pylist())
    root = f"{manifest.folder}/"
    entries = (entry for entry in storage_of(root).walk(manifest.folder) if entry.path.removeprefix(root) in parts)
    return of_entries(manifest.folder, sorted(entries, key=lambda entry: entry.path))


def _has_begun(location: str) -> bool:
    """Return whether a run has begun in a folder and not published yet."""
    return next(iter(storage_of(location).walk(f"{location}/{RECEIPTS_FOLDER}")), None) is not None


def _dataset(manifest: Manifest, column: str) -> ds.Dataset:
    """Open the files that a column of the list of shards names, PART or REJECTS_PART, as one data set."""
    manifest, listed = _with_list(manifest)
    schema = manifest.schema if column == PART else REJECTS
    named = pq.read_table(BytesIO(listed), columns=[column])[column]
    names = pc.unique(named.drop_null()).to_pylist()  # a part has many shards
    paths = [f"{manifest.folder}/{name}" for name in names]
    if is_remote(manifest.folder):
        from pipeline.storage.s3 import arrow_filesystem

        files: fs.FileSystem = arrow_filesystem(manifest.folder)
        paths = [path.removeprefix(S3_SCHEME) for path in paths]
    else:
        files = fs.LocalFileSystem()
    return ds.FileSystemDataset.from_paths(paths, schema=schema, format=ds.ParquetFileFormat(), filesystem=files)
