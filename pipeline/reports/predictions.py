"""What is predicted, on the page of a run: rows by class and by score, beside those of the manifest before.

What changes from one run to the next shows in the new rows first, so those come first. Classes are in the order of how much
their fraction of the rows has changed or, without a manifest before, of their rows; scores are in theirs.
"""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.predicted import Comparison, Predicted
from pipeline.reports.page import Bars

MAX_BARS = 24
"""Most bars of a chart, so that it fits a screen: further classes are summed up below it, and bins of few rows are joined."""

Groups = Mapping[str, Sequence[str]]
"""The bins of every bar, by its name."""


def predictions(compared: Comparison) -> list[Bars]:
    """Return the charts of the new rows, where there are others, and of all rows; none of what a run does not predict."""
    if compared.all == compared.new:
        return list(_charts(compared, "Rows", compared.all, compared.all_before, ""))
    new = _charts(compared, "New rows", compared.new, compared.new_before, "new ")
    return [*new, *_charts(compared, "All rows", compared.all, compared.all_before, "")]


def _charts(compared: Comparison, title: str, now: Predicted, before: Predicted | None, kind: str) -> Iterator[Bars]:
    """Yield the charts of some rows, by class and by score, beside earlier rows of the same kind."""
    bins = compared.bins
    before = before or Predicted()
    note = f"Percent of {now.rows:,} rows."
    if before.rows:
        since = compared.since.replace("T", " ")[:16]
        note = (
            f"Percent of {now.rows:,} rows; points are the change from the {before.rows:,} {kind}rows of the manifest before, "
            f"of {since} UTC, whose percent is the line at each bar."
        )

    def chart(name: str, groups: Groups, counts: Mapping[str, int], earlier: Mapping[str, int], more: str) -> Bars:
        fractions = {bar: rows / max(before.rows, 1) for bar, rows in _sums(groups, earlier).items()}
        sums = [*_sums(groups, counts).items()]
        return Bars(f"{title}, by {name}", sums, note + more, of=now.rows, before=fractions if before.rows else None)

    if any(now.classes.values()):
        names = _by_change(now, before)
        more = " A row counts once for each of its labels." if bins.several else ""
        if others := names[MAX_BARS:]:
            rows, why = (
                sum(now.classes.get(other, 0) for other in others),
                "change less" if before.rows else "are rarer",
            )
            more += f" {len(others):,} others, which {why}, have {rows / max(now.rows, 1):.1%}."
        shown = {name: [name] for name in names[:MAX_BARS]}
        yield chart("label" if bins.several else "class", shown, now.classes, before.classes, more)
    if now.scores:
        name = "value" if bins.values else "score"
        yield chart(name, _by_range(bins.scores, now, before), now.scores, before.scores, "")


def _sums(bars: Groups, counts: Mapping[str, int]) -> dict[str, int]:
    """Add up the bins of every bar."""
    return {name: sum(counts.get(each, 0) for each in group) for name, group in bars.items()}


def _by_change(now: Predicted, before: Predicted) -> list[str]:
    """Order classes, the one whose fraction has changed most first; the most frequent first where there was none before."""
    scale = now.rows / before.rows if before.rows else 0.0

    def rank(name: str) -> tuple[float, int]:
        rows = now.classes.get(name, 0)
        return -abs(rows - scale * before.classes.get(name, 0)), -rows

    return sorted({**now.classes, **before.classes}, key=rank)


def _by_range(names: Sequence[str], now: Predicted, before: Predicted) -> Groups:
    """Return the bins from the first with a row to the last; where those are many, neighbors of few rows are joined."""
    rows = [now.scores.get(name, 0) + before.scores.get(name, 0) for name in names]
    filled = [number for number, count in enumerate(rows) if count]
    if not filled:
        return {}
    groups = [[number] for number in range(filled[0], filled[-1] + 1)]
    while len(groups) > MAX_BARS:
        sums = [sum(rows[number] for number in group) for group in groups]
        fewest = min(range(len(groups) - 1), key=lambda number: sums[number] + sums[number + 1])
        groups[fewest : fewest + 2] = [groups[fewest] + groups[fewest + 1]]
    return {_range_name(names[group[0]], names[group[-1]]): [names[number] for number in group] for group in groups}


def _range_name(first: str, last: str) -> str:
    """Name neighboring bins: "4 to 5" and "5 to 6" are "4 to 6", and "-1000000 or less" keeps its end."""
    if first == last:
        return first
    if last.startswith("above"):
        return f"above {first.split(' ')[0]}"
    return (
        f"{last.split(' ')[-1]} or less"
        if first.endswith("less")
        else f"{first.split(' ')[0]} to {last.split(' ')[-1]}"
    )
