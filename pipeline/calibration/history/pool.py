"""The audited rows of output folders, pooled: what every exit says of them, for a calibration without a new sample.

    history = read_history(["out"], identity | {"dtype": "auto"}, model, rows=20_000)
    Sample.of(history.recorded, criterion, history.texts.windows.lengths, model.flops)

Rows are audited by a secret draw, whatever exits say of them, and recorded whatever thresholds are in force. So rows of nights
with other thresholds are as good as others, as long as the texts are of one kind and the model is the same.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.early_exit import EarlyExitModel
from pipeline.calibration.curve import LONG_TEXTS, TRUNCATED
from pipeline.calibration.history.nights import Change, change_of, night_of
from pipeline.calibration.texts import without_broken
from pipeline.calibration.verdict import FALSE_ALARMS
from pipeline.engine.texts.rows import TextRows
from pipeline.errors import UserError
from pipeline.evaluation.recorded import AllExits
from pipeline.identity import dtype_of, first_difference
from pipeline.nights import Night
from pipeline.output.generations import Generations
from pipeline.output.manifest import Fingerprint, Manifest
from pipeline.output.parts import TIME_FORMAT, Output, read_audits
from pipeline.output.publish import nights_of
from pipeline.output.receipt_log import READERS, not_among, parse_ids, shard_ids
from pipeline.output.results import finished_shards, published, shards
from pipeline.output.totals import Totals
from pipeline.rows import TokenRows, offsets_of
from pipeline.schema import AUDITS, LENGTHS, LOGITS, LTE, ROW, SHARD
from pipeline.schema import TRUNCATED as CUT
from pipeline.storage.base import absolute

NIGHT, KEY = "night", "key"
"""Columns of pooled rows beside those of AUDITS: when their night was published, and what they are drawn by."""
POOLED = pa.schema([*AUDITS, pa.field(NIGHT, pa.string()), pa.field(KEY, pa.uint64())])


READABLE = ("weights", "dtype", "max-tokens", LONG_TEXTS)
"""Parts that are compared first: another number of tokens, or windows, change the digest of the tokenizer as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """B audited texts of some nights, of W windows in all."""

    recorded: AllExits
    """What every exit says of the windows."""
    texts: TextRows
    """Their lengths alone: nothing is kept of their tokens, which are zeros here."""
    truncated: pa.ChunkedArray
    """Whether each text was cut."""
    found: int
    """Rows of these nights that are recorded, of which B were drawn, and the broken ones."""
    broken: int
    """Drawn rows that are left out, since an exit made no finite numbers of them."""
    nights: int
    """Nights that they are of."""
    precision: str
    """What they were computed in."""
    change: Change | None
    """Since when the limit is broken, which decides the nights; None for all nights."""
    broken_classes: list[str]
    """Classes whose limits are broken, too, by the newest published night: since when is not known."""
    damaged: int
    """Files of audits that cannot be read, or are of another model, and are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the newest published night of a folder was held to, and what its audit has shown of classes."""

    limit: float | None
    """Its limit of all rows; None if it had none."""
    false_alarms: float
    """The probability with which that is ever called broken if it is kept."""
    broken_classes: list[str]
    """Classes whose limits are shown to be broken."""
    published: str
    """When it was published, by UTC."""

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Read it from a manifest; what is of another form, since others may write to the folder, is left out."""
        audit = _block(manifest.facts, "audit")
        limit, chance = audit.get("limit"), _block(audit, "all_nights").get("false_alarms")
        counted = audit.get("classes")
        classes = [each for each in counted if isinstance(each, dict)] if isinstance(counted, list) else []
        return cls(
            limit=limit if isinstance(limit, float) and 0 < limit < 1 else None,
            false_alarms=chance if isinstance(chance, float) and 0 < chance < 1 else FALSE_ALARMS,
            broken_classes=[str(each.get("name")) for each in classes if each.get("verdict") == "broken"],
            published=manifest.nights[-1].published,
        )


def _block(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = facts.get(name)
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A generation of an output folder, published or not: a run may be withheld for its audit, or not have ended."""

    path: str
    fingerprint: Fingerprint
    shards: pa.Table
    """The finished ones, with the columns "shard", "part" and "audited" of their receipts."""
    nights: list[Night]
    judged: Judged | None
    """What its newest published night was held to; None if nothing of it is published."""

    @property
    def precision(self) -> str:
        """What it was computed in."""
        return self.fingerprint.get("dtype", "")

    @property
    def criterion(self) -> str:
        """The thresholds that are in force there."""
        return self.fingerprint.get("criterion", "")

    @classmethod
    def read(cls, folder: str, now: str) -> list[Self]:
        """Read what is published in a folder, after what is to replace it; raise UserError if it holds neither.

        `now`, by UTC, is the night of what is not published yet.
        """
        generations = Generations.read(absolute(folder))
        begun = generations.pending.get(generations.newest())
        manifest = published(folder) if begun is None else generations.manifest
        judged = None if manifest is None else Judged.of(manifest)
        found = []
        if begun is not None:
            output = Output(generations.folder, generations.newest())
            earlier = manifest if generations.published == output.generation else None
            done = finished_shards(output)
            new = not_among(done, np.sort(shard_ids(shards(earlier, ["shard"])))) if earlier else done
            nights = nights_of(Totals().plus_table(new), earlier, now)
            made = earlier.fingerprint if earlier else begun.fingerprint
            found.append(cls(path=generations.folder, fingerprint=made, shards=done, nights=nights, judged=judged))
            manifest = None if earlier else manifest
        if manifest is not None:
            done = shards(manifest, ["shard", "part", "audited"])
            made = manifest.fingerprint
            found.append(
                cls(path=generations.folder, fingerprint=made, shards=done, nights=manifest.nights, judged=judged)
            )
        return found


