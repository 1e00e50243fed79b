"""Time short jobs of checkouts of this repository from start to end, in turns, since the machine may be shared.

python docs/results/speed/start.py /path/to/older/checkout --rounds 5
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from jobs.work.demo import make_backbone, write_reviews  # noqa: E402


def seconds_of(checkout: Path, *options: str) -> float:
    """Run a checkout's classify.py on a Ray of its own and return its wall-clock time; raise CalledProcessError if it fails."""
    command = [sys.executable, str(checkout / "jobs" / "classify.py"), *options]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=checkout, env=os.environ | {"RAY_ADDRESS": "local"})
    return time.monotonic() - started


def main() -> None:
    """Print a JSON document: medians, and all rounds, of a run, of one that has nothing to do, and of --help."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", type=Path, nargs="*", help="other checkouts, beside this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1000)
    args = parser.parse_args()
    checkouts = {str(path): path.resolve() for path in args.checkouts} | {"this": REPOSITORY}
    times: dict[str, dict[str, list[float]]] = {name: {"run": [], "nothing": [], "help": []} for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        model, corpus, out = Path(folder, "model"), Path(folder, "corpus.parquet"), Path(folder, "out")
        make_backbone(model)
        write_reviews(corpus, args.rows, seed=0)
        options = ["--model", str(model), "--input", str(corpus), "--output", str(out)]
        for turn in range(args.rounds):
            for name, checkout in list(checkouts.items())[:: 1 if turn % 2 else -1]:
                shutil.rmtree(out, ignore_errors=True)
                for kind, words in (("run", options), ("nothing", options), ("help", ["--help"])):
                    times[name][kind].append(round(seconds_of(checkout, *words), 2))
    medians = {name: {kind: statistics.median(all_) for kind, all_ in kinds.items()} for name, kinds in times.items()}
    print(json.dumps({"medians": medians, "rounds": times}, indent=1))


if __name__ == "__main__":
    main()
