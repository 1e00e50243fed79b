"""The names of the peers, as users give them; benchmark.peers has the peers."""

PEER_NAMES = (
    "hf-fp32-arrival",
    "hf-bf16-sorted",
    "hf-bf16-compiled",
    "onnx-fp32",
    "onnx-int8",
    "openvino-bf16",
    "openvino-int8",
    "papers-batch-1",
)