def read_history(
    folders: Sequence[str],
    now: Mapping[str, str],
    model: EarlyExitModel,
    *,
    rows: int,
    seed: int = 0,
    label_thresholds: tuple[float, ...] = (),
) -> History:
    """Read the audited rows of output folders, at most so many, drawn by the seed, each once.

    `now` is what a calibration would be of: the parts of the model's identity, "long-texts", and "dtype". If the limit that the
    newest night was held to is broken, by the nights with its thresholds, only those since then count. Of a folder in which a
    run replaces results, whatever `now` is of counts. Raises UserError for a folder without results, and if what made them
    differs from `now`, or from folder to folder.
    """
    tonight = time.strftime(TIME_FORMAT, time.gmtime())
    by_folder = [_of_now(Folder.read(folder, tonight), now) for folder in dict.fromkeys(map(absolute, folders))]
    found_in = [*chain(*by_folder)]
    precisions = [folder.precision for folder in found_in]
    if other := next((number for number, name in enumerate(precisions) if name != precisions[0]), 0):
        raise UserError(
            f"{found_in[other].path} was computed in {precisions[other]}, and {found_in[0].path} in {precisions[0]}; "
            "calibrate on one of them"
        )
    judged, nights = _nights_in_force(by_folder)
    change = None if judged is None else change_of(nights, judged.limit, judged.false_alarms)
    pooled, found, damaged = POOLED.empty_table(), 0, 0
    for table in _tables(found_in, model, "" if change is None else change.since):
        damaged += table is None
        if table is not None:
            keys = pa.array(_keys(table, seed))
            pooled, found = pa.concat_tables([pooled, table.append_column(KEY, keys).cast(POOLED)]), found + len(table)
            pooled = _least(pooled, rows) if len(pooled) > 2 * rows else pooled
    pooled = _least(pooled, rows).combine_chunks()
    found = len(pooled) if len(pooled) < rows else found  # each row once, as far as all are here
    kept, recorded, texts = without_broken(*_of_table(pooled, model, label_thresholds))
    return History(
        recorded=recorded,
        texts=texts,
        truncated=pooled[CUT].take(kept),
        found=found,
        broken=len(pooled) - len(kept),
        nights=len(pc.unique(pooled[NIGHT])),
        precision=precisions[0],
        change=change,
        broken_classes=judged.broken_classes if judged else [],
        damaged=damaged,
    )


def _nights_in_force(by_folder: Sequence[Sequence[Folder]]) -> tuple[Judged | None, list[list[Night]]]:
    """Return what the newest published night was held to, and the nights of every folder with its thresholds.

    Of results and those that are to replace them, which are of the same texts, the published ones come first. A first night
    that was withheld has no manifest to say what it was held to: as the nights before it, it is taken.
    """
    known = [(judged, folders[-1].criterion) for folders in by_folder if (judged := folders[0].judged)]
    if not known:
        return None, []
    newest, held = max(known, key=lambda each: each[0].published)
    same = [[folder.nights for folder in reversed(folders) if folder.criterion == held] for folders in by_folder]
    return newest, [nights[0] for nights in same if nights]


