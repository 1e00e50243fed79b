"""Custom resources say where stages run, on a real cluster of three nodes."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "results" / "nodes.py"


def test_actors_and_tasks_run_on_the_nodes_that_offer_their_resource(model_directory: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(model_directory), "--rows", "800", "--only", "divided"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "800 rows in" in done.stdout
    seen = re.findall(r"^  (\w+) +on (head|node \d, \w+) +seen at work", done.stdout, re.MULTILINE)
    assert ("classify", "node 2, classify") in seen
    assert {place for stage, place in seen if stage == "classify"} == {"node 2, classify"}
    assert {place for stage, place in seen if stage != "classify"} <= {"node 1, tokenise"}
