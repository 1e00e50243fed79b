"""Drift of what is predicted: a run's rows by class and by score, compared with those of all runs before it."""

from pipeline.calibration.drift.signals import Signal, compare
from pipeline.predicted import Comparison


def prediction_signals(compared: Comparison) -> list[Signal]:
    """Compare the new rows' classes and scores with those of all rows before; nothing where there are none before."""
    now, before, bins = compared.new, compared.all_before, compared.bins
    if before is None or compared.all == now:  # what is overwritten is another run's
        return []
    signals = []
    for name, kind, counts, earlier, names in (
        ("classes", "label" if bins.several else "class", now.classes, before.classes, bins.classes),
        ("scores", "value" if bins.values else "score", now.scores, before.scores, bins.scores),
    ):
        p, q = ([each.get(bin_, 0) for bin_ in names] for each in (earlier, counts))
        if any(p) and any(q):
            signals.append(compare(name, p, q, [f"rows of {kind} {bin_}" for bin_ in names]))
    return signals
