"""The fingerprint of a run: what decides its predictions, by name, in words where there are some and as a digest elsewhere."""

from collections.abc import Mapping, Sequence

from models.early_exit import EarlyExitModel
from models.exits.criterion import TOLERANCE
from pipeline.corpus.columns import Columns, source_of
from pipeline.corpus.listing import InputFile
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.identity import ModelIdentity
from pipeline.output.generations import Generations
from pipeline.output.manifest import Fingerprint
from pipeline.version import code_version

FOLDERS = "folders"


def fingerprint_of(
    model: EarlyExitModel,
    identity: ModelIdentity,
    engine: EngineConfig,
    *,
    precision: str,
    columns: Mapping[str, str | None],
    schema: Sequence[str],
    tokenizer: TokenizerSpec,
) -> Fingerprint:
    """Name everything that decides predictions, but not where it lies: a copy of a model is the same model.

    `precision` is by `models.precision.precision_on`; `columns` maps meanings to columns of the input, `schema` names those of
    the output. Of the tokenizer, what its digest leaves out is named: windows, and a faster library. Runs before there were any
    of them named none.
    """
    long_texts, library, criterion = tokenizer.long_texts, tokenizer.fast_tokenizer, engine.criterion
    # Audits of values count what is further apart than this. The usual distance has never been named, and patience names all.
    apart = model.regression and criterion.name != "patience" and criterion.tolerance != TOLERANCE
    return (
        identity.parts()
        | ({} if long_texts is None else {"long-texts": long_texts.describe()})
        | ({} if library is None else {"fast-tokenizer": library})
        | {
            "dtype": precision,
            "criterion": f"{criterion.describe()}{f', tolerance {criterion.tolerance:g}' * apart}",
            "exits": " ".join(map(str, engine.exits or model.exit_layers)),
            "columns": " ".join(f"{meaning}={name}" for meaning, name in columns.items()),
            "schema": ", ".join(schema),
            "offramp": code_version(),
        }
    )


def kept_of_folders(
    files: Sequence[InputFile], columns: Columns, keep: Sequence[str], folder: str, *, overwrite: bool
) -> Fingerprint:
    """Name the kept columns that the input's folders give: a file's own column of that name may have other values.

    Where they give none nothing is named, as in runs before they could. For an input without files, which an incremental run
    may have, it is what the results in `folder` say that such a run goes on with.
    """
    if not files:
        before = Generations.read(folder).goes_on_from(overwrite=overwrite)
        return {name: value for name, value in before.items() if name == FOLDERS}
    sources = {source_of(each) for each in keep}
    given = {name for file in files if file.partitions for name in columns.given(file) if name in sources}
    return {FOLDERS: " ".join(sorted(given))} if given else {}
