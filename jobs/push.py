#!/usr/bin/env python
"""Publish a model on the Hugging Face Hub: weights, config, tokenizer, model card and calibration, in one commit.

It is a job of its own because a model is whole only after the last of several: distilled, calibrated, evaluated. Run it then.
The repository is made if there is none, and is private unless --public is given. Nothing else that lies in the directory goes
there. The token is that of HF_TOKEN or of `hf auth login`.

  python jobs/push.py --model my-model --repo my-name/my-model
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from jobs.cli import command, options
from jobs.cli.parser import JobParser
from pipeline.errors import InputError


def main(args: argparse.Namespace) -> None:
    """Upload the files of the model; what that takes is loaded here: by now the options are known to be right."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from jobs.work import loading
    from models.directory.config import read_config
    from models.directory.files import model_files
    from pipeline.calibration.curve import FILE as CALIBRATION
    from pipeline.reports.card import CARD
    from pipeline.storage.hub import push_files
    from pipeline.training.checkpoint import FOLDER as CHECKPOINT

    directory = Path(loading.writable_model(args.model))
    if (directory / CHECKPOINT).is_dir():
        raise InputError("model", f"{args.model}: its training has not ended; the command that began it goes on")
    read_config(directory)
    files = [*model_files(directory), *(name for name in (CARD, CALIBRATION) if (directory / name).is_file())]
    if not sys.stderr.isatty():
        disable_progress_bars()
    address = push_files(str(directory), files, args.repo, public=args.public)
    command.print_line(f"{len(files)} files are in {args.repo}: {', '.join(files)}")
    command.print_line(address)


def build_parser() -> JobParser:
    """Make the parser of this job's options."""
    parser = JobParser(__doc__, kept="what the Hub has is what it had")
    add = parser.add_argument
    add("--model", required=True, type=options.local_path, metavar="DIR", help="directory of the model")
    add("--repo", required=True, metavar="OWNER/NAME", help="repository on the Hub; made if absent, private")
    add("--public", action="store_true", help="let everybody see the model")
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
