"""cuDNN never computes attention, and there is one call of torch's function."""

import re

import torch
import torch.nn.functional as F

from models.sdpa import sdpa, without_cudnn
from tests.support.jobs import REPOSITORY


def test_on_cuda_cudnn_is_ruled_out_and_let_in_again_after() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with without_cudnn(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    with without_cudnn(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_it_is_torch_s_attention() -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    mask = torch.zeros(1, 5)
    mask[:, 3:] = -torch.inf
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(sdpa(query, key, value, mask=mask, scale=0.3), expected)
    assert sdpa(query, key, value, dropout=1.0).abs().max() == 0


def test_no_other_file_calls_it() -> None:
    files = [path for top in ("jobs", "models", "pipeline") for path in (REPOSITORY / top).rglob("*.py")]
    calls = re.compile(r"scaled_dot_product_attention\(|nn\.MultiheadAttention|nn\.Transformer")
    assert [path.name for path in files if calls.search(path.read_text())] == ["sdpa.py"]
