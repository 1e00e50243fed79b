"""Each room imports only what it may: checked in fresh interpreters."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

ROOMS = {
    "models": ["models.early_exit", "models.criteria", "models.losses", "models.flops"],
    "engine": ["pipeline.engine", "pipeline.packing", "pipeline.training", "pipeline.recipes", "pipeline.report"],
    "text": [
        "pipeline.tokenise",
        "pipeline.source",
        "pipeline.ledger",
        "pipeline.results",
        "pipeline.s3",
        "pipeline.config",
        "pipeline.isolation",
    ],
    "serving": ["pipeline.serving_queue", "pipeline.serving_http", "pipeline.run_report", "pipeline.examples"],
    "stages": [
        "pipeline.classification",
        "pipeline.actor",
        "pipeline.cluster",
        "pipeline.stream",
        "pipeline.workers",
        "pipeline.serving",
    ],
    "integers": ["pipeline.packing"],
}
FORBIDDEN = {
    "models": {"ray", "pyarrow", "pipeline", "jobs"},
    "engine": {"ray", "jobs"},
    "serving": {"ray", "jobs"},
    "text": {"ray", "torch", "transformers", "jobs"},
    "stages": {"jobs"},
    "integers": {"torch", "pyarrow"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_does_not_load_what_it_may_not_know(room: str) -> None:
    code = f"import sys, {', '.join(ROOMS[room])}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True, timeout=300
    )
    assert not FORBIDDEN[room] & set(done.stdout.split())


@pytest.mark.parametrize("room", ["models", "pipeline"])
def test_only_jobs_parse_arguments(room: str) -> None:
    for path in (REPOSITORY / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"argparse", "jobs"}, path


@pytest.mark.parametrize("folder", ["models", "pipeline", "jobs", "tests"])
def test_no_file_is_longer_than_350_lines(folder: str) -> None:
    for path in (REPOSITORY / folder).glob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
