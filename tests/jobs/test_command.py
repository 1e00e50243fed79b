"""The command line: config files, precedence, and errors of one line."""

import argparse
from pathlib import Path

import pytest

from jobs.cli import command
from jobs.cli.bulk import actor_bounds
from pipeline.errors import UserError


def new_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("A job.")
    parser.add_argument("--model", required=True, help="model")
    parser.add_argument("--speed", type=float, default=0.1, help="speed")
    parser.add_argument("--keep", nargs="+", default=[], help="columns")
    parser.add_argument("--strict", action="store_true", help="strict")
    parser.add_argument("--head", choices=["a", "b"], default="a", help="head")
    return parser


def config(tmp_path: Path, text: str) -> str:
    (tmp_path / "job.toml").write_text(text)
    return str(tmp_path / "job.toml")


def test_the_command_line_wins_over_the_config_file_and_that_over_defaults(tmp_path: Path) -> None:
    file = config(tmp_path, 'model = "m"\nspeed = 0.5\nkeep = ["a", "b"]\nstrict = true\n')
    args = command.parse(new_parser(), ["--config", file, "--speed", "0.7"])
    assert (args.model, args.speed, args.keep, args.strict, args.head) == ("m", 0.7, ["a", "b"], True, "a")


def test_the_environment_names_a_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_CONFIG", config(tmp_path, 'model = "from-environment"'))
    assert command.parse(new_parser(), []).model == "from-environment"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modle = "m"', "no option 'modle'; options are head, keep, model, speed, strict"),
        ('speed = "fast"', "speed: invalid float value: 'fast'"),
        ('head = "c"', "head: invalid choice: 'c'"),
        ("strict = 1", "strict is true or false, not 1"),
        ("model = [", "Invalid"),
    ],
)
def test_a_wrong_config_file_is_named_with_its_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job\.toml: ") as error:
        command.parse(new_parser(), ["--config", config(tmp_path, text)])
    assert message in str(error.value)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.toml: No such file"):
        command.parse(new_parser(), ["--config", str(tmp_path / "absent.toml")])


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
