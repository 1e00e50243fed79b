"""Early-exit transformers: torch, transformers and safetensors only, no Ray, no Arrow, no I/O policy."""
