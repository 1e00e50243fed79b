"""Each room loads only what it may, seen in a fresh interpreter; import-linter's contracts are in pyproject.toml."""

import subprocess
import sys
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
    "training": set[str](),
}
"""What importing a whole room must not load, directly or by way of another module."""
LIGHT = {
    "pipeline.bulk.spec": {"ray", "torch"},
    "pipeline.bulk.stages": {"torch"},
    "pipeline.engine.packing": {"pyarrow", "torch"},
    "pipeline.serving.app": {"ray"},
    "pipeline.serving.queue": {"ray"},
    "pipeline.training.loop": {"ray"},
}
"""Modules that load less than their room: workers of the task stages import them, and need no torch."""


def loaded_by(modules: list[str]) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True, timeout=300
    )
    return set(done.stdout.split())


def modules_of(folder: Path) -> list[str]:
    found = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
    assert found
    return [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in found]


def test_every_room_is_in_the_table() -> None:
    assert [room.name for room in ROOMS] == sorted(FORBIDDEN)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_does_not_load_what_it_may_not_know(room: Path) -> None:
    assert not (FORBIDDEN[room.name] | {"jobs"}) & loaded_by(modules_of(room))


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_stays_light(module: str) -> None:
    assert not LIGHT[module] & loaded_by([module])


def test_models_do_not_load_what_they_may_not_know() -> None:
    assert not {"jobs", "pipeline", "pyarrow", "ray"} & loaded_by(modules_of(REPOSITORY / "models"))


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
