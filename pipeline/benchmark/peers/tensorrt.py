"""NVIDIA TensorRT: transformers' model as an engine in fp16, for batches of any shape."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.benchmark.peers.exported import INPUTS, export_onnx
from pipeline.benchmark.peers.hugging_face import SORTED_BATCH_ROWS, Classify, at_every_size
from pipeline.benchmark.peers.padding import Runner
from pipeline.benchmark.workload import Workload
from pipeline.errors import UserError, require

TYPICAL_ROWS, TYPICAL_TOKENS = 256, 64
"""The batch that TensorRT chooses its kernels for; others run as well."""
LARGEST_ERROR = 0.05
"""Largest difference of a logit from fp32, relative to the largest logit there: far above what rounding to the 11 bits of
fp16 does, far below what a wrong graph does."""


class UnsupportedPeerError(UserError):
    """Raise where a peer cannot run on this machine, or not correctly; the message says why."""


def tensorrt(model: PreTrainedModel, longest: int) -> dict[int, Runner]:
    """Build an engine for rows of up to `longest` tokens from a model in fp32, and a runner for every batch size.

    Raises UnsupportedPeerError without a GPU, where TensorRT cannot build the engine, and where its logits are wrong;
    MissingPackageError where it is not installed.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise UnsupportedPeerError("TensorRT needs an NVIDIA GPU")
    require("onnx", "tensorrt", extra="bench-gpu")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        export_fp16(model, file)
        classify = _classify(_build(file, longest), device)
    check(classify, model, longest)
    stream = torch.cuda.Stream(device)  # on the default one TensorRT waits for the device at every batch
    return {rows: _on_stream(run, stream) for rows, run in at_every_size(classify, device).items()}


def _classify(engine: Any, device: torch.device) -> Classify:
    """Run the engine on torch's memory and in torch's current stream."""
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    output = next(name for name in names if name not in INPUTS)

    def classify(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        for name, tensor in zip(INPUTS, (ids_BL, mask_BL), strict=True):
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        logits_BC = torch.empty(tuple(context.get_tensor_shape(output)), dtype=torch.float16, device=device)
        context.set_tensor_address(output, logits_BC.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
            raise RuntimeError(f"TensorRT did not run a batch of shape {tuple(ids_BL.shape)}")
        return logits_BC

    return classify


def _on_stream(run: Runner, stream: torch.cuda.Stream) -> Runner:
    """Let everything that a runner does on the device, allocations included, happen in one stream."""

    def run_there(work: Workload) -> None:
        with torch.cuda.stream(stream):
            run(work)

    return run_there


def check(classify: Classify, model: PreTrainedModel, longest: int) -> None:
    """Raise UnsupportedPeerError if logits differ from those of the model in fp32 by more than fp16 explains."""
    device = next(model.parameters()).device
    length = min(longest, TYPICAL_TOKENS)
    ids_BL = torch.randint(int(model.config.vocab_size), (8, length), device=device)
    lengths_B1 = torch.linspace(2, length, 8, device=device).long()[:, None]
    mask_BL = (torch.arange(length, device=device) < lengths_B1).long()
    with torch.no_grad():
        wanted_BC = model(input_ids=ids_BL, attention_mask=mask_BL).logits.float()
        error = (classify(ids_BL, mask_BL).float() - wanted_BC).abs().max() / wanted_BC.abs().max()
    if not error <= LARGEST_ERROR:  # nor is NaN
        raise UnsupportedPeerError(f"logits differ from fp32 by {float(error):.3g} of the largest one")


def export_fp16(model: PreTrainedModel, file: Path) -> None:
    """Write a copy of the model in fp16, with attention as plain products: exported, torch's fused one has parts in fp32."""
    copied = copy.deepcopy(model).half()
    copied.set_attn_implementation("eager")
    export_onnx(copied, file)


def _build(file: Path, longest: int) -> Any:
    """Build the engine of an exported model, in the precisions of its graph."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # The flag is what TensorRT 10 needs to keep to the graph's precisions; 11 always does.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        raise UnsupportedPeerError(f"TensorRT cannot read the exported model: {parser.get_error(0).desc()}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    rows = max(SORTED_BATCH_ROWS["cuda"])
    for name in INPUTS:
        profile.set_shape(name, (1, 1), (TYPICAL_ROWS, min(TYPICAL_TOKENS, longest)), (rows, longest))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UnsupportedPeerError("TensorRT cannot build an engine for the exported model")
    return trt.Runtime(logger).deserialize_cuda_engine(plan)
