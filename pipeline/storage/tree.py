"""The files below a folder, by its plain listing or by a glob; nothing is passed over in silence.

On disks links are followed. A folder or a file that several names lead to counts once: under the name without a link if there
is one, else under the first of the shortest. A link that leads nowhere is refused. On S3 a name is all that follows the
folder's, slashes side by side among it.
"""

import contextlib
import errno
import heapq
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from pipeline.errors import InputError, printable
from pipeline.storage.base import Entry, translate_errors
from pipeline.storage.globs import Glob, is_hidden
from pipeline.storage.layouts import OUR_RESULTS, is_saved, layout_of

NOT_THERE = {errno.ENOENT, errno.ENOTDIR}

Identity = tuple[int, int | str]
"""Device and inode; the path in place of an inode that the file system does not know."""


class OwnResultsError(InputError):
    """Raise for a folder that holds results of offramp, which whoever knows its manifest can list."""


class LeftOut(StrEnum):
    """Why a name of a listing is not read, as it completes "3 names ..."."""

    HIDDEN = "beginning with _ or ."
    TWICE = "of what has another name already"
    NO_FILE = "of pipes, sockets or devices"
    OTHER_KIND = "of other kinds"
    UNLISTED = "that state.json does not name"


@dataclass(slots=True)
class Tree:
    """What was found below a folder."""

    files: dict[str, Entry] = field(default_factory=dict)
    """Files by their names, relative to the folder."""
    left_out: dict[LeftOut, list[str]] = field(default_factory=dict)
    """Names of all else, by the reason."""
    is_folder: bool = False
    """Whether it was asked for as a folder, and not by a glob."""
    matched_folders: bool = False
    """Whether the glob matches folders, of which nothing is read."""
    linked_folders: list[str] = field(default_factory=list)
    """Real paths of the folders that links lead to."""
    names_in: dict[str, set[str]] = field(default_factory=dict)
    """Names in the folders whose state.json says which files count, by the folders' names."""
    layouts: dict[str, str] = field(default_factory=dict)
    """Folders that are not to be read by their listing, by name, and what is to be said of them."""

    def leave_out(self, why: LeftOut, name: str) -> None:
        """Note a name that is not read."""
        self.left_out.setdefault(why, []).append(name)

    def note_layout(self, folder: str, names: set[str], inside: Callable[[str], Collection[str]]) -> None:
        """Note what `layouts` says of a folder by the names in it, and by those in its folders."""
        layout = layout_of(names, inside)
        if layout is not None:
            self.layouts[folder] = layout
        elif is_saved(names):
            self.names_in[folder] = names

    def refuse_layouts(self, root: str) -> None:
        """Raise InputError if a file lies in a folder that is not to be read by its listing."""
        for name in self.files if self.layouts else ():
            for folder in _parents(name):
                if folder in self.layouts:
                    layout = self.layouts[folder]
                    kind = OwnResultsError if self.is_folder and not folder and layout == OUR_RESULTS else InputError
                    raise kind("input", f"{printable(join(root, folder))}: {layout}")


def join(folder: str, name: str) -> str:
    """Put names together, either of which may be empty."""
    return f"{folder}/{name}" if folder and name else folder or name


def _parents(name: str) -> Iterator[str]:
    """Yield the folders that a file lies in: "a/b" and "a" and "" for "a/b/c"."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name
    yield ""


def tree_of_entries(folder: str, entries: Iterable[Entry], glob: Glob | None) -> Tree:
    """Make the tree of the objects below an s3:// address."""
    tree = Tree()
    names: dict[str, set[str]] = {}
    hidden: dict[str, None] = {}
    for entry in entries:
        name = entry.path.removeprefix(folder)[1:]
        pieces = name.split("/")
        for depth, piece in enumerate(pieces):
            names.setdefault("/".join(pieces[:depth]), set()).add(piece)
        first_hidden = next((depth for depth, piece in enumerate(pieces) if is_hidden(piece)), len(pieces))
        if glob.matches(name) if glob is not None else first_hidden == len(pieces):
            tree.files[name] = entry
        elif glob is None or glob.matches(name, hidden=True):
            hidden["/".join(pieces[: first_hidden + 1])] = None
    tree.matched_folders = glob is not None and any(name and glob.matches(name) for name in names)
    for name in hidden:
        tree.leave_out(LeftOut.HIDDEN, name)
    for name, there in names.items():
        tree.note_layout(name, there, partial(_names_below, names, name))
    return tree


def _names_below(names: dict[str, set[str]], folder: str, inner: str) -> set[str]:
    return names.get(join(folder, inner), set())


def tree_on_disk(folder: str, glob: Glob | None, is_readable: Callable[[str], bool]) -> Tree:
    """Walk a folder; raise InputError for a link that leads nowhere, StorageError for a folder that cannot be listed.

    Of several names of a file, those are preferred that `is_readable`.
    """
    return _Walk(glob, is_readable).of(folder)


