"""Figures and pages need no more than is installed: matplotlib where one is drawn, and the template beside its module."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from pipeline.calibration.fit import fit_curve
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.metrics import CLASSIFICATION
from pipeline.evaluation.recorded import AllExits
from pipeline.reports import palette, plots
from pipeline.reports.evaluation_report import comparison_table
from tests.support.jobs import REPOSITORY
from tests.support.samples import SHAPE, made_up

WITHOUT = """
import sys
sys.modules |= dict.fromkeys({blocked!r}, None)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {blocked!r} else found(name, *rest)
{code}
"""
"""Code that runs as if packages were not installed."""


def without(blocked: list[str], code: str) -> str:
    """Run code in a fresh interpreter that lacks some packages, and return its output."""
    command = [sys.executable, "-c", WITHOUT.format(blocked=blocked, code=code)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True, timeout=300).stdout


def evaluation(seed: int) -> Evaluation:
    """Return an evaluation of four exits, later ones being better."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 400)
    logits = [np.eye(3)[labels] * strength + random.normal(0, 1.2, (400, 3)) for strength in (1, 2, 3, 4)]
    made = Evaluation.__new__(Evaluation)
    made.metrics, made.metric, made.label_thresholds = CLASSIFICATION, "accuracy", ()
    made.targets, made.lengths = labels.astype(np.float32), random.integers(5, 60, 400)
    made.flops = FlopCounter(SHAPE, dict.fromkeys((1, 2, 3, 4), "pooled"))
    made.recorded = AllExits(layers=(1, 2, 3, 4), logits=np.stack(logits).astype(np.float32), lte=None)
    return made


def test_all_figures_are_drawn_and_leave_matplotlibs_settings_alone(tmp_path: Path) -> None:
    import matplotlib

    log = tmp_path / "log.jsonl"
    steps: list[dict[str, object]] = [{"step": step, "loss": 1 / (1 + step)} for step in range(40)]
    epochs = [{"step": 20 * epoch, "dev": {"1": 0.5 + epoch / 10, "4": 0.6 + epoch / 10}} for epoch in (1, 2)]
    log.write_text("\n".join(map(json.dumps, [*steps, *epochs])))
    own, before = evaluation(0), dict(matplotlib.rcParams)
    curves = {name: own.curve(name) for name in own.criteria()}
    pictures = plots.figures("own", own, curves, "entropy", {"other": evaluation(1)}, log)
    assert [picture.name for picture in pictures] == [
        "trade-off", "layers", "models", "exits", "uncertainty", "luha", "training",
    ]  # fmt: skip
    calibrated = plots.disagreement_curve(fit_curve(made_up(500, 0), Criterion(speed=1.0)), 0.95)
    pictures.append(plots.Picture("calibration", "", calibrated, ""))
    for picture in pictures:
        assert picture.png().startswith(b"\x89PNG")
        axes = picture.figure.axes[0]
        assert not axes.spines["top"].get_visible()
        assert axes.get_xlabel()
    assert dict(matplotlib.rcParams) == before


def test_models_of_other_sizes_are_drawn_over_the_flops_of_the_first() -> None:
    own, small = evaluation(0), evaluation(1)
    small.targets, small.lengths = own.targets, own.lengths
    small.flops = FlopCounter(replace(SHAPE, layers=2), {2: "pooled"})
    small.recorded = AllExits(layers=(2,), logits=own.recorded.logits[2:3], lte=None)
    ((name, (point,)),) = plots.lines_of(own, {"small": small}, "entropy").items()
    assert name == "small, no early exit"
    ratio = own.flops.full_depth(own.lengths).sum() / small.flops.full_depth(own.lengths).sum()
    assert point.flops_speedup == pytest.approx(ratio)
    assert ratio > 1.9
    lines = {"own": own.curve("entropy"), "small": [point]}
    (row,) = comparison_table("own", lines, "accuracy").rows
    as_good = max(p.flops_speedup for p in lines["own"] if p.quality >= point.quality)
    assert row[:4] == ["small", f"{point.quality:.4f}", f"{ratio:.2f}x", f"{as_good:.2f}x"]
    assert row[-1] == ("own" if as_good > ratio else "small")


def test_lines_take_their_colors_from_the_palette() -> None:
    figure = plots.by_layer({"a": {1: 0.5, 2: 0.6}, "b": {1: 0.4, 2: 0.7}}, "accuracy")
    assert [line.get_color() for line in figure.axes[0].lines] == [palette.BLUE, palette.VERMILION]
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "o"]


def test_reports_need_matplotlib_and_scikit_learn_only_where_they_draw_or_score() -> None:
    code = """
import numpy as np
from pipeline.calibration import fit, temperature, thresholds
from pipeline.errors import UserError
from pipeline.evaluation.metrics import CLASSIFICATION
from pipeline.reports import calibration_report, evaluation_report, page, plots, run_report
assert page.render("t", "s", [], [page.Bars("b", [("a", 1)])])
ones = np.ones(3, np.float32)
assert CLASSIFICATION["accuracy"](ones, ones) == 1
for call in (lambda: plots.by_layer({"a": {1: 0.5}}, "accuracy"), lambda: CLASSIFICATION["f1"](ones, ones)):
    try:
        call()
    except UserError as error:
        print(error)
"""
    assert without(["matplotlib", "sklearn"], code).splitlines() == [
        "matplotlib is not installed: pip install 'offramp[report]'",
        "sklearn is not installed: pip install 'offramp[report]'",
    ]


def test_a_job_that_draws_says_at_once_what_is_not_installed() -> None:
    code = """
from jobs import calibrate
from jobs.cli import command
sys.argv = ["calibrate.py", "--model", "none", "--data", "none"]
sys.stderr = sys.stdout
try:
    command.run(calibrate.main, calibrate.build_parser())
except SystemExit as end:
    print(end.code)
"""
    *_, message, code = without(["matplotlib"], code).splitlines()
    assert (message, code) == ("calibrate.py: error: matplotlib is not installed: pip install 'offramp[report]'", "2")


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$ and $y", "\x1b[2J\u202e\n", "caf\udce9", "m" * 5000, "a^b_c{"])
def test_a_model_of_any_name_is_drawn(name: str, tmp_path: Path) -> None:
    own = evaluation(0)
    curves = {"entropy": own.curve("entropy")}
    pictures = plots.figures(name, own, curves, "entropy", {f"other {name}": evaluation(1)}, tmp_path / "no log")
    for picture in pictures:
        if picture.name in ("layers", "models"):
            assert picture.png().startswith(b"\x89PNG")
