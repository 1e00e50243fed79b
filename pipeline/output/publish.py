"""Publishing: put the receipts of a generation together, write the list of shards and the manifest, and clean up."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.nights import Night, with_tonight
from pipeline.output.generations import Generations, receipts_folder, run_file
from pipeline.output.manifest import (
    EXPECTED_DISAGREEMENT,
    HARD_ROWS,
    MANIFEST_VERSION,
    NEW_PREDICTIONS,
    PART,
    PREDICTIONS,
    REJECTS_PART,
    SHARDS_NAME,
    SHARDS_PREFIX,
    Fingerprint,
    Manifest,
    digest_of,
    encode_schema,
    read_manifest,
    read_previous_manifest,
)
from pipeline.output.overlaps import separate
from pipeline.output.parts import AUDITS_FOLDER, MANIFEST, PREVIOUS_MANIFEST, REJECTS_FOLDER, Output, generation_of
from pipeline.output.receipt_log import (
    NO_SHARDS,
    Hold,
    ShardIds,
    are_among,
    batches,
    distinct,
    not_among,
    read_segments,
    shard_ids,
)
from pipeline.output.receipts import RECEIPTS
from pipeline.output.shard_index import ShardIndex
from pipeline.output.totals import Totals
from pipeline.predicted import NO_BINS, Predicted, PredictionBins
from pipeline.storage.locate import storage_of
from pipeline.version import versions

TEMPORARY_NAME = re.compile(r"\.(part-|_manifest|_shards-|_report|[0-9a-f]{12}-|run\.json|probe).*\.[0-9a-f]{8}\.tmp")
"""Name under which a file of ours is written before it is renamed; what others call so in our folder is left alone."""
UNUSED_SECONDS = 24 * 3600.0
"""Age at which a part that nothing names is taken for a leftover, where other drivers may write: a receipt follows its part
within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardList:
    """All finished shards of a generation, ready to be published."""

    data: bytes
    """Parquet file by `receipts.RECEIPTS`."""
    shards: int
    files: int
    totals: Totals
    new: Totals
    """The sum of the shards that were never published: not of parts that were lost and made again."""


def list_shards(published: list[bytes], others: list[bytes], hold: Hold | None, output: Output) -> ShardList:
    """Put receipts together, each shard once, from the first source that has it and whose part is there.

    `published` is the list that is replaced. Parts that share shards with others are written anew without them.
    """
    sources = [*published, *others]
    moves, known = separate(sources, hold, output), _ids(published)
    totals, new, index, sink = Totals(), Totals(), ShardIndex(), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, RECEIPTS, compression="zstd") as writer:
        for table in distinct(sources, hold):
            totals = totals.plus_table(table)
            new = new.plus_table(not_among(table, known))
            index.add_table(table)
            writer.write_table(moves.apply(table))
    data = sink.getvalue().to_pybytes()
    return ShardList(data=data, shards=len(index), files=len(index.files), totals=totals, new=new)


def _ids(sources: list[bytes]) -> ShardIds:
    """Return the ids of the shards of receipts, ascending."""
    return np.sort(np.concatenate([NO_SHARDS, *(shard_ids(table) for table in batches(sources, ["shard"]))]))


def check_accounted_for(sources: list[bytes], shards: ShardList, folder: str) -> None:
    """Raise InputError, naming a file, unless a list has every shard of some receipts: nothing vanishes without a word."""
    listed = _ids([shards.data])
    for table in batches(sources, ["shard", "file", "start"]):
        for missing in table.filter(pa.array(~are_among(shard_ids(table), listed))).slice(0, 1).to_pylist():
            what = f"the part with rows of {missing['file']} from row {missing['start']} on is gone"
            raise InputError(
                "output", f"{folder}: {what}; the same command makes it again, or start over with `overwrite`"
            )


def predicted(totals: Totals, bins: PredictionBins, replaced: Manifest | None = None) -> Predicted:
    """Name what is predicted, of all rows or of those that are new since a manifest of the same generation.

    New is what there is more: shards whose parts were lost and made again are no news.
    """
    earlier = replaced.facts["totals"] if replaced else {}
    # Shards of before predictions were counted have no score, and are in no fraction.
    rows = max(totals.rows_out - earlier.get("rows_out", 0), 0)
    counted = sum(totals.score_histogram) if replaced is None and bins.scores else rows
    return Predicted.of(
        bins,
        rows=min(rows, counted),
        classes=_more(totals.label_counts, earlier.get("label_counts", [])),
        scores=_more(totals.score_histogram, earlier.get("score_histogram", [])),
    )


