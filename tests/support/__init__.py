"""Helpers that many tests share.

Where there is no GPU, Triton's interpreter runs the kernels. Triton chooses when it is imported, which torch's compiler does,
and much that helpers import brings that along: hence here, before any of them.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
