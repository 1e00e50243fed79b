"""Versions of offramp and of the packages that it runs on."""

import platform
from importlib.metadata import PackageNotFoundError, version


def code_version() -> str:
    """Return the version of the installed distribution, or "source" when offramp runs from a checkout."""
    try:
        return version("offramp")
    except PackageNotFoundError:
        return "source"


def versions() -> dict[str, str]:
    """Return the versions of everything that may change results: {"offramp": "source", "python": "3.11.9", "torch": ...}."""
    packages = ("torch", "transformers", "ray", "pyarrow", "tokenizers")
    return {"offramp": code_version(), "python": platform.python_version()} | {name: version(name) for name in packages}
