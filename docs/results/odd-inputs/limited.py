#!/usr/bin/env python
"""Run the whole job over the worst files of each format, while the kernel limits every worker of Ray to 1.5 GB.

    python docs/results/odd-inputs/limited.py --model MODEL       as root, on Linux with memory cgroups of version 1

Each process that Ray starts for tasks and actors gets a cgroup of its own, in which the kernel kills it when it has more. What
is printed: the exit code, the rows of every file, and the peak of each kind of worker as the kernel counts it, page cache and
all, but without the first few ms of the process. Files of millions of rows, or of gigabytes of text, are left out: they take
the tokenizer hours.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
CGROUPS = Path("/sys/fs/cgroup/memory/offramp-limited")
FILES = "^(a line|the same, zstd|the same, plain|JSON lines|a quote that|a field|a value)"
GOOD_ROWS = 1000


class Limiter(threading.Thread):
    """Moves every worker of Ray below a process into a cgroup of its own, as soon as it is there."""

    def __init__(self, root: int, limit: int) -> None:
        super().__init__(daemon=True)
        self.root, self.limit, self.done = psutil.Process(root), limit, threading.Event()
        self.names: dict[int, str] = {}
        """Title of every worker that was seen, by its process id."""

    def run(self) -> None:
        while not self.done.wait(0.02):
            with suppress(psutil.NoSuchProcess):
                for process in self.root.children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        self._take(process)

    def _take(self, process: psutil.Process) -> None:
        command = process.cmdline()
        title = command[0] if command else ""
        if not (title.startswith("ray::") or any("default_worker.py" in word for word in command)):
            return
        if process.pid not in self.names:
            group = CGROUPS / str(process.pid)
            group.mkdir(parents=True, exist_ok=True)
            (group / "memory.limit_in_bytes").write_text(str(self.limit))
            with suppress(ProcessLookupError):  # it has just ended
                (group / "cgroup.procs").write_text(str(process.pid))
        if (title.startswith("ray::") and title != "ray::IDLE") or process.pid not in self.names:
            self.names[process.pid] = title

    def peaks(self) -> dict[str, tuple[int, int, int]]:
        """Return how many workers there were of each title, the largest peak in bytes, and how many the kernel killed."""
        found: dict[str, tuple[int, int, int]] = {}
        for pid, title in self.names.items():
            group = CGROUPS / str(pid)
            peak = int((group / "memory.max_usage_in_bytes").read_text())
            killed = int("oom_kill 0" not in (group / "memory.oom_control").read_text())
            count, largest, kills = found.get(title, (0, 0, 0))
            found[title] = (count + 1, max(largest, peak), kills + killed)
        return found

    def close(self) -> None:
        self.done.set()
        self.join()
        for group in CGROUPS.iterdir():
            if group.is_dir():
                with suppress(OSError):
                    group.rmdir()
        with suppress(OSError):
            CGROUPS.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gb", type=float, default=1.5, help="memory of a worker (default: %(default)s)")
    parser.add_argument("--only", default=FILES, help="files with a match in their description (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus, output = Path(folder) / "corpus", Path(folder) / "output"
        corpus.mkdir()
        (corpus / "good.txt").write_text("the room was clean\n" * GOOD_ROWS)
        writing = [sys.executable, HERE / "peaks.py", "--write", corpus, "--only", options.only]
        subprocess.run(writing, check=True)
        job = [sys.executable, HERE.parents[2] / "jobs/classify.py", "--model", options.model, "--input", corpus]
        started = time.monotonic()
        with subprocess.Popen([*job, "--output", output, "--speed", "0.5"]) as running:
            limiter = Limiter(running.pid, int(options.gb * 1e9))
            limiter.start()
            code = running.wait()
        seconds = time.monotonic() - started
        print(
            f"\nexit code {code} after {seconds:.0f} s\n\n| file | stored | rows | rejects |\n| --- | --- | --- | --- |"
        )
        rows, rejects = Counter[str](), Counter[tuple[str, str]]()
        for part in output.glob("part-*.parquet"):
            rows.update(name.rpartition(":")[0] for name in pq.read_table(part, columns=["id"])["id"].to_pylist())
        for part in (output / "_rejects").glob("*.parquet"):
            table = pq.read_table(part, columns=["file", "reason"])
            rejects.update(zip(table["file"].to_pylist(), table["reason"].to_pylist(), strict=True))
        for path in sorted(corpus.iterdir()):
            reasons = [
                f"{count:,} {reason}" for (file, reason), count in rejects.items() if Path(file).name == path.name
            ]
            done = sum(count for file, count in rows.items() if Path(file).name == path.name)
            print(f"| {path.name} | {path.stat().st_size:,} | {done:,} | {', '.join(reasons)} |")
        print("\n| worker | processes | peak MB | killed for memory |\n| --- | --- | --- | --- |")
        for title, (count, peak, killed) in sorted(limiter.peaks().items()):
            print(f"| {title} | {count} | {peak / 1e6:,.0f} | {killed} |")
        limiter.close()
        manifest = output / "_manifest.json"
        print("published" if manifest.exists() and json.loads(manifest.read_text()) else "not published")


if __name__ == "__main__":
    main()
