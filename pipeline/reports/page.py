"""One self-contained HTML page made of sections: tables, facts, bars, lines and figures.

The page has no script and loads no other file, and it is readable on a phone. Bars are HTML, so that their text keeps its size
on a narrow screen; lines are inline SVG under HTML captions; figures are PNG images inside the page. The layout is in
page.html.jinja and page.css beside this module.

    page = render("offramp run", "/data/out", [("rows", "24,000")], [Bars("Exits", [("layer 1", 9600), ("layer 2", 14400)])])
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader

from pipeline.errors import printable
from pipeline.reports import palette

LONG_CELL = 40
"""A column with a cell of more characters than this is laid out as text, whose lines may be broken."""
HALF_PAGE = 60
"""A table whose columns are wider than this many characters together takes the whole width of the page."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of cells that are text already.

    Table("Savings", head=["criterion", "FLOPs"], rows=[["entropy 0.3", "2.10x"], ["patience 2", "1.64x"]])
    """

    title: str
    head: list[str]
    """The names of the columns."""
    rows: list[list[str]]
    """The cells, row by row; every row is as long as the head."""
    note: str = ""

    @property
    def wide(self) -> bool:
        """Whether the table takes the whole width of the page."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        return sum(widths) > HALF_PAGE or "text" in self.kinds()

    def kinds(self) -> list[str]:
        """Return what each column holds, which decides its layout: 'number', 'word' or, where cells are long, 'text'."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.head)
        return [_kind_of(cells) for cells in columns]

    def markdown(self) -> str:
        """Return the table in Markdown, its title above it and its note below."""
        rows = [[printable(cell).replace("|", r"\|") for cell in cells] for cells in (self.head, *self.rows)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (rows[0], ["---"] * len(self.head), *rows[1:])]
        return "\n".join([printable(self.title), "", *lines, *(["", printable(self.note)] if self.note else [])])


def _kind_of(cells: Sequence[str]) -> str:
    """Return the kind of a column with these cells; see `Table.kinds`."""
    if all(cell[:1] in "-0123456789" for cell in cells):
        return "number"
    return "text" if max(map(len, cells)) > LONG_CELL else "word"


@dataclass(frozen=True, slots=True)
class Facts:
    """A list of names and values: Facts("Rows", [("read", "24,240"), ("rejected", "240")])."""

    title: str
    pairs: Sequence[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar as the page shows it."""

    name: str
    count: str
    fraction: str
    """The part of all counts that this one is, in percent."""
    width: float
    """The bar's length in percent of the longest bar."""
    change: str = ""
    """How many percentage points more that is than before."""
    before: float | None = None
    """Where the bar ended before, in percent of the longest bar."""


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar chart of counts: Bars("Exits", [("layer 1", 9600), ("layer 2", 14400)]) shows 40 % and 60 %."""

    title: str
    counts: Sequence[tuple[str, float]]
    note: str = ""
    of: float | None = None
    """What fractions are of; None is the sum of the counts."""
    before: Mapping[str, float] | None = None
    """Earlier fractions by name, to which the change is shown; None shows none."""

    def bars(self) -> list[Bar]:
        """Return the bars in the order of the counts."""
        total = (sum(count for _, count in self.counts) if self.of is None else self.of) or 1
        before = self.before or {}
        most = max([count / total for _, count in self.counts] + [*before.values()], default=0) or 1
        bars = []
        for name, count in self.counts:
            fraction, earlier = count / total, before.get(name, 0.0)
            bar = Bar(name, f"{count:,.0f}", f"{fraction:.1%}", round(100 * fraction / most, 2))
            if self.before is not None:
                change = f"{100 * (fraction - earlier):+.1f}"
                ended = round(100 * earlier / most, 2)
                bar = replace(bar, change="0.0" if change in ("+0.0", "-0.0") else change, before=ended)
            bars.append(bar)
        return bars


@dataclass(frozen=True, slots=True)
class Polyline:
    """One line of a chart as SVG draws it."""

    name: str
    color: str
    points: str
    """'x,y x,y ...' in the units of the chart's viewBox."""


@dataclass(frozen=True, slots=True)
class Lines:
    """A line chart of values at equally spaced steps, whose vertical axis starts at 0.

    Lines("Throughput", {"rows": [900.0, 1100.0, 1000.0]}, first="after 2 s", last="after 8 s", unit="rows a second")
    """

    width: ClassVar[int] = 600
    height: ClassVar[int] = 180
    """Width and height of the SVG's viewBox, which is stretched to the page."""
    title: str
    values: Mapping[str, Sequence[float]]
    """The values of each line, by its name."""
    first: str
    """The caption of the first step."""
    last: str
    """The caption of the last step."""
    unit: str = ""
    note: str = ""

    @property
    def top(self) -> float:
        """The highest value, at the upper edge of the chart."""
        return max((value for line in self.values.values() for value in line), default=0) or 1

    def polylines(self) -> list[Polyline]:
        """Return the lines in the order of the values."""
        drawn = []
        for index, (name, line) in enumerate(self.values.items()):
            step = self.width / max(len(line) - 1, 1)
            points = " ".join(f"{i * step:.1f},{self.height * (1 - v / self.top):.1f}" for i, v in enumerate(line))
            drawn.append(Polyline(name, palette.CYCLE[index % len(palette.CYCLE)], points))
        return drawn


@dataclass(frozen=True, slots=True)
class Figure:
    """A PNG image with a caption below it, which is also its alternative text."""

    title: str
    png: bytes
    caption: str
    note: str = ""

    @property
    def base64(self) -> str:
        """The image as a data URL holds it."""
        return base64.b64encode(self.png).decode()


Section = Table | Facts | Bars | Lines | Figure


def render(title: str, subtitle: str, tiles: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Return the page; every text is escaped: for HTML, and what does not print as `errors.printable` does.

    `tiles` are names and values of the few figures that a reader should see first; there may be none.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=_finalize)
    environment.filters["kind"] = lambda section: type(section).__name__.lower()
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, subtitle=subtitle, tiles=tiles, sections=sections, palette=palette)


def _finalize(value: object) -> object:
    """Escape what does not print in a text of the page, whose length is left alone: images are texts as well."""
    is_html = hasattr(value, "__html__")  # what a macro returns
    return value if is_html or not isinstance(value, str) else printable(value, len(value) * 10)
