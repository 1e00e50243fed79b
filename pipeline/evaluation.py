"""Quality against cost: one pass through all exits of every row, from which every threshold follows by arithmetic."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.criteria import may_exit, normalised_entropy
from models.early_exit import EarlyExitModel
from pipeline.engine import all_exits
from pipeline.labelled import Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class AllExits:
    """What every exit says of every row. E exits, B rows."""

    layers: tuple[int, ...]
    label_ids: npt.NDArray[np.int64]
    """[E, B]."""
    uncertainty: npt.NDArray[np.float32]
    """[E, B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """Quality and cost at one speed."""

    speed: float
    accuracy: float
    agreement: float
    """Share of rows with the label that full depth gives."""
    mean_exit_layer: float
    flops_speedup: float
    """FLOPs of the plain full-depth model over FLOPs spent, heads included, on the same rows."""
    exits: dict[int, int]
    """Rows by exit layer."""
    exits_that_pay: tuple[int, ...]


def record_all_exits(model: EarlyExitModel, examples: Examples) -> AllExits:
    """Run every row through every exit once, without gradients, in the model's own precision."""
    layers = model.exit_layers
    labels = np.zeros((len(layers), len(examples)), np.int64)
    uncertainty = np.zeros((len(layers), len(examples)), np.float32)
    with torch.inference_mode():
        for rows, logits in all_exits(model.eval(), examples.rows):
            for place, layer in enumerate(layers):
                labels[place, rows] = logits[layer].argmax(-1).cpu().numpy()
                uncertainty[place, rows] = normalised_entropy(logits[layer]).cpu().numpy()
    return AllExits(layers=layers, label_ids=labels, uncertainty=uncertainty)


EXIT_TEST_LAYERS = 0.1
"""Time of looking at an exit, head and re-packing, in layers: 0.03 to 0.12 (docs/results/speed.md)."""


def exits_that_pay(recorded: AllExits, speed: float) -> tuple[int, ...]:
    """Choose the exits with which these rows cost least at this speed, where looking at one costs EXIT_TEST_LAYERS.

    Starts from all exits and drops the one whose loss gains most, until none does. The last layer always stays.
    """
    leaves_EB = may_exit(torch.from_numpy(recorded.uncertainty), speed).numpy()
    leaves_EB[-1] = True
    layers = np.array(recorded.layers)

    def cost(kept: list[int]) -> float:
        first_B = leaves_EB[kept].argmax(0)
        return float(layers[kept][first_B].mean() + EXIT_TEST_LAYERS * first_B.mean())

    kept = list(range(len(layers)))
    while len(kept) > 1:
        without = [[*kept[:place], *kept[place + 1 :]] for place in range(len(kept) - 1)]
        best = min(without, key=cost)
        if cost(best) >= cost(kept):
            break
        kept = best
    return tuple(int(layer) for layer in layers[kept])


def at_speed(model: EarlyExitModel, examples: Examples, recorded: AllExits, speed: float) -> OperatingPoint:
    """Derive what the engine would do at this speed, looking at all exits."""
    if examples.label_ids is None:
        raise ValueError("evaluation needs labels")
    leaves_EB = may_exit(torch.from_numpy(recorded.uncertainty), speed).numpy()
    leaves_EB[-1] = True
    first_B = leaves_EB.argmax(0)
    layers = np.array(recorded.layers)
    exit_layers_B = layers[first_B]
    labels_B = recorded.label_ids[first_B, np.arange(len(first_B))]
    lengths = examples.rows.lengths
    spent = model.flops.full_depth(lengths) if speed <= 0 else model.flops.rows(lengths, exit_layers_B)
    return OperatingPoint(
        speed=speed,
        accuracy=float((labels_B == examples.label_ids).mean()),
        agreement=float((labels_B == recorded.label_ids[-1]).mean()),
        mean_exit_layer=float(exit_layers_B.mean()),
        flops_speedup=float(model.flops.full_depth(lengths).sum() / spent.sum()),
        exits={int(layer): int((exit_layers_B == layer).sum()) for layer in layers},
        exits_that_pay=exits_that_pay(recorded, speed),
    )


def markdown_table(points: list[OperatingPoint]) -> str:
    """Lay operating points out as a Markdown table."""
    layers = list(points[0].exits)
    head = ["speed", "accuracy", "agreement", "mean exit", "fewer FLOPs", *(f"exit {layer}" for layer in layers)]
    head.append("exits that pay")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for p in points:
        cells = [f"{p.speed:.2f}" if p.speed else "full depth", f"{p.accuracy:.4f}", f"{p.agreement:.4f}"]
        cells += [f"{p.mean_exit_layer:.2f}", f"{p.flops_speedup:.2f}x", *(f"{n:,}" for n in p.exits.values())]
        cells.append(" ".join(map(str, p.exits_that_pay)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
