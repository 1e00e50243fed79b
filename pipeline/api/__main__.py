"""The command `offramp`, also as `python -m offramp`: the only place that imports upwards, from the package to its jobs."""

import sys


def main() -> int:
    """Run the job that the command line names."""
    from jobs.cli.main import main as dispatch

    return dispatch()


if __name__ == "__main__":
    sys.exit(main())
