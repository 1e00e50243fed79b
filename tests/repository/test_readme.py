"""What the README tells people to type exists, and parses."""

import functools
import re
import shlex
import stat
from pathlib import Path

import pytest

from pipeline.version import __version__
from tests.support.jobs import REPOSITORY, run_job_here

README = (REPOSITORY / "README.md").read_text()
DOCUMENTS = [
    path
    for path in sorted(REPOSITORY.rglob("*.md"))
    if not {".venv", "node_modules"} & set(path.relative_to(REPOSITORY).parts)
]
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
JOBS = sorted({command[command.index("jobs/") :] for command in COMMANDS if "jobs/" in command})


def test_the_readme_shows_jobs_and_targets() -> None:
    assert len(JOBS) >= 4
    assert "make demo" in COMMANDS
    assert "make test" in COMMANDS


@functools.cache
def help_of(job: str) -> str:
    done = run_job_here(Path(job).name, "--help")
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("line", JOBS)
def test_every_job_of_the_readme_takes_these_options(line: str) -> None:
    name, *words = shlex.split(line)
    help_text = help_of(name)
    for word in words:
        if word.startswith("--"):
            assert f"{word} " in help_text or f"{word}\n" in help_text, f"{name} has no {word}"


@pytest.mark.parametrize("job", sorted(path.name for path in (REPOSITORY / "jobs").glob("*.py")))
def test_jobs_are_executable_and_modules_are_not(job: str) -> None:
    path = REPOSITORY / "jobs" / job
    is_script = path.read_text().startswith("#!/usr/bin/env python")
    assert bool(path.stat().st_mode & stat.S_IXUSR) == is_script


def test_the_changelog_has_a_section_for_this_version_and_for_what_comes() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert "## [Unreleased]" in changelog


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_the_first_lines_of_python_run(model_directory: Path) -> None:
    first = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len(first.splitlines()) <= 8
    names: dict[str, object] = {}
    exec(first.replace('"my-model"', repr(str(model_directory))), names)
    assert len(names["results"].labels) == 2  # type: ignore[attr-defined]
