"""How far a training is (TrainState) and what it reports while it runs (TrainingLog)."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pipeline.training.config import TrainingConfig

TRAINING_LOG = "training.jsonl"
"""Name of the log file, beside the model."""
LOG_SECONDS = 15.0
"""Seconds between two progress lines."""
LOG_STEPS = 50
"""Steps between two lines of the log file."""

Log = Callable[[str], None]
"""Takes one line for people to read, as `print` does."""


@dataclass(slots=True)
class TrainState:
    """How far a training is; with weights and optimizer, all that a killed one needs to go on."""

    epoch: int = 1
    done_chunks: list[str] = field(default_factory=list)
    """Keys of the chunks of this epoch that are done, of all workers."""
    fraction: float = 0.0
    """Fraction of this epoch that is done."""
    step: int = 0
    rows: int = 0
    """Rows seen, over all workers and epochs."""
    seconds: float = 0.0
    scores: list[dict[str, float]] = field(default_factory=list)
    """Dev scores after each epoch, by exit layer (as text, for JSON)."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each epoch."""
    best_epoch: int = 1
    finished: bool = False
    loss_sum: float = 0.0
    """Sum of the losses of this worker's rows in this epoch, as far as they are numbers; `loss_rows` counts these rows."""
    loss_rows: int = 0
    epoch_steps: int = 0
    """Steps of this epoch so far."""
    left_out: int = 0
    """Those of them that changed nothing, since their gradients were no numbers."""

    @property
    def best_scores(self) -> dict[str, float]:
        """Dev scores of the best epoch, by exit layer."""
        return self.scores[self.best_epoch - 1]

    def selection_scores(self, branches_only: bool) -> list[float]:
        """Return, for each epoch, the scalar by which the best one is chosen."""
        return [selection_score(scores, branches_only) for scores in self.scores]

    def start_next_epoch(self) -> None:
        """Reset what counts within an epoch."""
        self.epoch, self.done_chunks, self.fraction = self.epoch + 1, [], 0.0
        self.loss_sum, self.loss_rows, self.epoch_steps, self.left_out = 0.0, 0, 0, 0


def selection_score(scores: dict[str, float], branches_only: bool) -> float:
    """Return the scalar used for model selection: the mean over the branch exits, or the score of the last exit."""
    *branches, last = [scores[layer] for layer in sorted(scores, key=int)]
    return sum(branches) / len(branches) if branches_only and branches else last


class TrainingLog:
    """Progress lines for people, and a file with a line of JSON for every LOG_STEPS-th step and every epoch.

    {"step": 50, "epoch": 1, "rows": 0, "loss": 0.61}                             loss of this worker in that step
    {"step": 94, "epoch": 1, "rows": 12000, "loss": 0.4, "dev": {"1": 0.81, ...}}  mean loss of the epoch; dev scores by exit
    """

    def __init__(self, log: Log, log_file: Path | None, config: TrainingConfig) -> None:
        self.log, self.log_file, self.config = log, log_file, config
        self.last_line = time.monotonic()

    def resume(self, step: int) -> None:
        """Drop from the log file what a killed run wrote after the checkpoint of this step."""
        if self.log_file is None or not self.log_file.exists():
            return
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self.log_file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def end_step(self, state: TrainState, loss: Tensor, fraction: float, seconds: float) -> None:
        """Report a step if one is due; `fraction` is that of the whole training, `seconds` what it has taken so far.

        `loss`, a scalar on the device, is read only then: that waits until the device has done the step.
        """
        if state.step % LOG_STEPS == 0:
            self._write(state, float(loss))
        if time.monotonic() - self.last_line <= LOG_SECONDS:
            return
        self.last_line = time.monotonic()
        left = f"  about {seconds * (1 - fraction) / fraction:.0f} s left" if fraction else ""
        rate = state.step * self.config.batch_rows / seconds
        self.log(f"{fraction:4.0%}  step {state.step:,}  loss {float(loss):.4f}  {rate:,.0f} rows/s{left}")

    def end_epoch(self, state: TrainState, score: float) -> None:
        """Report an epoch, whose loss and dev scores are the last of the state's; `score` is the one it is judged by."""
        self.log(
            f"epoch {state.epoch}/{self.config.epochs}: loss {state.losses[-1]:.4f}, dev {score:.4f}, "
            f"{state.rows / state.seconds:,.0f} rows/s, {state.seconds:.0f} s"
        )
        self._write(state, state.losses[-1], dev=state.scores[-1])

    def _write(self, state: TrainState, loss: float, dev: dict[str, float] | None = None) -> None:
        """Append a line to the log file."""
        if self.log_file is None:
            return
        line = {"step": state.step, "epoch": state.epoch, "rows": state.rows, "loss": round(loss, 6)}
        with open(self.log_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | ({"dev": dev} if dev else {})) + "\n")
