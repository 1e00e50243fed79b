"""Each room loads only what it may, seen in a fresh interpreter; import-linter's contracts are in pyproject.toml."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import REPOSITORY

MOST_FILES, MOST_LINES = 12, 350
ROOMS = sorted(path for path in (REPOSITORY / "pipeline").iterdir() if (path / "__init__.py").is_file())
FORBIDDEN = {
    "api": {"ray"},
    "benchmark": {"ray"},
    "bulk": set[str](),
    "calibration": {"ray"},
    "cluster": {"torch", "transformers"},
    "corpus": {"ray", "torch", "transformers"},
    "engine": {"pyarrow", "ray"},
    "evaluation": {"ray"},
    "output": {"ray", "torch", "transformers"},
    "reports": {"ray"},
    "serving": set[str](),
    "storage": {"ray", "torch"},
    "tables": {"ray", "torch", "transformers"},
    "training": set[str](),
}
"""What importing a whole room must not load, directly or by way of another module."""
LIGHT = {
    "pipeline.bulk.spec": {"ray", "torch"},
    "pipeline.bulk.actor": {"transformers"},
    "pipeline.bulk.stages": {"torch"},
    "pipeline.engine.packing": {"pyarrow", "torch"},
    "pipeline.serving.app": {"ray"},
    "pipeline.serving.queue": {"ray"},
    "pipeline.training.loop": {"ray"},
}
"""Modules that load less than their room: tasks import them and need no torch, and actors, which need no transformers."""


SERVER = """
import os, sys
import {preloaded}
for line in sys.stdin:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    for name in line.split():
        __import__(name)
    print(*{{name.split(".")[0] for name in sys.modules}}, flush=True)
    os._exit(0)
print("end", flush=True)
"""
"""A fresh interpreter for every line, by fork; torch, where it may be loaded at all, is loaded once and not by each of them."""


class Interpreters:
    """Fresh interpreters, started by one process that has loaded some packages already."""

    def __init__(self, *preloaded: str) -> None:
        code = SERVER.format(preloaded=", ".join(preloaded))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )

    def loaded_by(self, modules: list[str]) -> set[str]:
        """Import modules in an interpreter of their own; return the packages that are loaded there then."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(" ".join(modules) + "\n")
        self.process.stdin.flush()
        loaded = set(self.process.stdout.readline().split())
        assert {modules[0].split(".")[0], "sys"} <= loaded, "an import failed; its traceback is above"
        return loaded


@pytest.fixture(scope="module")
def bare() -> Iterator[Interpreters]:
    with_nothing = Interpreters("sys")
    yield with_nothing
    with_nothing.process.communicate()


@pytest.fixture(scope="module")
def with_torch() -> Iterator[Interpreters]:
    preloaded = Interpreters("torch", "transformers")
    yield preloaded
    preloaded.process.communicate()


def loaded_by(modules: list[str], forbidden: set[str], bare: Interpreters, with_torch: Interpreters) -> set[str]:
    return (bare if forbidden & {"torch", "transformers"} else with_torch).loaded_by(modules)


def modules_of(folder: Path) -> list[str]:
    found = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
    assert found
    return [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in found]


def test_every_room_is_in_the_table() -> None:
    assert [room.name for room in ROOMS] == sorted(FORBIDDEN)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_does_not_load_what_it_may_not_know(room: Path, bare: Interpreters, with_torch: Interpreters) -> None:
    forbidden = FORBIDDEN[room.name] | {"jobs"}
    assert not forbidden & loaded_by(modules_of(room), forbidden, bare, with_torch)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_stays_light(module: str, bare: Interpreters, with_torch: Interpreters) -> None:
    assert not LIGHT[module] & loaded_by([module], LIGHT[module], bare, with_torch)


def test_models_do_not_load_what_they_may_not_know(with_torch: Interpreters) -> None:
    modules = modules_of(REPOSITORY / "models")
    if importlib.util.find_spec("triton") is None:
        modules = [module for module in modules if not module.startswith("models.gpu.kernels.")]
    assert not {"jobs", "pipeline", "pyarrow", "ray"} & with_torch.loaded_by(modules)


def test_no_room_is_a_hall() -> None:
    folders = {path.parent for top in ("models", "pipeline", "jobs") for path in (REPOSITORY / top).rglob("*.py")}
    assert len(folders) > 12
    for folder in folders:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES, folder


def test_no_file_is_too_long() -> None:
    files = [
        path for top in ("models", "pipeline", "jobs", "tests", "docs") for path in (REPOSITORY / top).rglob("*.py")
    ]
    assert len(files) > 100
    for path in files:
        assert len(path.read_text().splitlines()) <= MOST_LINES, path
