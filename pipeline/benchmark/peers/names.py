"""The names of the peers, as users give them; peers.prepare has the peers."""

PEER_NAMES = (
    "hf-fp32-arrival",
    "hf-fp32-sorted",
    "hf-fp32-compiled",
    "hf-bf16-sorted",
    "hf-bf16-compiled",
    "onnx-fp32",
    "onnx-int8",
    "openvino-bf16",
    "openvino-int8",
    "tensorrt-fp16",
    "papers-batch-1",
)
