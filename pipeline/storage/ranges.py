"""A file that is read by ranges, each of them by a request."""

from collections.abc import Callable


class RangeFile:
    """A file of some size, whose bytes from the first to the last of a range a function returns."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read = size, read
        self._position = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer, as far as the file goes, by one request; return how many bytes these are."""
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        data = self._read(self._position, self._position + size - 1)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to an offset from the start, the position or the end; return the new position."""
        self._position = max(offset + (0, self._position, self._size)[whence], 0)
        return self._position

    def tell(self) -> int:
        """Return the position in the file."""
        return self._position

    def close(self) -> None:
        """Do nothing, since no connection is held between two reads."""
