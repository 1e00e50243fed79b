"""Peers see every row once, choose the batch size that is fastest, and are left out with a reason where they cannot run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from models.early_exit import EarlyExitModel
from pipeline.benchmark.measure import fastest
from pipeline.benchmark.peers import hugging_face, prepare
from pipeline.benchmark.peers.names import PEER_NAMES
from pipeline.benchmark.peers.padding import Ids, padded_batches, sorted_batches
from pipeline.benchmark.peers.tensorrt import UnsupportedPeerError, check, export_fp16, tensorrt
from pipeline.benchmark.workload import Workload, make_workload
from pipeline.errors import MissingPackageError, require
from pipeline.rows import IntArray, TokenRows
from tests.support.models import random_classifier, random_rows


def padded_row_by_row(rows: TokenRows, order: IntArray, batch_rows: int) -> Iterator[tuple[Ids, Ids]]:
    """Do what padded_batches does, slowly."""
    for start in range(0, len(order), batch_rows):
        batch = [rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]] for row in order[start : start + batch_rows]]
        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(batch):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        yield ids, mask


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=40), st.integers(1, 50))
def test_padded_batches_are_those_of_a_loop_over_rows(lists: list[list[int]], batch_rows: int) -> None:
    rows = TokenRows.from_lists(lists)
    order = np.random.default_rng(len(lists)).permutation(len(rows))
    got, wanted = list(padded_batches(rows, order, batch_rows)), list(padded_row_by_row(rows, order, batch_rows))
    assert len(got) == len(wanted) == -(-len(rows) // batch_rows)
    for (ids, mask), (wanted_ids, wanted_mask) in zip(got, wanted, strict=True):
        assert ids.dtype == mask.dtype == np.int64
        np.testing.assert_array_equal(ids, wanted_ids)
        np.testing.assert_array_equal(mask, wanted_mask)


def test_sorted_batches_grow_in_length_and_hold_every_row_once() -> None:
    work = make_workload(70, mean_tokens=9, sigma=0.6, longest=50, layers=4, mean_exit=2, vocabulary=300, seed=0)
    batches = list(sorted_batches(work, 16))
    assert [len(ids) for ids, _ in batches] == [16, 16, 16, 16, 6]
    lengths = [int(length) for _, mask in batches for length in mask.sum(1)]
    assert lengths == sorted(work.rows.lengths.tolist())


@pytest.mark.parametrize("in_order_of_length", [True, False])
@pytest.mark.parametrize("batch_rows", [3, 64])
def test_a_peer_classifies_every_row_with_its_own_model(in_order_of_length: bool, batch_rows: int) -> None:
    rows = random_rows(20, 12, seed=2)
    work = Workload(rows=rows, exit_plan=np.ones(20, np.int64))
    model = random_classifier("bert")
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def classify(ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        logits_BC = hugging_face.eager(model)(ids_BL, mask_BL)
        seen.extend(zip(ids_BL, mask_BL, logits_BC, strict=True))
        return logits_BC

    hugging_face.in_batches(classify, torch.device("cpu"), batch_rows, in_order_of_length=in_order_of_length)(work)
    order = np.argsort(rows.lengths, kind="stable") if in_order_of_length else np.arange(20)
    for row, (ids_L, mask_L, logits_C) in zip(order, seen, strict=True):
        alone = torch.from_numpy(rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]].astype(np.int64))
        assert ids_L[mask_L == 1].tolist() == alone.tolist()
        with torch.no_grad():
            torch.testing.assert_close(logits_C, model(alone[None]).logits[0], rtol=1e-4, atol=1e-4)


def a_workload() -> Workload:
    return make_workload(8, mean_tokens=9, sigma=0.6, longest=50, layers=4, mean_exit=2, vocabulary=200, seed=0)


def out_of_memory(_work: Workload) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_fastest_batch_size_is_chosen_by_the_second_of_two_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def takes(name: int, *seconds: float) -> None:
        clock[0] += seconds[runs.count(name)]
        runs.append(name)

    runners = {
        32: lambda _work: takes(32, 1.0, 5.0),
        256: lambda _work: takes(256, 9.0, 2.0),
        1024: lambda _work: takes(1024, 9.0, 3.0),
    }
    lines: list[str] = []
    assert fastest(runners, a_workload(), lambda: None, lines.append) == 256
    assert runs == [32, 256, 1024] * 2
    assert lines[1] == "batches of 256: 4.0 rows/s"


def test_a_batch_size_that_does_not_fit_is_no_choice() -> None:
    runners = {256: lambda _work: None, 1024: out_of_memory}
    assert fastest(runners, a_workload(), lambda: None, lambda _line: None) == 256
    with pytest.raises(torch.OutOfMemoryError, match="no batch size fits"):
        fastest({1024: out_of_memory}, a_workload(), lambda: None, lambda _line: None)


def test_a_peer_with_a_choice_is_named_after_its_batch_size(
    exit_model: EarlyExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hugging_face.SORTED_BATCH_ROWS, "cpu", (2, 4))
    lines: list[str] = []
    systems, left_out = prepare.peer_systems(["hf-fp32-sorted"], exit_model, None, a_workload(), "cpu", lines.append)
    assert not left_out
    assert [line.split(":")[0] for line in lines] == ["batches of 2", "batches of 4"]
    assert list(systems) in (["hf-fp32-sorted, batch 2"], ["hf-fp32-sorted, batch 4"])


def test_a_peer_that_cannot_run_is_left_out_with_the_reason(
    exit_model: EarlyExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such\n  kernel")

    def too_large(*_: object, **__: object) -> object:
        return out_of_memory

    monkeypatch.setattr(prepare, "onnx_runtime", fails)
    monkeypatch.setattr(prepare, "openvino", too_large)
    names = ["onnx-fp32", "hf-fp32-arrival", "openvino-bf16", "tensorrt-fp16", "papers-batch-1"]
    systems, left_out = prepare.peer_systems(names, exit_model, None, a_workload(), "cpu", lambda _line: None)
    assert list(systems) == ["hf-fp32-arrival", "papers-batch-1"]
    assert left_out == [
        "onnx-fp32: RuntimeError: no such kernel",
        "openvino-bf16: OutOfMemoryError: CUDA out of memory",
        "tensorrt-fp16: TensorRT needs an NVIDIA GPU",
    ]


def test_every_name_is_a_peer() -> None:
    assert sorted(prepare.PEERS) == sorted(PEER_NAMES)


def test_packages_that_are_not_installed_are_named_with_their_extra() -> None:
    with pytest.raises(
        MissingPackageError, match=r"^no_such_runtime is not installed: pip install 'offramp\[bench\]'$"
    ):
        require("json", "no_such_runtime", extra="bench")


def test_logits_are_checked_against_fp32() -> None:
    model = random_classifier("bert")
    right = hugging_face.eager(model)
    check(right, model, longest=60)
    with pytest.raises(UnsupportedPeerError, match="logits differ from fp32"):
        check(lambda ids_BL, mask_BL: 1.2 * right(ids_BL, mask_BL), model, longest=60)
    with pytest.raises(UnsupportedPeerError, match="by nan of the largest"):
        check(lambda ids_BL, mask_BL: np.nan * right(ids_BL, mask_BL), model, longest=60)


def test_tensorrt_is_refused_without_a_gpu() -> None:
    with pytest.raises(UnsupportedPeerError, match="needs an NVIDIA GPU"):
        tensorrt(random_classifier("bert"), longest=60)


def test_the_graph_for_tensorrt_is_right_for_other_shapes_than_the_one_it_was_traced_with(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    config = random_classifier("bert").config
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").eval()
    with pytest.warns():  # the old exporter is deprecated, and tracing warns about the model
        export_fp16(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.type for value in session.get_outputs()] == ["tensor(float16)"]

    def classify(ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids_BL.numpy(), "attention_mask": mask_BL.numpy()}
        return torch.from_numpy(session.run(None, inputs)[0])

    check(classify, model, longest=60)
