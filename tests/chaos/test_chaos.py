"""Two seeded rounds of chaos on a small corpus, and the auditor on results that are wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.auditor import audit
from tests.chaos.corpus import make_corpus
from tests.chaos.kills import DRIVERS, VICTIMS, plan_of
from tests.support.jobs import REPOSITORY

pytestmark = pytest.mark.e2e


def test_rounds_of_chaos_lose_nothing_and_repeat_nothing() -> None:
    """In a process of its own: Ray's settings are read at its import."""
    command = [
        sys.executable,
        "-m",
        "tests.chaos.rounds",
        "--rounds",
        "1",
        "--seed",
        "1",
        "--files",
        "10",
        "--rows",
        "500",
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=REPOSITORY, env=clean, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 twice, 0 labels differ" in done.stdout
    assert "nothing in time" not in done.stdout


def test_a_hundred_rounds_kill_everything_at_every_step() -> None:
    kills = [kill for number in range(100) for run in plan_of(0, number, 30) for kill in run]
    assert {kill.victim for kill in kills} == {*VICTIMS}
    assert {(kill.victim, kill.step) for kill in kills} >= {
        ("actor", "attempt"), ("workers", "rejects"), ("workers", "writing"), ("driver", "part"), ("driver", "receipt"),
        ("driver", "last part"), ("raylet", "part"), ("raylet", None),
    }  # fmt: skip
    assert plan_of(0, 7, 30) == plan_of(0, 7, 30) != plan_of(1, 7, 30)


def test_second_drivers_begin_before_anything_is_killed() -> None:
    runs = [run for number in range(20) for run in plan_of(0, number, 30, drivers=True)]
    assert {kill.victim for run in runs for kill in run} >= {*DRIVERS, "workers", "driver"}
    assert sum(kill.victim in DRIVERS for run in runs for kill in run) == len(runs)
    assert any(run[0].victim in DRIVERS and run[-1].victim == "driver" for run in runs)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Write a corpus and a right result of it by hand."""
    make_corpus(tmp_path / "in", files=5, rows=200)
    (tmp_path / "out" / "_rejects").mkdir(parents=True)
    shards = []
    for number, path in enumerate(sorted((tmp_path / "in").iterdir())):
        ids = [f"{path.name}:{row}" for row in range(200)]
        bad = [f"{path.name}:96", f"{path.name}:193"]
        good = [row for row in ids if row not in bad]
        if path.name.startswith("truncated"):
            good, bad = [], [path.name]
        part, schema = (
            f"part-{number}.parquet",
            pa.schema({"id": pa.string(), "label": pa.string(), "exit_layer": pa.int16()}),
        )
        rows = {"id": good, "label": ["x"] * len(good), "exit_layer": [1] * len(good)}
        pq.write_table(pa.table(rows, schema=schema), tmp_path / "out" / part)
        pq.write_table(pa.table({"id": bad}), tmp_path / "out" / "_rejects" / part)
        shards.append({"part": part, "rejects_part": f"_rejects/{part}"})
    pq.write_table(pa.Table.from_pylist(shards), tmp_path / "out" / "_shards.parquet")
    (tmp_path / "out" / "_manifest.json").write_text(json.dumps({"shards": {"path": "_shards.parquet"}}))
    return tmp_path


def test_the_auditor_finds_nothing_wrong_with_a_right_result(result: Path) -> None:
    found = audit(result / "in", result / "out")
    assert found.clean, found.line()
    assert found.rows == 5 * 200 + 1


@pytest.mark.parametrize("wrong", ["lost", "twice", "strange", "misplaced", "differing", "unlisted"])
def test_the_auditor_finds_what_is_wrong(result: Path, wrong: str) -> None:
    part, rejects = result / "out" / "part-0.parquet", result / "out" / "_rejects" / "part-0.parquet"
    table = pq.read_table(part)
    reference = result / "reference"
    (result / "out").rename(reference)
    shutil.copytree(reference, result / "out")
    if wrong == "lost":
        pq.write_table(table.slice(1), part)
    elif wrong == "twice":
        pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), part)
    elif wrong == "strange":
        pq.write_table(pa.table({"id": [*pq.read_table(rejects)["id"].to_pylist(), "who:1"]}), rejects)
    elif wrong == "misplaced":
        pq.write_table(table.slice(1), part)
        pq.write_table(pa.table({"id": [*pq.read_table(rejects)["id"].to_pylist(), "000.parquet:0"]}), rejects)
    elif wrong == "differing":
        pq.write_table(table.set_column(1, "label", pa.array(["y"] + ["x"] * (len(table) - 1))), part)
    else:
        shutil.copy(part, result / "out" / "part-unknown.parquet")
    found = audit(result / "in", result / "out", reference)
    assert not found.clean
    assert getattr(found, wrong) == 1
