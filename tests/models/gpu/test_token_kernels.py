"""Kernels that work token by token, add + LayerNorm and embeddings, against slow oracles; and that they could fail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.backbone import Embeddings
from models.early_exit import EarlyExitModel
from models.gpu.rows import RaggedRows
from pipeline.rows import TokenRows
from tests.models.gpu import oracles
from tests.models.gpu.oracles import differs, poisoned, random
from tests.support.models import CONFIGS, spread_weights
from tests.support.triton_kernels import DEVICE, KERNELS, SIXTEEN_BITS

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
DTYPES = [torch.float32, SIXTEEN_BITS]


def new_norm(hidden: int, dtype: torch.dtype) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(hidden, eps=1e-3)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(1))
    return norm.to(DEVICE, dtype)


@given(tokens=st.integers(1, 9), hidden=st.sampled_from([1, 8, 30, 32, 48, 384, 768, 1000]), seed=st.integers(0, 9))
@settings(max_examples=10)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_add_norm_equals_one_token_at_a_time(dtype: torch.dtype, tokens: int, hidden: int, seed: int) -> None:
    x_TH = random((tokens, hidden), dtype, seed)
    residual_TH = random((tokens, hidden), dtype, seed + 1)
    norm = new_norm(hidden, dtype)
    expected = oracles.add_norm(x_TH, residual_TH, norm)
    out_TH = poisoned(torch.full_like(x_TH, torch.nan))
    KERNELS.add_norm(poisoned(x_TH), poisoned(residual_TH), norm, out_TH)
    assert differs(out_TH, expected) < TOLERANCE[dtype]
    KERNELS.add_norm(x_TH, residual_TH, norm, x_TH)  # in the memory of what it reads
    assert torch.equal(x_TH, out_TH)


@torch.inference_mode()
def test_add_norm_writes_its_tokens_alone() -> None:
    x_TH, norm = random((5, 24), torch.float32, seed=2), new_norm(24, torch.float32)
    buffer = torch.full((15, 24), 7.0, device=DEVICE)
    KERNELS.add_norm(x_TH, x_TH, norm, buffer[5:10])
    assert (buffer[:5] == 7).all()
    assert (buffer[10:] == 7).all()
    assert differs(buffer[5:10], oracles.add_norm(x_TH, x_TH, norm)) < 1e-5
    for wrong in (
        oracles.add_norm(x_TH, torch.zeros_like(x_TH), norm),
        oracles.add_norm(x_TH, x_TH, norm, eps=0.1),
        oracles.add_norm(x_TH, x_TH, torch.nn.LayerNorm(24, eps=1e-3)),
    ):
        assert differs(buffer[5:10], wrong) > 1e-4


@torch.inference_mode()
def test_a_mean_far_from_zero_keeps_the_digits_of_what_differs() -> None:
    x_TH, norm = random((4, 64), torch.float32, seed=3) + 1000, new_norm(64, torch.float32)
    out_TH = torch.empty_like(x_TH)
    KERNELS.add_norm(x_TH, torch.zeros_like(x_TH), norm, out_TH)
    assert differs(out_TH, oracles.add_norm(x_TH, torch.zeros_like(x_TH), norm)) < 2e-3


def embedded(embeddings: Embeddings, rows: TokenRows) -> Tensor:
    """Look up, add and normalize, token by token, in float64: [T, E]."""
    shape = embeddings.shape
    tables = {name: table.detach().cpu().double() for name, table in embeddings.named_parameters()}
    summed = []
    for row in range(len(rows)):
        ids = rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]].tolist()
        for offset, token in enumerate(ids):
            position = offset
            if shape.first_position:
                numbered = sum(other != shape.pad_id for other in ids[: offset + 1])
                position = shape.pad_id if token == shape.pad_id else numbered + shape.first_position - 1
            y = tables["word_embeddings.weight"][token]
            if shape.position_table:
                y = y + tables["position_embeddings.weight"][position]
            if shape.token_types:
                kind = min(int(offset >= rows.segments[row]), shape.token_types - 1)
                y = y + tables["token_type_embeddings.weight"][kind]
            if shape.task_types:
                y = y + tables["task_type_embeddings.weight"][0]
            summed.append(y)
    summed_TE = torch.stack(summed)
    return oracles.add_norm(summed_TE, torch.zeros_like(summed_TE), embeddings.norm)


def embed(embeddings: Embeddings, rows: TokenRows) -> Tensor:
    ids = torch.from_numpy(np.pad(rows.token_ids, oracles.MARGIN, constant_values=150)).to(DEVICE)
    ids_T = ids[oracles.MARGIN : -oracles.MARGIN]
    tokens = len(ids_T) + 2 * oracles.MARGIN
    buffer = torch.full((tokens, embeddings.shape.embedding), torch.nan).to(ids_T.device, embeddings.norm.weight.dtype)
    out_TE = buffer[oracles.MARGIN : -oracles.MARGIN]
    ragged = RaggedRows.of(rows.lengths, DEVICE)
    KERNELS.embed(embeddings, ids_T, torch.from_numpy(rows.segments).to(DEVICE), ragged, out_TE)
    assert buffer[: oracles.MARGIN].isnan().all()
    assert buffer[-oracles.MARGIN :].isnan().all()
    return out_TE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
@torch.inference_mode()
def test_embeddings_of_every_family(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embeddings = spread_weights(EarlyExitModel(CONFIGS[family])).backbone.embeddings.to(DEVICE, dtype).eval()
    lengths = [1, 4, 7, 18]
    random_ids = np.random.default_rng(1)
    rows = TokenRows.from_lists([random_ids.integers(0, 200, n).tolist() for n in lengths], segments=[1, 2, 4, 9])
    rows.token_ids[::3] = 1  # a typed pad token, in the RoBERTa line
    expected = embedded(embeddings, rows)
    assert differs(embed(embeddings, rows), expected) < 2 * TOLERANCE[dtype]
    other = TokenRows(token_ids=rows.token_ids, offsets=rows.offsets, segments=rows.segments // 2)
    changed = differs(embedded(embeddings, other), expected)
    assert (changed > 0.1) == (embeddings.shape.token_types > 1)


@torch.inference_mode()
def test_positions_go_on_after_more_pad_tokens_than_are_counted_at_once() -> None:
    config = type(CONFIGS["roberta"])(**(CONFIGS["roberta"].to_dict() | {"max_position_embeddings": 150}))
    torch.manual_seed(0)
    embeddings = spread_weights(EarlyExitModel(config)).backbone.embeddings.to(DEVICE).eval()
    ids = np.random.default_rng(0).integers(0, 3, 140).tolist()
    rows = TokenRows.from_lists([[5], ids])
    assert differs(embed(embeddings, rows), embedded(embeddings, rows)) < 1e-5
