"""Rounds of chaos: kill what runs, run the same command again until it is done, audit, say so in a line.

    python -m tests.chaos.rounds --rounds 100 --seed 0

A round draws its kills from the seed and its number. The cluster, the corpus, the model and the undisturbed run are made once.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.benchmark.synthetic import reviews
from tests.chaos.auditor import Audit, audit, listed_parts
from tests.chaos.corpus import make_corpus
from tests.chaos.kills import DRIVERS, Kill, Watch, plan_of
from tests.chaos.nodes import Nodes
from tests.chaos.places import Bucket, Disk, Place
from tests.support.s3_server import S3Server

MAX_RUNS = 8
"""Of the same command in a round; more is a failure."""
RUN_SECONDS = 400


@dataclass(frozen=True)
class Round:
    """What happened in a round."""

    kills: list[str]
    codes: list[int]
    """Exit codes of the runs, the last of them 0 unless a second driver ended after that."""
    audit: Audit | None
    """None if the command never ended well."""
    seconds: float

    @property
    def clean(self) -> bool:
        return self.audit is not None and self.audit.clean

    def line(self) -> str:
        found = self.audit.line() if self.audit else "never done"
        codes = " ".join(map(str, self.codes))
        return f"{', '.join(self.kills) or 'nothing in time'} | exit {codes} | {found} | {self.seconds:.0f} s"


class Chaos:
    """A corpus, a model, a cluster and the undisturbed result, for any number of rounds.

    The first run of a round has the bundles of the undisturbed one, and later runs larger or smaller ones.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        *,
        files: int,
        rows: int,
        poison: bool = False,
        drivers: bool = False,
        in_bucket: bool = False,
    ) -> None:
        self.folder, self.model, self.corpus = folder, model, folder / "corpus"
        self.drivers, self.in_bucket = drivers, in_bucket
        if not self.corpus.exists():
            make_corpus(self.corpus, files, rows, poison=poison)
        self.bundle_rows = (rows, 2 * rows, rows // 2)
        self.nodes = Nodes()
        self.reference = folder / "undisturbed"
        self.rivals: list[ForkServerProcess] = []
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(["jobs.work.classify", "tests.chaos.auditor"])
        if self._wait(self.start(Disk(self.reference), self.bundle_rows[0], log := folder / "undisturbed.log")) != 0:
            raise RuntimeError(f"the undisturbed run failed: {log.read_text()}")
        first = audit(self.corpus, self.reference)
        if not first.clean:
            raise RuntimeError(f"the undisturbed run is wrong: {first.line()}")
        self.parts = len(listed_parts(self.reference)[0])

    def start(self, output: Place, bundle_rows: int, log: Path) -> ForkServerProcess:
        """Start the job, in a process forked from one that has its imports done: half of a short run are imports."""
        options = [
            "--model",
            str(self.model),
            "--input",
            str(self.corpus),
            "--output",
            output.location,
            "--actors",
            "2",
        ]
        options += ["--bundle-rows", str(bundle_rows)]
        # fp32: where a bundle is halved after two deaths its matrices have other shapes, which bf16 shows.
        options += ["--speed", "0.6", "--dtype", "fp32"]
        environment = {"RAY_ADDRESS": self.nodes.address, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        run = self._fork.Process(target=classify, args=(options, str(log), environment))
        run.start()
        return run

    def round(self, seed: int, number: int) -> Round:
        """Run one round in an output folder of its own, which stays if the round fails."""
        started, copy = time.monotonic(), self.folder / f"round-{number}"
        output: Place = Bucket(f"round-{number}", copy) if self.in_bucket else Disk(copy)
        plan = plan_of(seed, number, self.parts, drivers=self.drivers)
        draw = random.Random(number)
        done: list[str] = []
        codes: list[int] = []
        while 0 not in codes and len(codes) < MAX_RUNS:
            self.nodes.repair()
            self.nodes.wait_until_free()
            bundle_rows, log = self.bundle_rows[len(codes) % len(self.bundle_rows)], copy.with_suffix(".log")
            run = self.start(output, bundle_rows, log)
            for kill in plan.pop(0) if plan else []:
                if self._carry_out(kill, run, output, draw, log):
                    done.append(str(kill))
            codes += [self._wait(each) for each in (run, *self.rivals)]
            self.rivals.clear()
        result = None
        if 0 in codes:
            result = audit(self.corpus, output.fetch(), self.reference, has_orphans=output.has_orphans)
        finished = Round(done, codes, result, time.monotonic() - started)
        if finished.clean:
            shutil.rmtree(copy)
        return finished

    def _wait(self, run: ForkServerProcess) -> int:
        run.join(RUN_SECONDS)
        if run.is_alive():
            run.kill()
            run.join()
        return run.exitcode or 0

    def _carry_out(self, kill: Kill, run: ForkServerProcess, output: Place, draw: random.Random, log: Path) -> bool:
        if not Watch(output, self.parts).wait(kill, over=lambda: not run.is_alive()):
            return False
        if kill.victim == "driver":
            run.kill()
            return True
        if kill.victim in DRIVERS:
            self._begin_beside(run, kill, output, draw, log)
            return True
        hit = self.nodes.kill(kill.victim, draw)
        if kill.victim == "raylet":
            self.nodes.repair()
        return hit

    def _begin_beside(self, run: ForkServerProcess, kill: Kill, output: Place, draw: random.Random, log: Path) -> None:
        """Begin another run in the same folder; a zombie goes on when that is over, or some seconds after its begin."""
        assert run.pid is not None
        if kill.victim == "zombie":
            os.kill(run.pid, signal.SIGSTOP)
        rival = self.start(output, draw.choice(self.bundle_rows), log)
        if kill.victim == "zombie":
            rival.join(draw.choice([RUN_SECONDS, draw.uniform(3, 20)]))
            os.kill(run.pid, signal.SIGCONT)
        self.rivals.append(rival)

    def close(self) -> None:
        self.nodes.close()


def classify(options: list[str], log: str, environment: dict[str, str]) -> None:
    """Run jobs/classify.py in this process, which is new, and end it."""
    os.environ |= environment
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["classify.py", *options]
    import ray

    from jobs import classify as job
    from jobs.cli import command

    try:
        command.run(job.main, job.build_parser())
    finally:
        ray.shutdown()  # which a process of its own does at its exit


def make_model(folder: Path) -> Path:
    """Save a tiny model with random weights and its tokenizer."""
    from tests.support.models import (
        save_tiny_model,
        wordpiece_tokenizer,
    )  # torch, which the rounds themselves do without

    folder.mkdir()
    return save_tiny_model(folder, wordpiece_tokenizer([review.text for review in reviews(500, seed=0)]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round, to go on where a run ended")
    parser.add_argument("--files", type=int, default=30)
    parser.add_argument("--rows", type=int, default=3400, help="of each file")
    parser.add_argument("--poison", action="store_true", help="with rows that raise and rows that kill workers")
    parser.add_argument("--drivers", action="store_true", help="with second drivers, and with some that stop and go on")
    parser.add_argument("--s3", action="store_true", help="with the output in a bucket of an S3 server on this machine")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if args.s3:
            server = stack.enter_context(S3Server())
            server.reset()
            os.environ |= server.environment
        return _rounds(args)


def _rounds(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="offramp-chaos-") as scratch:
        folder = Path(scratch)
        started = time.monotonic()
        chaos = Chaos(
            folder,
            make_model(folder / "model"),
            files=args.files,
            rows=args.rows,
            poison=args.poison,
            drivers=args.drivers,
            in_bucket=args.s3,
        )
        print(f"set up in {time.monotonic() - started:.0f} s: {chaos.parts} parts", flush=True)
        failed = 0
        try:
            for number in range(args.first, args.first + args.rounds):
                result = chaos.round(args.seed, number)
                failed += not result.clean
                print(f"round {number}: {result.line()}", flush=True)
                if not result.clean:
                    kept = Path(tempfile.mkdtemp(prefix="offramp-chaos-failed-"))
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copytree(folder / f"round-{number}", kept / "output", dirs_exist_ok=True)
                    shutil.copy(folder / f"round-{number}.log", kept)
                    print(f"round {number}: FAILED; its output is in {kept}", flush=True)
        finally:
            chaos.close()
        print(f"{args.rounds} rounds, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