@dataclass(slots=True)
class _File:
    """A file that the walk has come to."""

    name: str
    entry: Entry
    identity: Identity
    by_link: bool
    several_names: bool
    """Whether other names may lead to it: it was reached by a link, or has hard links."""


class _Walk:
    """A walk over folders, those without a link first."""

    def __init__(self, glob: Glob | None, is_readable: Callable[[str], bool]) -> None:
        self.glob, self.is_readable = glob, is_readable
        self.tree = Tree()
        self.files: list[_File] = []
        self.links: list[tuple[int, str, str]] = []
        """Links that are to be followed, with their depth and names; a heap, so that these say which is the first."""
        self.seen: dict[tuple[Identity, frozenset[int]], str] = {}
        """Names of the folders that were entered, by what of the glob they match, which under another name may be more."""

    def of(self, folder: str) -> Tree:
        """Walk all that is below a folder."""
        self._enter(os.path.realpath(folder), "", by_link=False)
        while self.links:
            _depth, name, path = heapq.heappop(self.links)
            self._follow(name, path)
        for file in self._once():
            self.tree.files[file.name] = file.entry
        return self.tree

    def _enter(self, path: str, name: str, *, by_link: bool) -> None:
        """Walk a folder and the folders in it."""
        waiting = [(path, name)]
        while waiting:
            path, name = waiting.pop()
            with translate_errors(path), _unless_gone():
                key = _identity(os.stat(path), path), frozenset(self.glob.states(name) if self.glob else ())
                if (first := self.seen.setdefault(key, name)) != name:
                    self._leave_twice(name, first)
                    continue
                with os.scandir(path) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
                self.tree.note_layout(name, {entry.name for entry in entries}, partial(_names_in, path))
                folders = [folder for entry in entries for folder in self._take(entry, name, by_link=by_link)]
                waiting += reversed(folders)

    def _take(self, entry: os.DirEntry[str], folder: str, *, by_link: bool) -> Iterator[tuple[str, str]]:
        """Take a file, note a link, and yield path and name of a folder to be entered."""
        name = join(folder, entry.name)
        if not self._is_asked_for(name):
            if is_hidden(entry.name) and self._is_asked_for(name, hidden=True):
                self.tree.leave_out(LeftOut.HIDDEN, name)
        elif entry.is_symlink():
            heapq.heappush(self.links, (name.count("/"), name, entry.path))
        elif entry.is_dir(follow_symlinks=False):
            self._note_match(name)
            yield entry.path, name
        else:
            with _unless_gone():
                self._take_file(entry.path, name, entry.stat(follow_symlinks=False), by_link=by_link)

    def _is_asked_for(self, name: str, *, hidden: bool = False) -> bool:
        if self.glob is None:
            return hidden or not is_hidden(name.rpartition("/")[2])
        return self.glob.matches(name, hidden=hidden) or self.glob.may_hold(name, hidden=hidden)

    def _note_match(self, folder: str) -> None:
        self.tree.matched_folders |= self.glob is not None and self.glob.matches(folder)

    def _follow(self, name: str, path: str) -> None:
        """Take what a link leads to."""
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in NOT_THERE | {errno.ELOOP}:
                target = printable(os.readlink(path))
                raise InputError("input", f"{printable(path)}: is a link to {target}, which is not there") from error
            with translate_errors(path):
                raise
        real = os.path.realpath(path)
        if stat.S_ISDIR(status.st_mode):
            self.tree.linked_folders.append(real)
            self._note_match(name)
            self._enter(real, name, by_link=True)
        else:
            self._take_file(real, name, status, by_link=True)

    def _take_file(self, path: str, name: str, status: os.stat_result, *, by_link: bool) -> None:
        if self.glob is not None and not self.glob.matches(name):
            return
        if not stat.S_ISREG(status.st_mode):
            self.tree.leave_out(LeftOut.NO_FILE, name)
            return
        entry = Entry(path, status.st_size, str(status.st_mtime_ns), status.st_mtime)
        several = by_link or status.st_nlink > 1
        self.files.append(_File(name, entry, _identity(status, path), by_link, several))

    def _once(self) -> Iterator[_File]:
        """Yield the files, each once."""
        first: dict[Identity, str] = {}
        linked = {file.identity for file in self.files if file.several_names}
        for file in sorted(self.files, key=self._rank):
            if file.identity in linked and (name := first.setdefault(file.identity, file.name)) != file.name:
                self._leave_twice(file.name, name)
            else:
                yield file

    def _rank(self, file: _File) -> tuple[bool, bool, int, str]:
        return not self.is_readable(file.name), file.by_link, file.name.count("/"), file.name

    def _leave_twice(self, name: str, first: str) -> None:
        self.tree.leave_out(LeftOut.TWICE, f"{name} (which is {first or 'the folder itself'})")


def _identity(status: os.stat_result, path: str) -> Identity:
    return status.st_dev, status.st_ino or path


def _names_in(path: str, folder: str) -> list[str]:
    with translate_errors(path), _unless_gone():
        return os.listdir(os.path.join(path, folder))
    return []


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """Pass over what is removed while it is listed."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
