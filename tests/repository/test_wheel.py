"""What is installed: one package, `offramp`, whose modules do not see anybody else's `models`, `pipeline` or `jobs`."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.wheel import FOLDERS, rewrite_imports
from pipeline.benchmark.synthetic import reviews
from pipeline.version import __version__
from tests.support.jobs import REPOSITORY

PACKAGE_FILES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))


def copy_of_the_sources(folder: Path) -> Path:
    """Copy the checkout, so that a build leaves nothing in the repository."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "infra/wheel.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def pip(*words: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    (sources / "build" / "lib" / "stale").mkdir(parents=True)
    (sources / "build" / "lib" / "stale" / "__init__.py").touch()
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), ".", cwd=sources)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", str(site), str(wheel), cwd=site)
    return site


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Make a working directory whose own modules have the names of our folders, and are not to be touched."""
    (tmp_path / "models").mkdir()
    for name in ("models/__init__.py", "pipeline.py", "jobs.py"):
        (tmp_path / name).write_text("raise ImportError('a foreign module was imported')\n")
    return tmp_path


def run(site: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": f"{site}{os.pathsep}{cwd}"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_wheel_adds_one_name_to_site_packages(wheel: Path, installed: Path) -> None:
    assert wheel.name == f"offramp-{__version__}-py3-none-any.whl"
    assert {path.name for path in installed.iterdir()} == {"bin", "offramp", f"offramp-{__version__}.dist-info"}
    assert (installed / f"offramp-{__version__}.dist-info" / "top_level.txt").read_text().split() == ["offramp"]


def test_the_wheel_holds_every_module_and_the_data_of_every_room(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("offramp/") for name in archive.namelist() if "dist-info" not in name}
    modules = {str(path.relative_to(REPOSITORY)) for path in PACKAGE_FILES}
    assert names - modules == {
        "__init__.py", "__main__.py", "py.typed", "pipeline/api/py.typed",
        "pipeline/reports/page.css", "pipeline/reports/page.html.jinja",
    }  # fmt: skip
    assert not modules - names


def test_the_installed_package_is_not_shadowed_by_modules_of_these_names(installed: Path, foreign: Path) -> None:
    code = """
import sys, offramp
assert offramp.__file__.startswith(sys.argv[1]), offramp.__file__
assert not {"torch", "ray", "pyarrow"} & sys.modules.keys()
from offramp import *
print(Classifier.__module__, open_results.__module__, EarlyExitModel.__module__, __version__)
"""
    done = run(installed, foreign, sys.executable, "-c", code, str(installed))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "offramp.pipeline.api.classifier", "offramp.pipeline.output.results", "offramp.models.early_exit", __version__,
    ]  # fmt: skip


def test_the_command_teaches_runs_jobs_and_knows_its_version(installed: Path, foreign: Path) -> None:
    for command in ([sys.executable, "-m", "offramp"], [sys.executable, str(installed / "bin" / "offramp")]):
        taught = run(installed, foreign, *command, "--help")
        assert taught.returncode == 0, taught.stderr
        assert "offramp classify --model" in taught.stdout
        assert run(installed, foreign, *command, "--version").stdout.strip() == f"offramp {__version__}"
    done = run(installed, foreign, sys.executable, "-m", "offramp", "classify", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: offramp classify ")
    assert "Exit codes: 0 done, 1 the work failed" in done.stdout


def test_an_editable_install_offers_the_face_and_the_folders(sources: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-build-isolation", "--target", str(site), "--editable", str(sources), cwd=tmp_path)
    # Without site.py no other editable install is active; the libraries are appended by hand.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    code = f"""
