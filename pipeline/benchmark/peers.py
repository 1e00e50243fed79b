"""Peers: what users would run in place of the engine, timed beside it in one process on the same token rows.

Every peer is a function that prepares the model (casts, compiles or exports it) and returns a Runner, which classifies a
workload. Peers of packages that are not installed raise MissingPackageError when they are prepared.
"""

import contextlib
import copy
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from models.early_exit import EarlyExitModel
from models.length_group import LengthGroup
from pipeline.benchmark.workload import Workload
from pipeline.engine.pack import pack
from pipeline.errors import require
from pipeline.rows import IntArray, TokenRows

BATCH_ROWS = 32
"""The batch size of most scripts, and of the papers' training."""
INPUTS = ("input_ids", "attention_mask")
"""The names of the inputs of an exported model."""
Runner = Callable[[Workload], None]
"""Classifies all rows of a workload and returns when that is done."""
Ids = npt.NDArray[np.int64]


def padded_batches(rows: TokenRows, order: IntArray) -> Iterator[tuple[Ids, Ids]]:
    """Cut rows, in this order, into batches of BATCH_ROWS, each padded to its longest row: (ids, mask), each [B, L]."""
    lengths = rows.lengths
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        ids = np.zeros((len(batch), int(lengths[batch].max())), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(batch):
            ids[index, : lengths[row]] = rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]]
            mask[index, : lengths[row]] = 1
        yield ids, mask


def sorted_batches(work: Workload) -> Iterator[tuple[Ids, Ids]]:
    """Return padded batches in order of length, as a careful user writes it."""
    return padded_batches(work.rows, np.argsort(work.rows.lengths, kind="stable"))


def hugging_face(model: Callable[..., Any], *, in_order_of_length: bool, device: torch.device) -> Runner:
    """Run transformers' own model, in arrival order as most scripts do, or sorted by length."""

    def run(work: Workload) -> None:
        batches = sorted_batches(work) if in_order_of_length else padded_batches(work.rows, np.arange(len(work.rows)))
        with torch.no_grad():
            for ids, mask in batches:
                inputs = {
                    "input_ids": torch.from_numpy(ids).to(device),
                    "attention_mask": torch.from_numpy(mask).to(device),
                }
                model(**inputs).logits.float().cpu()

    return run


def compiled(model: nn.Module) -> Runner:
    """Run transformers' own model through torch.compile, sorted by length, with frozen weights on CPUs (the faster way)."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        inductor.freezing = True  # read when the first batch compiles
    return hugging_face(torch.compile(model, dynamic=True), in_order_of_length=True, device=device)


def one_row_at_a_time(model: EarlyExitModel) -> Runner:
    """Run early exit as the papers' published code does: batch size 1, every head evaluated."""
    device = next(model.parameters()).device

    def run(work: Workload) -> None:
        with torch.inference_mode():
            for row, exit_layer in enumerate(work.exit_plan):
                alone = work.rows.take(np.array([row]))
                groups = (LengthGroup(1, len(alone.token_ids)),)
                packed = pack(alone, groups, 0, device)
                x_TH = model.backbone.embeddings(packed)
                for number in range(1, exit_layer + 1):
                    x_TH = model.backbone.layer(number)(x_TH, groups)
                    model.exit_output(number, model.head(number).features(x_TH, groups)).logits.softmax(-1).max().item()

    return run


def openvino(model: nn.Module, *, precision: str, threads: int, calibration: Workload) -> Runner:
    """Run OpenVINO on the CPU in 'f32', 'bf16' or 'int8' (NNCF's post-training quantization), sorted by length.

    It runs in its latency mode, all threads in one request, which is the faster one here.
    """
    require("openvino", *(["nncf"] if precision == "int8" else []), extra="bench")
    import openvino as ov

    with torch.no_grad():
        converted = ov.convert_model(model, example_input=dict(zip(INPUTS, _example(), strict=True)))
    if precision == "int8":
        import nncf

        nncf.set_log_level(logging.ERROR)
        sample = [dict(zip(INPUTS, batch, strict=True)) for batch in sorted_batches(calibration)]
        with contextlib.redirect_stdout(sys.stderr):
            converted = nncf.quantize(converted, nncf.Dataset(sample), model_type=nncf.ModelType.TRANSFORMER)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32" if precision == "f32" else "bf16"
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def run(work: Workload) -> None:
        for batch in sorted_batches(work):
            request.infer(dict(zip(INPUTS, batch, strict=True)))

    return run


def onnx_runtime(model: nn.Module, *, int8: bool, threads: int) -> Runner:
    """Run ONNX Runtime on the CPU, in fp32 or with its dynamic int8 quantization, sorted by length."""
    require("onnx", "onnxruntime", extra="bench")
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic

    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        # The old exporter: with torch's new one, these models cannot have both axes dynamic.
        torch.onnx.export(model, _example(), file, input_names=[*INPUTS], dynamic_axes=axes, dynamo=False)
        if int8:
            quantize_dynamic(file, file := file.with_name("int8.onnx"))
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def run(work: Workload) -> None:
        for batch in sorted_batches(work):
            session.run(None, dict(zip(INPUTS, batch, strict=True)))

    return run


def _example() -> tuple[Tensor, Tensor]:
    """Return ids and mask of two rows, for exporters that trace the model."""
    return torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInputs:
    """The models and settings that peers are made from."""

    theirs: nn.Module
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


PEERS: Mapping[str, Callable[[PeerInputs], Runner]] = {
    "hf-fp32-arrival": lambda inputs: hugging_face(inputs.theirs, in_order_of_length=False, device=inputs.device),
    "hf-bf16-sorted": lambda inputs: hugging_face(inputs.in_bf16, in_order_of_length=True, device=inputs.device),
    "hf-bf16-compiled": lambda inputs: compiled(inputs.in_bf16),
    "onnx-fp32": lambda inputs: onnx_runtime(inputs.on_cpu, int8=False, threads=inputs.threads),
    "onnx-int8": lambda inputs: onnx_runtime(inputs.on_cpu, int8=True, threads=inputs.threads),
    "openvino-bf16": lambda inputs: openvino(
        inputs.on_cpu, precision="bf16", threads=inputs.threads, calibration=inputs.calibration
    ),
    "openvino-int8": lambda inputs: openvino(
        inputs.on_cpu, precision="int8", threads=inputs.threads, calibration=inputs.calibration
    ),
    "papers-batch-1": lambda inputs: one_row_at_a_time(copy.deepcopy(inputs.ours).to(inputs.device).eval()),
}
"""How to prepare each peer, by the name that users give."""
SLOW = {"hf-fp32-arrival": 8, "papers-batch-1": 8, "onnx-fp32": 4}
"""Slow peers, which run only every n-th row of the workload; all results are rows a second, so they stay comparable."""
