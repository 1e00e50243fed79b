"""The other reading of the design, measured once: actors for each block of layers, survivors through Ray's object store.

  python docs/results/speed/object_store.py

BERT-base shape, forced exits with mean 4 of 12, looked at after layers 4, 8 and 12. The same rows go through our engine (all
layers in one process, a lane for each core), and through three actors that hold four layers each and hand the hidden states
of the rows that stay to the next. Prints rows/s of both, in turns, and the bytes moved for each row.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import ray
import torch
from transformers import BertConfig

from models.cpu.fused import fuse
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.workload import Workload, make_workload
from pipeline.cluster.connect import join_or_start
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.memory import cpu_sizes
from pipeline.engine.pack import pack
from pipeline.engine.packing import micro_batches, sort_by_length

BLOCKS = ((1, 4), (5, 8), (9, 12))
SHARDS, ROWS, ROUNDS = 8, 500, 3


def new_model() -> EarlyExitModel:
    torch.manual_seed(0)
    model = EarlyExitModel(BertConfig())
    model.add_exits("pooled")
    return model


class Block:
    """Four layers and their exit."""

    def __init__(self, first: int, last: int) -> None:
        torch.set_num_threads(1)
        self.first, self.last = first, last
        self.model = new_model().eval().to(torch.bfloat16)
        self.budget = cpu_sizes(self.model.shape.hidden).token_budget
        for number in range(first, last + 1):
            fuse(self.model.backbone.layer(number), self.budget)

    def run(self, work: Workload, hidden: np.ndarray | None) -> tuple[Workload, np.ndarray]:
        """Run rows in order of length; return those that stay, and their hidden states as 16-bit words [T, H]."""
        outputs, token = [], 0
        with torch.inference_mode():
            for batch in micro_batches(work.rows.lengths, self.budget):
                members = work.rows.take(np.arange(batch.row_start, batch.row_stop))
                if hidden is None:
                    x_TH = self.model.backbone.embeddings(
                        pack(members, batch.groups, batch.padding, torch.device("cpu"))
                    )
                else:
                    words = hidden[token : token + batch.num_tokens]
                    x_TH = torch.from_numpy(np.pad(words, ((0, batch.padding), (0, 0)))).view(torch.bfloat16)
                for number in range(self.first, self.last + 1):
                    x_TH = self.model.backbone.layer(number)(x_TH, batch.groups)
                self.model.exits[str(self.last)](x_TH, batch.groups)
                outputs.append(x_TH[: batch.num_tokens])
                token += batch.num_tokens
            stays = work.exit_plan > self.last
            kept = torch.cat(outputs)[torch.from_numpy(np.repeat(stays, work.rows.lengths))]
        rows = np.flatnonzero(stays)
        return Workload(rows=work.rows.take(rows), exit_plan=work.exit_plan[rows]), kept.view(torch.int16).numpy()


def through_the_object_store(blocks: list[Any], shards: list[Workload]) -> int:
    """Send all shards through the blocks, all in flight; return the bytes of hidden states that moved."""
    first, second, third = blocks
    moved, ends = [], []
    for shard in shards:
        rows, hidden = first.run.options(num_returns=2).remote(shard, None)
        more_rows, more = second.run.options(num_returns=2).remote(rows, hidden)
        moved += [hidden, more]
        ends.append(third.run.options(num_returns=2).remote(more_rows, more)[0])
    ray.get(ends)
    return sum(ray.get(states).nbytes for states in moved)


def main() -> None:
    sizes: dict[str, Any] = {
        "mean_tokens": 50,
        "sigma": 0.6,
        "longest": 512,
        "layers": 12,
        "mean_exit": 4,
        "vocabulary": 30522,
    }
    shards = []
    for seed in range(SHARDS):
        work = make_workload(ROWS, **sizes, seed=seed)
        order = sort_by_length(work.rows.lengths)
        shards.append(Workload(rows=work.rows.take(order), exit_plan=work.exit_plan[order]))
    engine = Engine(
        LoadedModel(new_model(), EngineConfig(criterion=Criterion(speed=0.5), exits=(4, 8), first_token_first=False))
    )
    join_or_start()
    blocks = [ray.remote(Block).options(num_cpus=0.5).remote(first, last) for first, last in BLOCKS]
    for number in range(ROUNDS + 1):  # the first is the warm-up
        started = time.perf_counter()
        moved = through_the_object_store(blocks, shards)
        middle = time.perf_counter()
        for shard in shards:
            engine.run(shard.rows, shard.rule)
        ended = time.perf_counter()
        ours, theirs = SHARDS * ROWS / (ended - middle), SHARDS * ROWS / (middle - started)
        print(
            f"round {number}: engine {ours:.0f} rows/s, object store {theirs:.0f} rows/s ({theirs / ours:.2f})",
            end=", ",
        )
        print(f"{moved / SHARDS / ROWS / 1e3:.1f} kB a row", flush=True)


if __name__ == "__main__":
    main()
