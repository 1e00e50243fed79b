"""The report of a run shows all counts, needs no other file, and fits a browser window, on a phone too."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bulk.progress import Timeline
from pipeline.calibration.limits.audited import ClassAudit
from pipeline.calibration.limits.limits import Limits
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import InputFile, list_inputs
from pipeline.histograms import (
    LENGTH_EDGES,
    VALUE_EDGES,
    bin_counts,
    counts_by_group,
    length_bins,
    length_bounds,
    length_histogram,
    uncertainty_bins,
)
from pipeline.output.parts import Output, parquet_bytes
from pipeline.output.receipts import receipts_table
from pipeline.output.totals import Totals
from pipeline.predicted import Comparison, Predicted, PredictionBins
from pipeline.reports.examples import examples
from pipeline.reports.page import Bars, Facts, Figure, Lines, Section, Table, render
from pipeline.reports.predictions import MAX_BARS, predictions
from pipeline.reports.run_report import run_page, sections_of
from tests.support.reports import HOSTILE, compared, example_run, receipt

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "img"}


class Reader(HTMLParser):
    """Collect the text of a page and what it would load; fail on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass  # <polyline .../>

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_shows_all_counts_and_loads_nothing() -> None:
    reader = read(run_page(example_run()))
    text = re.sub(r"\s+", " ", " ".join(reader.text))
    for shown in ("24,000 rows classified", "240 rows rejected", "2.50x", "null_text", "168", "layer 1", "9,600 40.0%"):
        assert shown in text, shown
    for shown in (
        "Unexpected end of <file>",
        "a <b>bold</b> claim",
        "entropy 0.3",
        "60.0%",
        "0.9-1.0",
        "129-192",
        "257 or more",
    ):
        assert shown in text, shown
    for shown in (
        "12 (0.600%)",
        "the limit of 1.000% is broken",
        "length 0.310 0.100 0.250 alarm",
        "2.933 in money, at 2 an hour",
    ):
        assert shown in text, shown
    assert all(load.startswith("data:") for load in reader.loads)
    assert "<script" not in run_page(example_run())


def test_the_page_compares_classes_and_scores_with_the_night_before_largest_movers_first() -> None:
    charts = {chart.title: chart for chart in predictions(compared())}
    assert [*charts] == ["New rows, by class", "New rows, by score", "All rows, by class", "All rows, by score"]
    first, second, *_ = bars = charts["New rows, by class"].bars()
    assert (first.name[:20], first.count, first.fraction, first.change) == (HOSTILE[:20], "2,100", "26.2%", "+24.6")
    assert (second.fraction, second.change) == ("1.2%", "-0.4")
    assert len(bars) == MAX_BARS
    assert "36 others, which change less, have 45.0%" in charts["New rows, by class"].note
    assert "the 6,000 new rows of the manifest before, of 2026-11-26 02:13 UTC" in charts["New rows, by class"].note
    scores = charts["New rows, by score"].bars()
    assert [bar.name for bar in scores] == [f"{n / 20:g} to {(n + 1) / 20:g}" for n in range(12, 20)]
    assert (scores[0].change, scores[-1].change, scores[-1].before) == ("-25.0", "+25.0", 0.0)
    text = "".join(read(run_page(example_run())).text)
    assert HOSTILE[:50] in text
    assert HOSTILE[:20] not in run_page(example_run())


def test_a_first_night_compares_with_nothing_and_values_take_few_bars() -> None:
    bins = PredictionBins.of(["value"], ["LABEL_0"])
    values = np.random.default_rng(0).normal(0, 30, 5000)
    night = Predicted.of(bins, rows=5000, classes=[], scores=bin_counts(values, VALUE_EDGES))
    (chart,) = predictions(Comparison(bins=bins, all=night, new=night))
    assert (chart.title, chart.before, len(chart.counts)) == ("Rows, by value", None, MAX_BARS)
    assert sum(count for _, count in chart.counts) == 5000
    for name, count in chart.counts:
        low, high = map(float, name.split(" to "))
        assert count == ((values > low) & (values <= high)).sum()
    assert predictions(Comparison()) == []


def test_a_run_of_one_shard_has_no_lines_over_time_and_an_empty_one_a_page() -> None:
    assert "over time" not in run_page(example_run(1))
    empty = replace(example_run(1), totals=Totals(), fresh=Totals(), timeline=Timeline(), examples=None)
    assert "Rows" in read(run_page(empty)).text


def test_the_page_of_a_withheld_run_says_so_and_names_a_class_that_is_broken_without_an_audited_row_of_tonight() -> (
    None
):
    broken = ClassAudit(name="spam", limit=0.02, rows=900, missed=60, at_most=0.1, verdict="broken")
    limits = Limits(max_missed=(("spam", 0.02),))
    run = example_run(1)
    audit = replace(run.audit, rows=0, differing=0, limits=limits, classes=[broken])
    text = read(run_page(replace(run, audit=audit, withheld="a limit is broken"))).text
    assert text[text.index("Not published") :][:9].count("a limit is broken") == 1
    assert "1 broken: 'spam' broken (60 of 900 missed, limit 2%)" in text
    assert "Not published" not in read(run_page(run)).text