def _of_now(generations: Sequence[Folder], now: Mapping[str, str]) -> list[Folder]:
    """Return the generations of a folder that `now` made; raise UserError naming what else made the newest if it made none."""
    differences = [_difference(folder.fingerprint, now) for folder in generations]
    if all(differences):
        raise UserError(f"{generations[0].path} was made with {differences[0]}; its audits are of that")
    made = [folder for folder, difference in zip(generations, differences, strict=True) if not difference]
    return [
        folder for folder in made if folder.precision == made[-1].precision
    ]  # of the published one, where there is one


def _difference(made: Fingerprint, now: Mapping[str, str]) -> str:
    """Describe what else than `now` made results; empty if nothing did."""
    names = dict.fromkeys([*READABLE, *now])
    then = {name: made.get(name, TRUNCATED if name == LONG_TEXTS else "not known") for name in names if name in now}
    then["dtype"] = "auto" if now["dtype"] == "auto" else dtype_of(made.get("dtype") or "not known")
    return first_difference(then, now)


def _tables(folders: Sequence[Folder], model: EarlyExitModel, since: str) -> Iterator[pa.Table | None]:
    """Read the audits of parts, with their NIGHT, of the nights from one on; None for each file that cannot be used."""
    for folder in folders:
        listed = folder.shards.filter(pc.greater(folder.shards["audited"], 0))
        by_part = listed.group_by("part").aggregate([("shard", "list")])
        parts = dict(zip(by_part["part"].to_pylist(), by_part["shard_list"], strict=True))
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(parts), READERS):  # so many in memory at a time
                names = [*parts][start : start + READERS]
                read = pool.map(partial(read_audits, folder.path), names)
                for name, found in zip(names, read, strict=True):
                    if found is None or not _is_of(found[0], model):
                        yield None
                        continue
                    night = night_of(found[1], folder.nights)
                    if night >= since:
                        rows = found[0].filter(pc.is_in(found[0][SHARD], value_set=parts[name].values))
                        yield rows.append_column(NIGHT, pa.array([night] * len(rows), pa.string()))


def _is_of(rows: pa.Table, model: EarlyExitModel) -> bool:
    """Return whether records have as many values as this model's exits give: the folder is not ours alone."""
    exits, learned = len(model.exit_layers), model.lte is not None
    windows = pc.list_value_length(rows[LENGTHS]).to_numpy()
    logits, lte = (pc.list_value_length(rows[name]).to_numpy() for name in (LOGITS, LTE))
    tokens = pc.list_flatten(rows[LENGTHS]).to_numpy()
    whole = (logits == windows * exits * model.shape.classes).all() and (lte == windows * exits * learned).all()
    return bool(whole and (windows > 0).all() and (tokens > 0).all())


def _keys(rows: pa.Table, seed: int) -> np.ndarray:
    """Return a number by which each row is drawn, the same wherever it is found: a hash of shard, row and seed: [B].

    The hash is splitmix64 (Steele, Lea and Flood 2014).
    """
    keys = parse_ids(rows[SHARD]) + rows[ROW].to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = keys + np.uint64(seed & 0xFFFFFFFF) * np.uint64(0xD1B54A32D192ED03)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(keys ^ (keys >> np.uint64(31)))


def _least(pooled: pa.Table, rows: int) -> pa.Table:
    """Return the rows with the least keys, at most so many, each once: in two folders it may have been audited twice."""
    first = np.unique(pooled[KEY].to_numpy(), return_index=True)[1]
    return pooled.take(first[:rows])


def _of_table(
    pooled: pa.Table, model: EarlyExitModel, label_thresholds: tuple[float, ...]
) -> tuple[AllExits, TextRows]:
    """Turn pooled rows into the outputs of all exits, and texts of the same lengths."""
    lengths = pc.list_flatten(pooled[LENGTHS]).to_numpy()
    counts = pc.list_value_length(pooled[LENGTHS]).to_numpy().astype(np.int64)
    exits = len(model.exit_layers)
    logits_WEC = pc.list_flatten(pooled[LOGITS]).to_numpy().reshape(len(lengths), exits, model.shape.classes)
    lte = None if model.lte is None else pc.list_flatten(pooled[LTE]).to_numpy().reshape(len(lengths), exits)
    recorded = AllExits(
        layers=model.exit_layers,
        logits=np.ascontiguousarray(logits_WEC.transpose(1, 0, 2)),
        lte=None if lte is None else np.ascontiguousarray(lte.T),
        boundaries=model.boundaries(label_thresholds),
    )
    tokens = np.zeros(int(lengths.sum()), np.int32)
    windows = TokenRows(token_ids=tokens, offsets=offsets_of(lengths.astype(np.int64)), segments=lengths)
    return recorded, TextRows(windows=windows, counts=counts)