import site, sys
sys.path[:] = [{str(site)!r}, *filter(None, sys.path), *{libraries!r}]
site.addsitedir({str(site)!r})
import jobs, models, offramp, pipeline
from offramp import open_results
from offramp.__main__ import main
print(offramp.__file__, offramp.__version__, open_results.__module__, jobs.__file__)
"""
    done = run(tmp_path, tmp_path, sys.executable, "-S", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(sources / "pipeline/api/__init__.py"), __version__, "pipeline.output.results", str(sources / "jobs/__init__.py"),
    ]  # fmt: skip


def test_a_source_distribution_can_be_built_from(sources: Path, tmp_path: Path) -> None:
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    done = run(tmp_path, sources, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path / "unpacked")
    (root,) = (tmp_path / "unpacked").iterdir()
    assert (root / "infra" / "wheel.py").is_file()
    assert {str(path.relative_to(root)) for path in root.rglob("*.py")} >= {
        str(path.relative_to(REPOSITORY)) for path in PACKAGE_FILES
    }


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("from pipeline.rows import a", "from offramp.pipeline.rows import a"),
        ("from  models import (\n    heads,\n)", "from  offramp.models import (\n    heads,\n)"),
        (
            "def f():\n    'é'; from jobs.cli import x # jobs",
            "def f():\n    'é'; from offramp.jobs.cli import x # jobs",
        ),
        ("import models.errors as e, os", "import offramp.models.errors as e, os"),
        ("import os, pipeline.rows\nx", "import os, offramp.pipeline.rows; from offramp import pipeline\nx"),
        ("import models, jobs", "import offramp.models, offramp.jobs; from offramp import jobs, models"),
        ("from models_of_mine import a\nimport pipelines", "from models_of_mine import a\nimport pipelines"),
        ("from .models import a\nfrom . import jobs", "from .models import a\nfrom . import jobs"),
        ("'from pipeline import a' # import jobs\npipeline.x", "'from pipeline import a' # import jobs\npipeline.x"),
    ],
)
def test_import_statements_are_rewritten_and_nothing_else(source: str, wanted: str) -> None:
    assert rewrite_imports(source.encode()).decode() == wanted


def test_every_module_of_ours_is_rewritten_whole() -> None:
    seen = 0
    for path in PACKAGE_FILES:
        for name in imported_by(rewrite_imports(path.read_bytes())):
            assert name.partition(".")[0] not in FOLDERS, path
            seen += name.startswith("offramp.")
    assert seen > 300


def imported_by(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


PIPELINE = """
import sys

import ray
from offramp import Classifier

if __name__ == "__main__":
    model, corpus, out = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(corpus).filter(lambda row: row["stars"] > 2)
    rows = rows.map_batches(
        Classifier,
        fn_constructor_kwargs={"model": model, "text_column": "review", "speed": 0.6},
        batch_size=64,
        batch_format="pyarrow",
    )
    rows.map_batches(lambda batch: batch, batch_format="pandas").write_parquet(out)
"""


@pytest.mark.e2e
def test_somebody_elses_pipeline_gets_what_the_command_gives(
    installed: Path, foreign: Path, model_directory: Path
) -> None:
    texts: list[str | None] = [review.text for review in reviews(400, seed=6)]
    texts[73:75] = [None, " "]
    corpus = pa.table({"review": texts, "n": range(400), "stars": [n % 5 for n in range(400)]})
    (foreign / "corpus").mkdir()
    for part in range(2):
        pq.write_table(corpus.slice(part * 200, 200), foreign / "corpus" / f"{part}.parquet")
    (foreign / "ours.py").write_text(PIPELINE)
    made = run(installed, foreign, sys.executable, "ours.py", str(model_directory), "corpus", str(foreign / "theirs"))
    assert made.returncode == 0, made.stdout + made.stderr
    options = ["--model", str(model_directory), "--input", "corpus", "--output", "out", "--text-column", "review"]
    options += ["--keep", "n", "--id-column", "n", "--speed", "0.6"]
    done = run(installed, foreign, sys.executable, "-m", "offramp", "classify", *options)
    assert done.returncode == 0, done.stdout + done.stderr

    theirs = pd.read_parquet(foreign / "theirs").sort_values("n", ignore_index=True)
    assert theirs.n.tolist() == [n for n in range(400) if n % 5 > 2]
    unusable = theirs[theirs.label.isna()]
    assert unusable.n.tolist() == [73, 74]
    usable = theirs.dropna(subset=["label"])
    assert len(usable) == 158
    ours = pd.read_parquet(foreign / "out").set_index("n").loc[usable.n.tolist()]
    assert usable.label.tolist() == ours.label.tolist()
    same_exit = usable.exit_layer.to_numpy() == ours.exit_layer.to_numpy()
    assert same_exit.mean() > 0.98  # other rows beside them, so other sums by a last bit
    np.testing.assert_allclose(usable.score[same_exit], ours.score[same_exit], atol=1e-3)
