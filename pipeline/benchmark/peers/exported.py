"""Peers that run transformers' model as an exported graph on the CPU: OpenVINO and ONNX Runtime.

Their packages are optional; each peer raises MissingPackageError when it is prepared without its own.
"""

import contextlib
import logging
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.benchmark.peers.padding import Runner, sorted_batches
from pipeline.benchmark.workload import Workload
from pipeline.errors import require

INPUTS = ("input_ids", "attention_mask")
"""The names of the inputs of an exported model."""


def openvino(model: nn.Module, *, precision: str, threads: int, calibration: Workload) -> Runner:
    """Run OpenVINO on the CPU in 'f32', 'bf16' or 'int8' (NNCF's post-training quantization), sorted by length.

    It runs in its latency mode, all threads in one request, which is the faster one here.
    """
    require("openvino", *(["nncf"] if precision == "int8" else []), extra="bench")
    import openvino as ov

    with torch.no_grad():
        converted = ov.convert_model(model, example_input=dict(zip(INPUTS, example(), strict=True)))
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

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        export_onnx(model, file)
        if int8:
            quantize_dynamic(file, file := file.with_name("int8.onnx"))
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def run(work: Workload) -> None:
        for batch in sorted_batches(work):
            session.run(None, dict(zip(INPUTS, batch, strict=True)))

    return run


def export_onnx(model: nn.Module, file: Path) -> None:
    """Write a model, on whatever device and in whatever precision it is, for batches of any number and length of rows."""
    device = next(model.parameters()).device
    inputs = tuple(tensor.to(device) for tensor in example())
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    # The old exporter: with torch's new one, these models cannot have both axes dynamic.
    torch.onnx.export(model, inputs, file, input_names=[*INPUTS], dynamic_axes=axes, dynamo=False)


def example() -> tuple[Tensor, Tensor]:
    """Return ids and mask of two rows, for exporters that trace the model."""
    return torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
