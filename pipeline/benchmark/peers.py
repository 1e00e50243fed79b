"""What users would run instead, to be measured beside the engine in one process. Each peer classifies the same token rows."""

import contextlib
import copy
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
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
from pipeline.rows import IntArray, TokenRows

BATCH_ROWS = 32
"""What people write: the batch size of most scripts and of the papers' training."""
INPUTS = ("input_ids", "attention_mask")
Runner = Callable[[Workload], None]
Ids = npt.NDArray[np.int64]


class MissingPeerError(Exception):
    """A peer's package is not installed; the message names it."""


def padded_batches(rows: TokenRows, order: IntArray) -> Iterator[tuple[Ids, Ids]]:
    """Cut rows into batches of BATCH_ROWS in this order, padded to their longest: (ids, mask), each [B, L]."""
    lengths = rows.lengths
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        ids = np.zeros((len(batch), int(lengths[batch].max())), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(batch):
            ids[place, : lengths[row]] = rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]]
            mask[place, : lengths[row]] = 1
        yield ids, mask


def sorted_batches(work: Workload) -> Iterator[tuple[Ids, Ids]]:
    """Padded batches in order of length: what somebody who thought about it writes."""
    return padded_batches(work.rows, np.argsort(work.rows.lengths, kind="stable"))


def hugging_face(model: Callable[..., Any], *, in_order_of_length: bool, device: torch.device) -> Runner:
    """Transformers' own model, in arrival order as most scripts do, or sorted by length."""

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
    """Transformers' own model through torch.compile, weights frozen (the faster way on CPUs), sorted by length."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        inductor.freezing = True  # read when the first batch compiles
    return hugging_face(torch.compile(model, dynamic=True), in_order_of_length=True, device=device)


def one_row_at_a_time(model: EarlyExitModel) -> Runner:
    """Early exit as the papers' published code runs it: batch size 1, every head looked at."""
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
    """OpenVINO on the CPU, 'f32', 'bf16' or 'int8' (NNCF's post-training quantization), sorted by length.

    Its latency mode, all threads in one request: the faster one here. Raises MissingPeerError.
    """
    need("openvino", "nncf") if precision == "int8" else need("openvino")
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
    """ONNX Runtime on the CPU, fp32 or its dynamic int8, sorted by length; raises MissingPeerError."""
    need("onnx", "onnxruntime")
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic

    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        # The old exporter: torch's new one cannot keep both axes of these models open.
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


def need(*packages: str) -> None:
    """Raise MissingPeerError naming the first of these packages that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingPeerError(package)


def _example() -> tuple[Tensor, Tensor]:
    return torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerNeeds:
    """What peers are made of."""

    theirs: nn.Module
    """Transformers' model, in fp32, on the device."""
    ours: EarlyExitModel
    threads: int
    calibration: Workload
    """Rows for peers that look at some before they start."""

    @property
    def device(self) -> torch.device:
        return next(self.theirs.parameters()).device

    @property
    def on_cpu(self) -> nn.Module:
        return copy.deepcopy(self.theirs).cpu()

    @property
    def in_bf16(self) -> nn.Module:
        return copy.deepcopy(self.theirs).to(torch.bfloat16)


PEERS: Mapping[str, Callable[[PeerNeeds], Runner]] = {
    "hf-fp32-arrival": lambda needs: hugging_face(needs.theirs, in_order_of_length=False, device=needs.device),
    "hf-bf16-sorted": lambda needs: hugging_face(needs.in_bf16, in_order_of_length=True, device=needs.device),
    "hf-bf16-compiled": lambda needs: compiled(needs.in_bf16),
    "onnx-fp32": lambda needs: onnx_runtime(needs.on_cpu, int8=False, threads=needs.threads),
    "onnx-int8": lambda needs: onnx_runtime(needs.on_cpu, int8=True, threads=needs.threads),
    "openvino-bf16": lambda needs: openvino(
        needs.on_cpu, precision="bf16", threads=needs.threads, calibration=needs.calibration
    ),
    "openvino-int8": lambda needs: openvino(
        needs.on_cpu, precision="int8", threads=needs.threads, calibration=needs.calibration
    ),
    "papers-batch-1": lambda needs: one_row_at_a_time(copy.deepcopy(needs.ours).to(needs.device).eval()),
}
SLOW = {"hf-fp32-arrival": 8, "papers-batch-1": 8, "onnx-fp32": 4}
"""Peers that get every n-th row only, since they take that many times longer; all figures are rows a second."""
