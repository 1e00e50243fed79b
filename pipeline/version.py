"""Versions of offramp and of what it runs on."""

import platform
from importlib.metadata import PackageNotFoundError, version


def code_version() -> str:
    """Version of offramp: of the installed distribution, or 'source' when it runs from a checkout."""
    try:
        return version("offramp")
    except PackageNotFoundError:
        return "source"


def versions() -> dict[str, str]:
    """Versions of all that took part."""
    packages = ("torch", "transformers", "ray", "pyarrow", "tokenizers")
    return {"offramp": code_version(), "python": platform.python_version()} | {name: version(name) for name in packages}