def predicted_facts(totals: Totals, bins: PredictionBins, replaced: Manifest | None) -> dict[str, Any]:
    """Return what a manifest tells of predictions; nothing where a run writes none."""
    if bins == NO_BINS:
        return {}
    new = predicted(totals, bins, replaced)
    return {PREDICTIONS: predicted(totals, bins).to_json(), NEW_PREDICTIONS: new.to_json()}


def nights_of(
    new: Totals, replaced: Manifest | None, published: str = "", checked: Mapping[str, Any] = MappingProxyType({})
) -> list[Night]:
    """Return the nights of the manifest of this generation that is replaced, and tonight, of which `checked` may tell more.

    Tonight is what was `new`. Parts that are made again draw other rows for their audit, and a difference of two draws is of no
    rows at all: it would break limits that are kept, and hide those that are broken.
    """
    tonight = Night.of(
        asdict(new),
        published=published,
        drift={name: signal["psi"] for name, signal in checked.get("drift", {}).items()},
        classes=checked.get(NEW_PREDICTIONS, {}).get("classes", {}),
        expected=checked.get(EXPECTED_DISAGREEMENT, {}),
        alarms=list(_alarms(checked)),
    )
    return with_tonight(replaced.nights if replaced else [], tonight)


def _alarms(checked: Mapping[str, Any]) -> Iterator[str]:
    """Yield what has drifted so far that it is an alarm, with what moved."""
    blocks = {key.replace("_", " "): checked[key] for key in (EXPECTED_DISAGREEMENT, HARD_ROWS) if key in checked}
    for name, block in {**blocks, **checked.get("drift", {})}.items():
        if block.get("state") == "alarm":
            yield f"{name}: {block.get('moved', '')}"


