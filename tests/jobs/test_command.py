"""The command line: config files, precedence, and errors of one line."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import command
from jobs.cli.bulk import actor_bounds, expects_work
from jobs.cli.main import JOBS, main
from jobs.cli.parser import JobParser
from pipeline.errors import DoesNotFitError, InputError, RefusedError, StorageError, UserError
from tests.support.jobs import REPOSITORY


def new_parser() -> JobParser:
    parser = JobParser("A job.")
    parser.add_argument("--model", required=True, help="model")
    parser.add_argument("--speed", type=float, default=0.1, help="speed")
    parser.add_argument("--keep", nargs="+", default=[], help="columns")
    parser.add_argument("--strict", action="store_true", help="strict")
    parser.add_argument("--peers", nargs="*", type=int, default=[0], help="peers")
    parser.add_argument("--max-rows", type=int, help="rows")
    parser.add_argument("--head", choices=["a", "b"], default="a", help="head")
    return parser


def config(tmp_path: Path, text: str) -> str:
    (tmp_path / "job.toml").write_text(text)
    return str(tmp_path / "job.toml")


def test_the_command_line_wins_over_the_config_file_and_that_over_defaults(tmp_path: Path) -> None:
    file = config(tmp_path, 'model = "m"\nspeed = 0.5\nkeep = ["a", "b"]\nstrict = true\n')
    args = new_parser().parse(["--config", file, "--speed", "0.7"])
    assert (args.model, args.speed, args.keep, args.strict, args.head) == ("m", 0.7, ["a", "b"], True, "a")


def test_an_option_is_given_by_its_whole_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unrecognized arguments: --conf"):
        new_parser().parse(["--model", "m", "--conf", config(tmp_path, "speed = 0.5")])


@pytest.mark.parametrize("word", ["--vers", "--hel", "--version=", "-v", "classi", "--over"])
def test_the_command_abbreviates_nothing_either(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main([word])
    assert "0.1" not in capsys.readouterr().out


@pytest.mark.parametrize("job", JOBS)
def test_no_job_takes_an_abbreviation(job: str) -> None:
    parser = importlib.import_module(f"jobs.{job}").build_parser()
    names = [action.option_strings[-1] for action in parser.options.values()]
    for action in parser.options.values():
        action.required = False
    for name in names:
        for end in range(3, len(name)):
            if name[:end] not in names:
                with pytest.raises(UserError, match="unrecognized arguments"):
                    parser.parse([name[:end], "1"])


def test_a_config_file_without_a_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="config file"):
        new_parser().parse(["--model", "m", "--config", ""])
    monkeypatch.setenv("OFFRAMP_CONFIG", "")
    assert new_parser().parse(["--model", "m"]).model == "m"


def test_the_environment_names_a_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_CONFIG", config(tmp_path, 'model = "from-environment"'))
    assert new_parser().parse([]).model == "from-environment"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modle = "m"', "no option 'modle'; options are head, keep, max-rows, model, peers, speed, strict"),
        ('speed = "fast"', "speed: invalid float value: 'fast'"),
        ('head = "c"', "head: invalid choice: 'c'"),
        ("strict = 1", "strict is true or false, not 1"),
        ("speed = true", "speed: True is not a value of this option"),
        ("speed = [1, 2]", "speed: [1, 2] is not a value of this option"),
        ('keep = [["a"]]', "keep: ['a'] is not a value of this option"),
        ('keep = ["a", "-b"]', "keep: '-b' begins with a dash, which no value of a list may"),
        ('config = "other.toml"', "no option 'config'"),
        ("model = [", "Invalid"),
    ],
)
def test_a_wrong_config_file_is_named_with_its_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job\.toml: ") as error:
        new_parser().parse(["--config", config(tmp_path, text)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "words", "wanted"),
    [
        ("strict = false", ["--strict"], {"strict": True}),
        ("strict = true", [], {"strict": True}),
        ('keep = ["a", "b"]', ["--keep", "c"], {"keep": ["c"]}),
        ('keep = "a"', [], {"keep": ["a"]}),
        ("keep = []", [], {"keep": []}),
        ("speed = -1", [], {"speed": -1.0}),
        ('model = "--odd name"', [], {"model": "--odd name"}),
        ("peers = []", [], {"peers": []}),
        ("peers = [1, 2]", [], {"peers": [1, 2]}),
        ("max_rows = 3", [], {"max_rows": 3}),
        ("max-rows = 3", ["--max-rows", "4"], {"max_rows": 4}),
    ],
)
def test_values_of_the_config_file_are_those_of_the_command_line(
    text: str, words: list[str], wanted: dict[str, object], tmp_path: Path
) -> None:
    file = config(tmp_path, text if "model" in text else f'model = "m"\n{text}')
    args = vars(new_parser().parse(["--config", file, *words]))
    assert {name: args[name] for name in wanted} == wanted


def test_what_neither_has_is_asked_for_and_the_command_line_is_blamed_for_its_own(tmp_path: Path) -> None:
    file = config(tmp_path, "speed = 0.5")
    with pytest.raises(UserError, match=r"^the following arguments are required: --model$"):
        new_parser().parse(["--config", file])
    with pytest.raises(UserError, match=r"^argument --speed: invalid float value: 'fast'$"):
        new_parser().parse(["--config", file, "--model", "m", "--speed", "fast"])
    with pytest.raises(UserError, match=r"^argument --config: expected one argument$"):
        new_parser().parse(["--config"])


def test_fields_are_written_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = new_parser()
    parser.prog = "job"
    command.complain(parser, InputError("max_rows", "and `speed` exclude each other, and so does `nothing`"))
    command.complain(parser, InputError("speeds", "must name a layer once"))
    assert capsys.readouterr().err.splitlines() == [
        "job: error: --max-rows and --speed exclude each other, and so does nothing",
        "job: error: speeds must name a layer once",
    ]


def test_help_shows_defaults_and_calls_jobs_as_they_were_called() -> None:
    parser = JobParser("Do it.\n\n  python jobs/classify.py --speed 1\n")
    parser.add_argument("--speed", type=float, default=0.5, help="speed; see jobs/calibrate.py")
    parser.add_argument("--keep", nargs="+", default=[], help="columns")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--budget", nargs="+", default=[None], help="tokens")
    help_text = parser.format_help()
    assert "speed; see jobs/calibrate.py (default: 0.5)" in help_text
    assert "columns\n" in help_text
    assert "seed (default: 0)" in help_text
    assert "tokens\n" in help_text
    assert "  python jobs/classify.py --speed 1" in help_text
    parser.prog = "offramp classify"
    assert "  offramp classify --speed 1" in parser.format_help()
    assert "see offramp calibrate (default: 0.5)" in parser.format_help()


def test_work_that_failed_ends_with_code_1_and_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(_args: argparse.Namespace) -> int:
        raise command.FailedError("no room\n3 rows are kept")

    with pytest.raises(SystemExit) as stop:
        command.run(job, new_parser(), ["--model", "m"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.endswith(": error: no room\n3 rows are kept\n")


def test_output_that_cannot_be_written_is_no_success() -> None:
    job = "from jobs.cli import command, parser; command.run_alone(lambda _: print('done'), parser.JobParser('A job.'), [])"
    for device, code in (("/dev/null", 0), ("/dev/full", 1)):
        with open(device, "w") as stdout:
            done = subprocess.run(
                [sys.executable, "-c", job],
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
                check=False,
            )
        assert (done.returncode, "No space left" in done.stderr) == (code, code == 1), done.stderr


def test_the_command_without_a_job_teaches_and_refuses_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([])
    assert "offramp classify --model" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["clasify", "--model", "m"])
    assert "invalid choice: 'clasify'" in capsys.readouterr().err


def test_the_command_hands_over_to_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["label", "--model", "m"])
    assert capsys.readouterr().err == (
        "offramp label: error: the following arguments are required: --input, --output\n"
    )


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.toml: No such file"):
        new_parser().parse(["--config", str(tmp_path / "absent.toml")])


def test_errors_of_the_user_end_with_code_2_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(_args: argparse.Namespace) -> int:
        raise UserError("the input\nis wrong")

    monkeypatch.setattr("sys.argv", ["job", "--model", "m"])
    with pytest.raises(SystemExit) as stop:
        command.run(main, new_parser())
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_actors_are_a_number_or_bounds() -> None:
    assert actor_bounds("3") == (3, 3)
    assert actor_bounds("1:8") == (1, 8)
    for wrong in ("0", "8:1", "1:", "a:b", ":2"):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            actor_bounds(wrong)


def test_ray_is_started_early_only_where_work_is_to_be_expected(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "a.txt").write_text("text\n")
    output = {"output": str(tmp_path / "out"), "overwrite": False, "table": None}
    args = argparse.Namespace(model=str(tmp_path / "model"), input=str(tmp_path / "*.txt"), **output)
    assert not expects_work(args)  # a directory without a model
    (tmp_path / "model" / "config.json").write_text("{}")
    assert expects_work(args)
    assert expects_work(argparse.Namespace(**vars(args) | {"model": "some/hub-id"}))
    assert not expects_work(argparse.Namespace(**vars(args) | {"table": "delta"}))  # it may not have all columns
    assert not expects_work(argparse.Namespace(**vars(args) | {"input": str(tmp_path / "*.csv")}))
    (tmp_path / "out").mkdir()
    assert expects_work(args)  # a run that was stopped
    (tmp_path / "out" / "_manifest.json").write_text("{}")
    assert not expects_work(args)
    assert expects_work(argparse.Namespace(**vars(args) | {"overwrite": True}))


HOSTILE = "a\x1b[2J\x1b]0;owned\x07\u202etxt.\udce9"
"""A name as whoever may put files into a corpus may choose it."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError(f"{HOSTILE}: is wrong"), 2),
        (InputError("speed", HOSTILE), 2),
        (FileNotFoundError(2, "No such file", HOSTILE), 2),
        (PermissionError(13, "Permission denied", HOSTILE), 2),
        (RefusedError(f"{HOSTILE}: no"), 2),
        (StorageError(f"{HOSTILE}: failed"), 1),
        (DoesNotFitError(HOSTILE), 1),
        (command.FailedError(f"{HOSTILE}\nsome are kept"), 1),
    ],
)
def test_an_error_prints_names_of_others_escaped_whatever_it_is(
    error: Exception, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def job(_args: argparse.Namespace) -> int:
        raise error

    with pytest.raises(SystemExit) as stop:
        command.run(job, new_parser(), ["--model", "m"])
    assert stop.value.code == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (2 if isinstance(error, command.FailedError) else 1)
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2J\\x1b]0;owned\\x07\\u202etxt." in lines[0]


def test_a_long_message_is_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    command.complain(new_parser(), UserError("x" * 100_000))
    assert len(capfd.readouterr().err) < 3000


def test_the_cause_of_a_failure_prints_names_of_others_escaped() -> None:
    for error in (StorageError(f"{HOSTILE}: no"), RuntimeError(f"pipeline.errors.StorageError: {HOSTILE}: no")):
        assert command.cause_of(error).isprintable()


def test_lines_and_logs_print_names_of_others_escaped() -> None:
    code = f"""
import logging
from jobs.cli import command, parser
def job(_):
    command.print_line({HOSTILE!r})
    logging.getLogger("library").warning("%s", {HOSTILE!r})
command.run(job, parser.JobParser("A job."), [])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert [line.isprintable() for line in (done.stdout + done.stderr).splitlines()] == [True, True]


def test_a_nul_character_in_a_value_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--model: a value has a NUL character"):
        new_parser().parse(["--config", config(tmp_path, 'model = "a\\u0000b"')])
