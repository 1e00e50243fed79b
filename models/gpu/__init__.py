"""Inference on GPUs over ragged rows. Triton's kernels are in models.gpu.kernels, and nothing else imports Triton."""
