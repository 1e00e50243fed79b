"""What a training is resumed from: one file with weights, optimizer, best weights so far and TrainState.

    OUTPUT/_checkpoint/command.txt          the options that decide the result; another command is refused
    OUTPUT/_checkpoint/[STAGE/]state.pt     replaced as a whole, between two chunks

The folder is removed once the model has been saved.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.storage.locate import write_text

FOLDER = "_checkpoint"
"""Folder of checkpoints inside the output folder, until the training is done."""
STATE = "state.pt"
VERSION = 2
"""Raised when what a checkpoint holds changes: since 2 the branch heads of a frozen backbone are stored side by side."""
COMMAND = "command.txt"


class Checkpoint:
    """The state of a training in one file, which is replaced as a whole or not at all."""

    def __init__(self, folder: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.path, self.parameters, self.optimizer = folder / STATE, parameters, optimizer

    def exists(self) -> bool:
        """Return whether there is something to go on from."""
        return self.path.exists()

    def save(self, train_state: dict[str, Any], best: list[Tensor]) -> None:
        """Write weights, optimizer, TrainState and the best epoch's weights.

        They are streamed to a file: `storage.write` takes bytes, which would hold gigabytes twice. The temporary name is always
        the same, so that what a killed process leaves behind is overwritten by the next one; only rank 0 writes.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "train_state": train_state,
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "best": best,
        }
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def load(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Restore weights and optimizer; return the fields of TrainState and the best epoch's weights."""
        device = self.parameters[0].device
        content = torch.load(self.path, map_location=device, weights_only=True)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, content["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(content["optimizer"])
        return content["train_state"], content["best"]


def claim(output: Path, command: Mapping[str, object]) -> bool:
    """Record in the output folder which command trains into it; return whether that command began there before.

    Raises InputError if another command began there and did not finish.
    """
    folder = output / FOLDER
    note = folder / COMMAND
    options = {**command, "checkpoint version": VERSION}
    text = "".join(f"{name} = {value}\n" for name, value in sorted(options.items()))
    if note.exists():
        before = note.read_text(encoding="utf-8")
        if before == text:
            return True
        differs = sorted({line.split(" = ")[0] for line in set(before.splitlines()) ^ set(text.splitlines())})
        raise InputError(
            "output",
            f"{output}: holds a training that was not finished, with another {', '.join(differs)}. Give the same "
            f"command to go on, choose another folder, or remove {folder}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, text)
    return False


def release(output: Path) -> None:
    """Remove the checkpoints and the claim of a training whose model has been saved."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
