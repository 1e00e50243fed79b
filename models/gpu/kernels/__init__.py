"""Triton kernels. What they compute is in models.gpu.plain in plain torch, and models.gpu.dispatch chooses between the two."""