def _more(counts: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """Subtract earlier counts, position by position, to no less than 0."""
    return [max(count - less, 0) for count, less in zip_longest(counts, earlier[: len(counts)], fillvalue=0)]


def manifest_facts(
    shards: ShardList,
    fingerprint: Fingerprint,
    schema: pa.Schema,
    *,
    generation: int,
    seconds: float,
    published: str,
    checked: Mapping[str, object],
) -> dict[str, Any]:
    """Return the JSON document of a manifest, except for the name of the list of shards."""
    totals = shards.totals
    if any(value < 0 for value in totals.numbers()):
        raise AssertionError(f"counts below zero: {totals}")
    return {
        "generation": generation,
        "fingerprint": fingerprint,
        "schema": encode_schema(schema),
        "files": shards.files,
        "totals": asdict(totals) | {"rows_rejected": totals.rows_rejected},
        "mean_exit_layer": totals.mean_exit_layer,
        "flops_speedup": totals.flops_speedup,
        "seconds": round(seconds, 3),
        **_dated(checked, published),
        "published": published,
        "versions": versions(),
    }


def _dated(checked: Mapping[str, Any], published: str) -> Mapping[str, Any]:
    """Return what was checked with the date of tonight, where a limit is broken since tonight."""
    audit = checked.get("audit", {})
    nights = audit.get("all_nights", {})
    if nights.get("broken_since") != "":
        return checked
    return {**checked, "audit": {**audit, "all_nights": {**nights, "broken_since": published}}}


def write_manifest(before: Generations, facts: Mapping[str, Any], shards: ShardList) -> bool:
    """Write the list of shards and the manifest; return False if another driver has published since `before` was read.

    The manifest that is replaced stays as the previous one, and its list with it: a reader may be between the two.
    """
    folder, storage, digest = before.folder, storage_of(before.folder), digest_of(shards.data)
    name = f"{SHARDS_PREFIX}{digest[:16]}.parquet"
    storage.write(f"{folder}/{name}", shards.data)
    if before.manifest is not None:
        storage.write(f"{folder}/{PREVIOUS_MANIFEST}", _to_json(before.manifest.facts))
    named = {"version": MANIFEST_VERSION, "shards": {"path": name, "rows": shards.shards, "digest": digest}}
    return storage.write_if(f"{folder}/{MANIFEST}", _to_json(named | dict(facts)), before.version)


def _to_json(facts: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(facts, indent=1)}\n".encode()


def remove_list(older: Manifest | None, generations: Generations) -> None:
    """Remove the list of shards of a manifest that is neither the current one nor the previous one any more."""
    kept = (generations.manifest, read_previous_manifest(generations.folder))
    if older is not None and not any(older.has_list_of(manifest) for manifest in kept):
        storage_of(older.folder).delete([older.shards_path])


def clean_up(generations: Generations, generation: int, own_segments: Sequence[str], *, alone: bool) -> None:
    """Remove what a published generation has replaced, its receipts, which the list of shards now holds, and unused parts.

    Where this driver may not be alone, unused parts stay for UNUSED_SECONDS: their receipts may still be on their way.
    """
    folder, storage = generations.folder, storage_of(generations.folder)
    if generation > 1:
        _remove_older_parts(folder, generation)
    storage.delete(path for number, paths in generations.segments.items() if number < generation for path in paths)
    storage.delete(run_file(folder, number) for number in generations.begun if number < generation)
    storage.delete([*generations.segments.get(generation, ()), *own_segments])
    _remove_unused_parts(generations, generation, alone=alone)
    storage.delete([run_file(folder, generation)])  # last: while it is there, there is something to clean up


def _remove_unused_parts(generations: Generations, generation: int, *, alone: bool) -> None:
    """Remove the parts of a published generation, and rejects, that neither its manifest nor a stored receipt names.

    Work that was done twice leaves them: by a worker that was slow and not dead, or before a receipt was stored.
    """
    folder, manifest, storage = generations.folder, read_manifest(generations.folder), storage_of(generations.folder)
    if manifest is None or manifest.generation != generation or manifest.version != generations.version:
        return  # what another driver has published meanwhile, whose table may yet name the parts before it, is its own
    segments = Generations.read(folder).segments  # of other drivers, as of now
    named: set[str] = set()
    receipts = [manifest.read_shards(), *read_segments(segments.get(generation, ())).whole]
    for table in batches(receipts, [PART, REJECTS_PART]):
        parts = pc.unique(table[PART]).to_pylist()
        named.update(parts, table[REJECTS_PART].drop_null().to_pylist(), (f"{AUDITS_FOLDER}/{part}" for part in parts))
    for location, names in _part_names(folder):
        paths = [f"{location}/{name}" for name in names if generation_of(name) == generation]
        unused = [path for path in paths if path.removeprefix(f"{folder}/") not in named]
        storage.delete(path for path in unused if alone or _is_old(path))


def _part_names(folder: str) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield the folder of the parts and those of their rejects and audits, each with the names in it that may be parts."""
    for location in (folder, f"{folder}/{REJECTS_FOLDER}", f"{folder}/{AUDITS_FOLDER}"):
        yield location, storage_of(folder).names(location, "part-")


def _is_old(path: str) -> bool:
    """Return whether a part was written so long ago that its receipt would have arrived."""
    entry = storage_of(path).stat(path)
    return entry is not None and entry.modified < time.time() - UNUSED_SECONDS


def _remove_older_parts(folder: str, generation: int) -> None:
    """Remove the parts of earlier generations, and their rejects."""
    for location, names in _part_names(folder):
        older = (name for name in names if (generation_of(name) or generation) < generation)
        storage_of(folder).delete(f"{location}/{name}" for name in older)


def remove_leftovers(generations: Generations) -> None:
    """Remove what killed drivers left on a disk: temporary files, and lists of shards that no manifest names."""
    folder, storage = generations.folder, storage_of(generations.folder)
    receipts = [receipts_folder(folder, number) for number in generations.begun]
    for location in (folder, f"{folder}/{REJECTS_FOLDER}", f"{folder}/{AUDITS_FOLDER}", *receipts):
        hidden = storage.names(location, ".")
        storage.delete(f"{location}/{name}" for name in hidden if TEMPORARY_NAME.fullmatch(name))
    if generations.damaged or generations.may_be_restored():  # what they name is not known, or still wanted
        return
    manifests = (generations.manifest, read_previous_manifest(folder))
    named = {manifest.shards_path for manifest in manifests if manifest}
    lists = [f"{folder}/{name}" for name in storage.names(folder, SHARDS_PREFIX) if SHARDS_NAME.fullmatch(name)]
    storage.delete(path for path in lists if path not in named)
