"""Globs, the same on disks and on S3: `*`, `?` and `[...]` within a name, and `**` for any number of folders."""

import fnmatch
import functools
import re
from dataclasses import dataclass

WILDCARD = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern below a folder: `Glob.of("/data/in/*/a.csv")` has root "/data/in" and parts ("*", "a.csv").

    What begins with `_` or `.` is matched only by a part that begins so itself.
    """

    root: str
    """The folders before the first wildcard, which names are relative to."""
    parts: tuple[str, ...]

    @classmethod
    def of(cls, location: str) -> "Glob | None":
        """Parse a location; return None if it has no wildcard."""
        parts = location.split("/")
        first = next((number for number, part in enumerate(parts) if WILDCARD.search(part)), None)
        return None if first is None else cls("/".join(parts[:first]), tuple(parts[first:]))

    def matches(self, name: str, *, hidden: bool = False) -> bool:
        """Return whether a file of this name below the root is meant; with `hidden`, as if no name were hidden."""
        return len(self.parts) in self.states(name, hidden)

    def may_hold(self, folder: str, *, hidden: bool = False) -> bool:
        """Return whether a file below this folder could be meant."""
        return any(state < len(self.parts) for state in self.states(folder, hidden))

    def states(self, name: str, hidden: bool = False) -> set[int]:
        """Return how many parts of the pattern may have matched at the end of a name."""
        states = self._and_without_folders({0})
        for piece in name.split("/") if name else ():
            following = set()
            for state in states:
                part = self.parts[state] if state < len(self.parts) else None
                if part is None or (is_hidden(piece) and not hidden and part[:1] != piece[:1]):
                    continue
                if part == "**":
                    following.add(state)
                elif _expression(part).match(piece):
                    following.add(state + 1)
            states = self._and_without_folders(following)
        return states

    def _and_without_folders(self, states: set[int]) -> set[int]:
        """Add what is reached by letting `**` stand for no folder at all."""
        reached = set(states)
        for state in sorted(states):
            while state < len(self.parts) and self.parts[state] == "**":
                state += 1
                reached.add(state)
        return reached


def is_hidden(name: str) -> bool:
    """Return whether a name begins with what Hadoop, and all that reads its folders, passes over; a partition does not."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


@functools.lru_cache(maxsize=256)
def _expression(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))
