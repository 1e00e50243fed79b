"""Peers: what users would run in place of the engine, timed beside it in one process on the same token rows.

Each peer is prepared (cast, compiled or exported) and tried on a few rows. One that runs in batches of several sizes keeps the
fastest; one that cannot run here, for want of a package, a GPU or memory, is left out with a note that says why.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from models.early_exit import EarlyExitModel
from models.hugging_face import quiet_transformers
from pipeline.benchmark.measure import Log, System, fastest, synchronizer
from pipeline.benchmark.peers.exported import onnx_runtime, openvino
from pipeline.benchmark.peers.hugging_face import at_every_size, compiled, eager, in_batches
from pipeline.benchmark.peers.padding import BATCH_ROWS, Runner
from pipeline.benchmark.peers.papers import one_row_at_a_time
from pipeline.benchmark.peers.tensorrt import tensorrt
from pipeline.benchmark.workload import Workload
from pipeline.errors import UserError, one_line

QUANTIZATION_ROWS = 256
"""Peers that need sample rows before they start get about this many."""
TRIAL_ROWS = 32
"""Rows that a peer is tried on before it is timed."""
CHOICE_ROWS = 16_384
"""Rows, at most, on which batch sizes are compared: sixteen of the largest batches."""
NOTE_LENGTH = 200
SLOW_ROWS = {"hf-fp32-arrival": 400, "papers-batch-1": 400, "onnx-fp32": 800}
SLOW_ROWS |= {"hf-fp32-sorted": CHOICE_ROWS, "hf-fp32-compiled": CHOICE_ROWS}
"""Slow peers, which run about this many rows of the workload; all results are rows a second, so they stay comparable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInputs:
    """The models and settings that peers are made from."""

    theirs: PreTrainedModel
    """Transformers' model in fp32, on the device."""
    ours: EarlyExitModel
    threads: int
    """CPU threads that a peer may use."""
    calibration: Workload
    """Rows for peers that sample some before they start, for quantization."""

    @property
    def device(self) -> torch.device:
        """The device that transformers' model is on."""
        return next(self.theirs.parameters()).device

    @property
    def on_cpu(self) -> nn.Module:
        """A copy of transformers' model on the CPU."""
        return copy.deepcopy(self.theirs).cpu()

    @property
    def in_bf16(self) -> nn.Module:
        """A copy of transformers' model in bf16."""
        return copy.deepcopy(self.theirs).to(torch.bfloat16)


def _alone(runner: Runner) -> dict[int, Runner]:
    """Return a runner whose batch size is no choice."""
    return {BATCH_ROWS: runner}


PEERS: Mapping[str, Callable[[PeerInputs], dict[int, Runner]]] = {
    "hf-fp32-arrival": lambda inputs: _alone(in_batches(eager(inputs.theirs), inputs.device, in_order_of_length=False)),
    "hf-fp32-sorted": lambda inputs: at_every_size(eager(inputs.theirs), inputs.device),
    "hf-fp32-compiled": lambda inputs: at_every_size(compiled(copy.deepcopy(inputs.theirs)), inputs.device),
    "hf-bf16-sorted": lambda inputs: at_every_size(eager(inputs.in_bf16), inputs.device),
    "hf-bf16-compiled": lambda inputs: at_every_size(compiled(inputs.in_bf16), inputs.device),
    "onnx-fp32": lambda inputs: _alone(onnx_runtime(inputs.on_cpu, int8=False, threads=inputs.threads)),
    "onnx-int8": lambda inputs: _alone(onnx_runtime(inputs.on_cpu, int8=True, threads=inputs.threads)),
    "openvino-bf16": lambda inputs: _alone(
        openvino(inputs.on_cpu, precision="bf16", threads=inputs.threads, calibration=inputs.calibration)
    ),
    "openvino-int8": lambda inputs: _alone(
        openvino(inputs.on_cpu, precision="int8", threads=inputs.threads, calibration=inputs.calibration)
    ),
    "tensorrt-fp16": lambda inputs: tensorrt(inputs.theirs, inputs.ours.shape.max_tokens),
    "papers-batch-1": lambda inputs: _alone(one_row_at_a_time(copy.deepcopy(inputs.ours).to(inputs.device).eval())),
}
"""How to prepare each peer, by the name that users give: a runner for each batch size that it may use."""


def peer_systems(
    names: Sequence[str], model: EarlyExitModel, stored: str | None, work: Workload, device: str, log: Log
) -> tuple[dict[str, System], list[str]]:
    """Return the peers that can run here, and for each of the others a note why it cannot.

    Peers run transformers' own model with the weights in the directory `stored`, or with random ones of the same shape. The
    name of one that had a choice ends in its batch size, such as "hf-bf16-sorted, batch 256".
    """
    with quiet_transformers():
        if stored is not None:
            theirs = AutoModelForSequenceClassification.from_pretrained(
                stored, dtype=torch.float32, attn_implementation="sdpa"
            )
        else:
            theirs = AutoModelForSequenceClassification.from_config(model.config, attn_implementation="sdpa")
    inputs = PeerInputs(
        theirs=theirs.eval().to(device),
        ours=model,
        threads=torch.get_num_threads(),
        calibration=work.about(QUANTIZATION_ROWS),
    )
    systems, notes = {}, []
    for name in names:
        part = work.about(SLOW_ROWS.get(name, len(work.rows)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # exporters warn about models that are not ours to change
                batch_rows, run = _prepare(name, inputs, part, log)
        except Exception as error:  # whatever others' software cannot do here, the comparison goes on without it
            reason = one_line(error, with_type=not isinstance(error, UserError), limit=NOTE_LENGTH)
            notes.append(f"{name}: {reason}")
        else:
            systems[f"{name}, batch {batch_rows:,}" if batch_rows else name] = System(run=run, work=part)
    return systems, notes


def _prepare(name: str, inputs: PeerInputs, work: Workload, log: Log) -> tuple[int | None, Runner]:
    """Prepare a peer, try it, and return its best batch size, None if it had no choice, and the runner for that."""
    runners = PEERS[name](inputs)
    if len(runners) > 1:
        batch_rows = fastest(runners, work.about(CHOICE_ROWS), synchronizer(inputs.device.type), log)
        return batch_rows, runners[batch_rows]
    (run,) = runners.values()
    run(work.about(TRIAL_ROWS))
    return None, run