def test_histograms_add_up_and_lie_in_the_right_bins() -> None:
    doubt = np.array([0.0, 0.04, 0.05, 0.999, 1.0], np.float32)
    assert uncertainty_bins(doubt).tolist() == [0, 0, 1, 19, 19]
    groups = np.array([0, 0, 1, 1, 1])
    assert counts_by_group(groups, uncertainty_bins(doubt), 2, 20) == [[2, *[0] * 19], [0, 1, *[0] * 17, 2]]
    assert length_bins([1, 8, 9, 1000]).tolist() == [0, 0, 1, len(LENGTH_EDGES)]
    lengths = [low for low, _ in length_bounds()] + [high for _, high in length_bounds() if high]
    assert length_histogram(lengths) == [2] * len(LENGTH_EDGES) + [1]
    totals = Totals().plus(replace(receipt(0), length_histogram=[1, 2]))
    totals = totals.plus(replace(receipt(1), length_histogram=[1, 2, 3]))
    assert totals.length_histogram == [2, 4, 3]
    assert sum(totals.uncertainty_histogram) == 2000


def test_rows_over_time_add_up() -> None:
    run = example_run()
    lines = [section for section in sections_of(run) if isinstance(section, Lines)]
    span = run.timeline.last - run.timeline.first
    (values,) = (line.values["rows"] for line in lines if "rows" in line.values)
    assert sum(values) * span / len(values) == pytest.approx(23 * 1010)


def write_shard(output: Output, file: InputFile, rows: pa.Table) -> None:
    """Write a part in which another shard lies before this one, and store their receipts."""
    other = rows.slice(0, 3).set_column(0, "id", pa.array(["z:0", "z:1", "z:2"]))
    done = replace(receipt(0), shard=file.shard_id(0), rows_out=len(rows), rejected={}, read_error=None)
    before = replace(done, shard="0" * 16, rows_out=3)
    placed = output.write([before, done], pa.concat_tables([other, rows]), pa.table({"id": []}))
    segment = parquet_bytes(receipts_table(placed))
    Path(output.folder, "_receipts", "g1").mkdir(parents=True, exist_ok=True)
    Path(output.folder, "_receipts", "g1", "0123456789ab-000000.parquet").write_bytes(segment)


def test_examples_show_the_texts_of_their_rows(tmp_path: Path) -> None:
    """Show rows between rejects, no more of a layer than wanted, and go on where a file has no part."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "_rejects").mkdir(parents=True)
    output = Output(str(tmp_path / "out"))
    texts = [None if row % 5 == 0 else f"text {row} " + "long " * 100 * (row == 1) for row in range(40)]
    for name in "ab":
        pq.write_table(pa.table({"text": texts}), tmp_path / "in" / f"{name}.parquet")
    files = list_inputs(str(tmp_path / "in")).files
    rows = [row for row in range(40) if row % 5]
    part = {
        "id": [f"a.parquet:{row}" for row in rows],
        "label": ["yes"] * 32,
        "score": [0.75] * 32,
        "exit_layer": pa.array([1 if row < 20 else 3 for row in rows], pa.int16()),
        "uncertainty": [row / 100 for row in rows],
    }
    write_shard(output, files[0], pa.table(part))
    columns = Columns(text="text", pair=None, id=None, keep=pa.schema([]))
    table = examples(files, columns, output)
    assert table is not None
    assert [row[0] for row in table.rows] == ["1"] * 10 + ["3"] * 10
    assert table.rows[1] == ["1", "yes", "0.750", "0.020", "a.parquet:2", "text 2 "]
    assert table.rows[10][4:] == ["a.parquet:21", "text 21 "]
    assert table.rows[0][5].endswith(" ...")

    write_shard(output, files[0], pa.table(part).drop_columns("exit_layer"))
    assert examples(files, columns, output) is None


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_errors(tmp_path: Path, width: int) -> None:
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    page = tmp_path / "page.html"
    page.write_text(run_page(example_run()).replace("</body>", probe))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += [f"--window-size={width},900", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    shown = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in shown.stderr
    wide, inner = map(int, re.search(r"<title>(\d+) of (\d+)</title>", shown.stdout).groups())  # type: ignore[union-attr]
    assert wide <= inner  # nothing sticks out to the side
    image = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={image}", page.as_uri()], capture_output=True, timeout=120, check=True)
    assert image.stat().st_size > 10_000


def test_every_kind_of_section_escapes_its_texts() -> None:
    bad = "<i>&"
    sections: list[Section] = [
        Facts(bad, [(bad, bad)], bad),
        Bars(bad, [(bad, 1)], bad),
        Lines(bad, {bad: [1.0, 2.0]}, bad, bad, bad, bad),
        Table(bad, [bad], [[bad]], bad),
        Figure(bad, b"", bad, bad),
    ]
    page = render(bad, bad, [(bad, bad)], sections)
    assert bad not in page
    assert "".join(read(page).text).count(bad) == 2 + 2 + 4 + 3 + 6 + 4 + 3 + 1


def test_what_does_not_print_is_escaped_on_a_page_and_in_markdown() -> None:
    bad = "a\x1b[2J\u202eb\udce9|c\n"
    figure = Figure(bad, b"x" * 10_000, bad, bad)
    table = Table(bad, [bad], [[bad]], bad)
    page = render(bad, bad, [(bad, bad)], [Facts(bad, [(bad, bad)], bad), Bars(bad, [(bad, 1)], bad), table, figure])
    page.encode()  # which a lone surrogate would end with an error, after all the work
    assert all(character.isprintable() for character in page if character != "\n")
    assert page.count("a\\x1b[2J\\u202eb\\udce9|c\\n") == 2 + 1 + 2 + 4 + 3 + 4 + 4
    assert figure.base64 in page
    assert table.markdown().splitlines()[2] == "| a\\x1b[2J\\u202eb\\udce9\\|c\\n |"
