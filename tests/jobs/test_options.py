"""The options of each job, which are an interface: a change of this table is a change for users, so it is made on purpose."""

import subprocess
import sys
from importlib import import_module

import pytest

from jobs.cli.main import JOBS
from tests.support.jobs import REPOSITORY

OPTIONS = {
    "classify": """
        actors audit audit-fail bundle-rows confidence config criterion dtype endpoint-url examples exits fast-tokenizer
        id-column incremental input keep label-threshold long-texts max-disagreement max-missed max-quality-loss max-tokens
        max-windows model output
        overwrite pair-column patience plan price-per-hour probabilities speed speedup-in strict table target-speedup
        text-column tolerance wait-for window-certain window-combine window-stride
    """,
    "label": """
        actors bundle-rows config dtype endpoint-url examples fast-tokenizer id-column incremental input keep max-tokens
        model no-text output overwrite pair-column plan strict table text-column wait-for
    """,
    "distill": """
        batch-rows checkpoint-seconds config dev epochs head head-learning-rate input label-column label-separator label-share
        labels layers learning-rate limit max-tokens model output pair-column seed temperature text-column train-backbone
        wait-for workers
    """,
    "finetune": """
        backbone batch-rows checkpoint-seconds class-names config dev early-stopping epochs exit-weights head
        head-learning-rate label-column label-separator learning-rate limit max-tokens output pair-column seed strategy task
        text-column train wait-for workers
    """,
    "calibrate": """
        confidence config criterion data dtype from-audits label-column label-separator label-threshold long-texts
        max-disagreement max-tokens
        max-windows model no-timing pair-column plan rows seed temperature text-column tolerance window-certain window-combine
        window-stride
    """,
    "evaluate": """
        card choose compare config criterion data dtype label-column label-separator label-threshold max-tokens metric model
        no-timing output pair-column speeds text-column
    """,
    "push": "config model public repo",
    "benchmark": """
        config dtype exit-every head input max-tokens mean-exit mean-tokens model output pair-column peers repetitions rows
        rows-per-call seed shape sigma speed text-column threads token-budget
    """,
    "serve": """
        batch-tokens config criterion dtype host label-threshold max-rows max-tokens model open patience port queue-tokens
        replicas speed timeout token-file tolerance wait-for
    """,
    "demo": "config folder rows speed",
}


def test_every_job_is_in_the_table_and_a_word_of_the_command() -> None:
    scripts = {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} - {"__init__"}
    assert {*OPTIONS} == scripts == {*JOBS}


@pytest.mark.parametrize("job", OPTIONS)
def test_a_job_has_these_options_and_no_others(job: str) -> None:
    options = import_module(f"jobs.{job}").build_parser().options
    assert sorted(options) == [name.replace("-", "_") for name in OPTIONS[job].split()]
    for name, action in options.items():
        assert action.option_strings == [f"--{name.replace('_', '-')}"]
        assert action.help


HEAVY = {"pandas", "pyarrow", "ray", "scipy", "torch", "transformers"}
PARSES = """
import contextlib, sys
from importlib import import_module
from jobs.cli import command
def fails(main, parser, *words):
    with contextlib.suppress(SystemExit):
        command.run(main, parser, words)
for name in sys.argv[1:]:
    job = import_module(f"jobs.{name}")
    fails(job.main, job.build_parser(), "--help")
    fails(job.main, job.build_parser(), "--no-such-option")
    print("loaded", name, *{module.split(".")[0] for module in sys.modules})
"""


def test_help_and_wrong_options_need_nothing_heavy() -> None:
    """In one fresh interpreter for all jobs: the first that loads something is the culprit."""
    done = subprocess.run(
        [sys.executable, "-c", PARSES, *OPTIONS], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    loaded = {words[1]: {*words[2:]} for line in done.stdout.splitlines() if (words := line.split())[:1] == ["loaded"]}
    assert {*loaded} == {*OPTIONS}
    assert {name: modules & HEAVY for name, modules in loaded.items() if modules & HEAVY} == {}
    assert done.stdout.count("usage: ") == len(OPTIONS)
    assert done.stderr.count("unrecognized arguments: --no-such-option") + done.stderr.count("are required") == len(
        OPTIONS
    )


def test_the_options_of_a_bulk_run_reach_its_request() -> None:
    given = {
        "input": "in", "output": "out", "text_column": "t", "pair_column": "p", "id_column": "i", "keep": ("k", "l"),
        "actors": (2, 3), "bundle_rows": 77, "incremental": True, "overwrite": True, "table": "delta",
    }  # fmt: skip
    line = "--model m --input in --output out --text-column t --pair-column p --id-column i --keep k l --actors 2:3"
    line += " --bundle-rows 77 --incremental --overwrite --table delta"
    args = import_module("jobs.label").build_parser().parse(line.split())
    request = import_module("jobs.work.bulk").request_of(args, model=None, engine=None, results=())
    assert {name: getattr(request, name) for name in given} == given
