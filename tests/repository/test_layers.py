"""`make check` fails when somebody plants an import upwards or a circle: import-linter is run on a copy with one in it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import REPOSITORY

LINTER = Path(sys.executable).parent / "lint-imports"
PLANTED = {
    "upwards": ("pipeline/corpus/listing.py", "from pipeline.bulk import progress\n", "Rooms import downwards only"),
    "sideways": ("pipeline/serving/queue.py", "from pipeline.bulk import progress\n", "Rooms import downwards only"),
    "a circle in a room": ("pipeline/storage/base.py", "from pipeline.storage import local\n", "No circles"),
    "Ray in the engine": ("pipeline/engine/packing.py", "import ray\n", "The engine knows token ids"),
    "Triton outside models.gpu": ("models/heads.py", "import triton\n", "Triton is imported in models.gpu alone"),
    "a job in the pipeline": ("pipeline/bulk/run.py", "from jobs import classify\n", "Rooms import downwards only"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("jobs", "models", "pipeline"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_make_check_runs_the_linter() -> None:
    assert "lint-imports" in (REPOSITORY / "Makefile").read_text().split("check:")[1].split("\n\n")[0]


def test_the_repository_keeps_its_contracts(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert ", 0 broken" in done.stdout


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(what: str, copy: Path) -> None:
    file, line, contract = PLANTED[what]
    (copy / file).write_text((copy / file).read_text() + line)
    done = lint(copy)
    assert done.returncode == 1
    assert contract in done.stdout.split("Broken contracts")[1]
