"""The command `offramp`: hand the command line to the job that its first word names, and load no other job."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from pipeline.version import __version__

JOBS = {
    "classify": "classify a corpus: easy texts leave the network early, every row lands once in Parquet",
    "label": "label a corpus with a teacher: the logits of any classifier for every row",
    "distill": "give a classifier exits, from its own answers on unlabelled text",
    "finetune": "fine-tune an encoder on labelled text, into a classifier or into an early-exit model",
    "calibrate": "measure what early exits save and change, so that you can ask for a speed-up or a limit",
    "evaluate": "report quality against cost on labelled text: tables, figures, one HTML page",
    "push": "publish a model on the Hugging Face Hub: weights, config, tokenizer, card and calibration",
    "benchmark": "measure the engine against what you would run instead",
    "serve": "serve a model over HTTP",
    "demo": "show the whole path on a made-up corpus, offline, in some minutes",
}
"""Each job with what it does."""
EXTRAS = {"calibrate": "report", "evaluate": "report", "serve": "serve"}
"""Jobs that need more packages than the others, with the extra that installs them."""
DESCRIPTION = """\
Classify huge text corpora with early-exit transformers on Ray: easy texts leave the network after a few layers.

jobs:
{jobs}

Any fine-tuned Hugging Face classifier will do to begin with. Give it exits from unlabelled text, then classify:

  offramp distill --model my-teacher --input unlabelled/ --output my-model
  offramp classify --model my-model --input corpus/ --output out/ --speed 0.3

The same in Python:

  from offramp import Classifier, open_results
  Classifier.from_pretrained("my-model", speed=0.3)(["the room was clean"]).labels
  open_results("out").to_table().to_pandas()

`offramp demo` needs no model and no data. `offramp JOB --help` says all about a job, with examples.
Exit codes: 0 done, 1 the work failed, 2 the command or its input is wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job that the first word names with the words that follow; without any, print what there is.

    `argv` defaults to the command line, which is what the process is for: it ends with the job.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = new_parser().parse_args(words[:1] or ["--help"]).job
    from jobs.cli import command  # it loads Ray, which --help can do without

    try:
        job = import_module(f"..{name}", __package__)
    except ModuleNotFoundError as error:
        if name not in EXTRAS:
            raise
        print(f"offramp {name}: error: {error}; pip install 'offramp[{EXTRAS[name]}]'", file=sys.stderr)
        return command.WRONG
    parser = job.build_parser()
    parser.prog = f"offramp {name}"
    run = command.run_alone if argv is None else command.run
    run(job.main, parser, words[1:])


def new_parser() -> argparse.ArgumentParser:
    """Build the parser of the first word."""
    jobs = "\n".join(f"  {name:<10} {what}" for name, what in JOBS.items())
    parser = argparse.ArgumentParser(
        prog="offramp",
        usage="offramp JOB [options]",
        description=DESCRIPTION.format(jobs=jobs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("job", choices=JOBS, metavar="JOB", help=argparse.SUPPRESS)
    parser.add_argument("--help", "-h", action="help", help="show this and end")
    parser.add_argument(
        "--version", action="version", version=f"offramp {__version__}", help="show the version and end"
    )
    return parser
