"""One self-contained HTML page out of sections: facts, bars, lines, tables. No script, no other file; readable on a phone.

Bars are HTML, so that their text keeps its size on a narrow screen; lines are inline SVG under HTML captions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, which color-blind readers can tell apart."""
LONG_CELL = 40
"""Characters from which a table's cell may be broken into lines."""
WIDTH, HEIGHT = 600, 180
"""Of a line chart, in its own units: it is stretched to the page."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, the first row being the head."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""

    def kinds(self) -> list[str]:
        """Return what each column holds, which decides how it is laid out: 'number', 'word' or, where long, 'text'."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.head)
        return [_kind_of(cells) for cells in columns]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.head, ["---"] * len(self.head), *self.rows)]
        return "\n".join([f"{self.title}", "", *lines, *(["", self.note] if self.note else [])])


def _kind_of(cells: Sequence[str]) -> str:
    if all(cell[:1] in "-0123456789" for cell in cells):
        return "number"
    return "text" if max(map(len, cells)) > LONG_CELL else "word"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they are."""

    title: str
    pairs: Sequence[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Counts by name, one bar a name, with their share of the sum."""

    title: str
    counts: Sequence[tuple[str, float]]
    note: str = ""

    def rows(self) -> list[tuple[str, str, str, float]]:
        """Name, count, share of the sum, width in percent of the longest bar."""
        total = sum(count for _, count in self.counts) or 1
        most = max((count for _, count in self.counts), default=0) or 1
        return [(n, f"{c:,.0f}", f"{c / total:.1%}", round(100 * c / most, 2)) for n, c in self.counts]


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over equally spaced steps, one line a name; the lowest value shown is 0."""

    title: str
    values: Mapping[str, Sequence[float]]
    first: str
    """Caption of the first step, and below, of the last."""
    last: str
    unit: str = ""
    note: str = ""

    @property
    def top(self) -> float:
        return max((value for line in self.values.values() for value in line), default=0) or 1

    def paths(self) -> list[tuple[str, str, str]]:
        """Name, color, and points in the chart's units."""
        drawn = []
        for place, (name, line) in enumerate(self.values.items()):
            step = WIDTH / max(len(line) - 1, 1)
            points = " ".join(f"{i * step:.1f},{HEIGHT * (1 - v / self.top):.1f}" for i, v in enumerate(line))
            drawn.append((name, COLORS[place % len(COLORS)], points))
        return drawn


Section = Table | Facts | Bars | Lines

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6573; --line: #dfe3e8; --fill: #0072b2 }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; color: var(--ink) }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 3rem }
main > section { min-width: 0 } main > .Table:has(td.text) { grid-column: 1 / -1 }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p { margin: .4rem 0 } .note, figcaption { color: var(--soft); font-size: .9rem }
table { border-collapse: collapse; font-size: .9rem } .wide { overflow-x: auto }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child, .word, .text { text-align: left } td.text { white-space: normal; min-width: 14rem }
figure { margin: 2rem 0 } img { max-width: 100%; height: auto }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0 }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3 } .tile span { color: var(--soft); font-size: .85rem }
dl { display: grid; grid-template-columns: fit-content(35%) 1fr; gap: .2rem 1rem; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.bars { display: grid; grid-template-columns: max-content 1fr max-content max-content; gap: .15rem .7rem; align-items: center;
  font-size: .9rem; font-variant-numeric: tabular-nums }
.bars .bar { height: 1rem; background: var(--fill); border-radius: 0 .2rem .2rem 0 }
.bars .number, .bars .share { text-align: right } .bars .share { color: var(--soft) }
svg.lines { display: block; width: 100%; height: 11rem; border-bottom: 1px solid var(--line); overflow: visible }
svg.lines polyline { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; stroke-linejoin: round }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: .85rem }
.key { display: inline-flex; align-items: center; gap: .35rem; margin-right: 1rem; font-size: .9rem }
.key i { width: .8rem; height: .8rem; border-radius: .15rem }
@media (max-width: 32rem) { h1 { font-size: 1.25rem } h2 { margin-top: 1.7rem } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{{ title }}</title>
<style>{{ style|safe }}</style></head><body>
<h1>{{ title }}</h1><p class="note">{{ subtitle }}</p>
<div class="tiles">{% for name, value in tiles %}<div class="tile"><b>{{ value }}</b><span>{{ name }}</span></div>
{% endfor %}</div>
<main>{% for section in sections %}<section class="{{ kind(section) }}"><h2>{{ section.title }}</h2>
{% if kind(section) == 'Facts' %}<dl>{% for name, value in section.pairs %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>
{% elif kind(section) == 'Bars' %}<div class="bars">{% for name, count, share, width in section.rows() -%}
<span>{{ name }}</span><div><div class="bar" style="width: {{ width }}%"></div></div><span class="number">{{ count }}</span>
<span class="share">{{ share }}</span>{% endfor %}</div>
{% elif kind(section) == 'Lines' %}
<p>{% for name, color, _ in section.paths() %}<span class="key"><i style="background: {{ color }}"></i>{{ name }}</span>
{% endfor %}</p>
<div class="ends"><span>{{ '{:,.4g}'.format(section.top) }} {{ section.unit }}</span></div>
<svg class="lines" viewBox="0 0 {{ width }} {{ height }}" preserveAspectRatio="none" role="img"
 aria-label="{{ section.title }}">
{% for _, color, points in section.paths() %}<polyline points="{{ points }}" stroke="{{ color }}"/>{% endfor %}</svg>
<div class="ends"><span>{{ section.first }}</span><span>{{ section.last }}</span></div>
{% else %}<div class="wide"><table><thead>
<tr>{% for cell in section.head %}<th class="{{ section.kinds()[loop.index0] }}">{{ cell }}</th>
{%- endfor %}</tr></thead><tbody>
{% for row in section.rows %}<tr>{% for cell in row %}<td class="{{ section.kinds()[loop.index0] }}">{{ cell }}</td>
{%- endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}</section>
{% endfor %}</main></body></html>
"""


def render(title: str, subtitle: str, tiles: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Return the page; every text is escaped. `tiles` are the few figures to see first."""
    page = Environment(autoescape=True).from_string(PAGE)
    page.globals["kind"] = lambda section: type(section).__name__
    return page.render(
        title=title, subtitle=subtitle, tiles=tiles, sections=sections, style=STYLE, width=WIDTH, height=HEIGHT
    )
