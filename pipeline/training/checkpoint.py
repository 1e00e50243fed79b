"""What a training run is resumed from: trained weights, optimizer, best state so far and position, in one file."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.storage.locate import write_text

FOLDER = "_checkpoint"
"""Inside the output folder, until the training is done."""
STATE = "state.pt"
COMMAND = "command.txt"


class Checkpoint:
    """One file in a folder, replaced whole or not at all."""

    def __init__(self, folder: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.path, self.parameters, self.optimizer = folder / STATE, parameters, optimizer

    def exists(self) -> bool:
        return self.path.exists()

    def save(self, position: dict[str, Any], best: list[Tensor]) -> None:
        """Write everything down, under a temporary name first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "position": position,
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "best": best,
        }
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def load(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Put weights and optimizer back; return position and best state."""
        device = self.parameters[0].device
        state = torch.load(self.path, map_location=device, weights_only=True)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        return state["position"], state["best"]


def claim(output: Path, command: dict[str, str]) -> bool:
    """Note in the output folder which command trains into it; say whether it was begun before.

    Raises UserError if another command was begun there and not finished.
    """
    folder = output / FOLDER
    note = folder / COMMAND
    text = "".join(f"{name} = {value}\n" for name, value in sorted(command.items()))
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
    """The training is done and saved: forget how it got there."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
