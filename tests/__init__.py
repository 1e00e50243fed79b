"""The tests. What their libraries are to find in the environment is set here, before any of them is imported.

Where there is no GPU, Triton's interpreter runs the kernels. Triton chooses when it is imported, which torch's compiler does,
and much that tests import brings that along. So does the hub's library with the question whether it may ask the hub: no test
does.
"""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
