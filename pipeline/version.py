"""The version of offramp, stated here and nowhere else, and the versions of what it runs on."""

import platform
from importlib.metadata import version

__version__ = "0.1.0"


def code_version() -> str:
    """Return the version of the code that runs: the same in a checkout, an editable install and a wheel."""
    return __version__


def versions() -> dict[str, str]:
    """Return the versions of everything that decides a result, by package."""
    packages = ("torch", "transformers", "ray", "pyarrow", "tokenizers")
    return {"offramp": code_version(), "python": platform.python_version()} | {name: version(name) for name in packages}
