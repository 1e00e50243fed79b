"""Folders that `save_to_disk` of Hugging Face datasets wrote: which of their files count is in state.json.

    data-00000-of-00002.arrow  data-00001-of-00002.arrow  dataset_info.json
    state.json    {"_data_files": [{"filename": "data-00000-of-00002.arrow"}, ...], ...}

A set that was shuffled or filtered by an older version has its order in a file of indices beside, which is not followed.
"""

import json
from collections import defaultdict

from pipeline.errors import InputError, printable
from pipeline.storage.locate import storage_of
from pipeline.storage.tree import LeftOut, Tree, join

STATE = "state.json"


def leave_out_unlisted(root: str, tree: Tree) -> None:
    """Leave out the files directly in such folders that do not count.

    Raises InputError where that cannot be known, where a file is missing, and where rows have an order of their own.
    """
    files = defaultdict(list)
    for name in tree.files:
        files[name.rpartition("/")[0]].append(name)
    for folder, there in tree.names_in.items():
        inside = files[folder]
        if not any(name.endswith(".arrow") for name in inside):  # nothing of a saved set is asked for
            continue
        listed = _data_files(join(root, folder))
        if missing := sorted(listed - there):
            where = printable(join(root, folder))
            raise InputError("input", f"{where}: {printable(missing[0])} is missing, which its {STATE} names")
        for name in inside:
            if name.rpartition("/")[2] not in listed:
                del tree.files[name]
                tree.leave_out(LeftOut.UNLISTED, name)


def _data_files(folder: str) -> set[str]:
    """Return the names of the files that count; raise InputError if state.json does not tell."""
    where = printable(folder)
    found = storage_of(folder).read(f"{folder}/{STATE}")
    try:
        state = json.loads(found[0] if found else b"")
        names = [file["filename"] for file in state["_data_files"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            "input", f"{where}: has Arrow files, and a {STATE} that does not tell which of them count"
        ) from error
    if not all(isinstance(name, str) and name and "/" not in name for name in names):
        raise InputError("input", f"{where}: its {STATE} names files of other folders")
    if any(value for key, value in state.items() if key.startswith("_indices")):
        raise InputError(
            "input", f"{where}: its rows have an order of their own, by a file of indices; load it, and save it anew"
        )
    return {*names}
