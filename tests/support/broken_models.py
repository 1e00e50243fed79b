"""Ways in which a model is damaged, incomplete, or of a kind that offramp does not run, and how each is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 437955512\n"


def config(**changes: Any) -> Callable[[Path], None]:
    """Change fields of config.json."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def without(field: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(
            json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != field})
        )

    return change


def text(file: str, content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    """Write a file anew."""

    def change(folder: Path) -> None:
        (folder / file).write_text(content, encoding=encoding)

    return change


def edited(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the bytes of a file."""

    def edit(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return edit


def gone(*files: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def in_parts(folder: Path) -> None:
    """Save the plain model in several files."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    without("early_exit")(folder)
    model.save_pretrained(folder, max_shard_size="30KB")


def one_part_gone(folder: Path) -> None:
    in_parts(folder)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def as_pickle(content: Callable[[Path], None]) -> Callable[[Path], None]:
    """Have weights in pytorch_model.bin alone, of a plain model."""
    return both(content, gone("model.safetensors"), without("early_exit"))


def tensors(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")


class Foreign:
    """An object of somebody's own, as old training scripts have pickled whole models."""


def foreign(folder: Path) -> None:
    torch.save({"model": Foreign()}, folder / "pytorch_model.bin")


def plain_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model": Foreign()}))


def japanese(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(150))]
    (folder / "vocab.txt").write_text("\n".join(words))
    kind = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def more_tokens(folder: Path) -> None:
    """Leave the table as it is, and let the tokenizer know one token more."""
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["vocab"]["another"] = 200
    file.write_text(json.dumps(values))


def fewer_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["vocab"] = {word: number for word, number in values["model"]["vocab"].items() if number < 40}
    file.write_text(json.dumps(values))


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def quantized(folder: Path) -> None:
    """Store a matrix in 8 bits, and say so nowhere."""
    weights = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    weights[name] = (weights[name] * 40).to(torch.int8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


BLOCK = {"version": 1, "last_head": "classifier", "branch_head": "pooled", "lte": True}
ANY_JSON = "is damaged, it is no JSON in UTF-8"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    # Classes
    "a gap in id2label": (
        config(id2label={"0": "a", "2": "b"}),
        r"id2label .* has the numbers \[0, 2\], and not 0 to 1",
    ),
    "id2label from 1 on": (config(id2label={"1": "a", "2": "b"}), r"id2label .* has the numbers \[1, 2\]"),
    "two classes of one name": (config(id2label={"0": "a", "1": "a"}), "gives two classes the name 'a'"),
    "a class without a name": (config(id2label={"0": "a", "1": " "}), "gives class 1 no name"),
    "a class that is null": (config(id2label={"0": "a", "1": None}), "gives class 1 no name"),
    "labels in a list": (config(id2label=["a", "b"]), "transformers refuses config.json"),
    "labels by words": (config(id2label={"a": "b"}), "transformers refuses config.json"),
    "no classes": (config(id2label={}), "the number of labels in config.json is 0"),
    "more classes than the head has": (
        config(id2label={"0": "a", "1": "b", "2": "c"}),
        r"'classifier.bias' has shape",
    ),
    "fewer classes than the head has": (config(id2label={"0": "a"}), "'classifier.bias' has shape"),
    "many values": (config(problem_type="regression"), r"predicts 2 values \(problem_type regression\)"),
    "a tagger": (config(architectures=["BertForTokenClassification"]), "is a BertForTokenClassification, and no"),
    # config.json
    "config.json cut off": (edited("config.json", half), f"config.json {ANY_JSON}"),
    "config.json empty": (text("config.json", ""), "config.json is empty"),
    "config.json with a BOM": (edited("config.json", lambda data: b"\xef\xbb\xbf" + data), f"config.json {ANY_JSON}"),
    "config.json in UTF-16": (lambda f: text("config.json", (f / "config.json").read_text(), "utf-16")(f), ANY_JSON),
    "config.json of a list": (text("config.json", "[]"), "config.json holds no JSON object"),
    "config.json too deep": (text("config.json", "[" * 100_000), f"config.json {ANY_JSON}"),
    "config.json a pointer": (text("config.json", POINTER), "config.json is a pointer of git-lfs"),
    "no model type": (without("model_type"), "model type 'None' is not supported"),
    "a model type that is a list": (config(model_type=["bert"]), "is not supported"),
    "another family": (config(model_type="gpt2"), "model type 'gpt2' is not supported; supported are: bert, "),
    "a size in words": (config(hidden_size="32"), "transformers refuses config.json"),
    "no layers": (config(num_hidden_layers=0), "the number of layers in config.json is 0"),
    "heads that do not divide": (config(num_attention_heads=5), "5 attention heads do not divide a hidden size of 32"),
    "no positions": (config(max_position_embeddings=0), "max_position_embeddings in config.json is 0"),
    "no token types": (config(type_vocab_size=0), "type_vocab_size in config.json is 0"),
    "a wrong eps": (config(layer_norm_eps=-1e-5), "layer_norm_eps in config.json is -1e-05"),
    "an unknown activation": (config(hidden_act="swoosh"), "activation 'swoosh' is none that transformers has"),
    "an unknown dtype": (config(dtype="float99"), "transformers refuses config.json"),
    "dropout of everything": (config(hidden_dropout_prob=1.0), "a dropout in config.json is not in"),
    "8 bits": (config(quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"}), "quantized"),
    "GPTQ": (config(quantization_config={"bits": 4, "quant_method": "gptq"}), "quantized"),
    "AWQ": (config(quantization_config={"bits": 4, "quant_method": "awq"}), "quantized"),
    "code of its own": (config(auto_map={"AutoConfig": "mine.Config"}), "names code of the model's own"),
    "an adapter": (text("adapter_config.json", "{}"), "holds an adapter; merge it into the model"),
    "exits of another version": (
        config(early_exit=BLOCK | {"version": 2}),
        "the early_exit block .* is wrong: version 2",
    ),
    "exits of an unknown kind": (config(early_exit=BLOCK | {"branch_head": "x"}), "branch head 'x' is none of"),
    "an unknown criterion": (
        config(early_exit=BLOCK | {"criterion": {"name": "luck"}}),
        "early_exit block .* is wrong",
    ),
    "a criterion of other fields": (
        config(early_exit=BLOCK | {"criterion": {"fast": 1}}),
        "early_exit block .* is wrong",
    ),
    "exits in a list": (config(early_exit=["pooled"]), "the early_exit block of config.json is wrong"),
    # Weights
    "weights a pointer": (text("model.safetensors", POINTER), "model.safetensors is a pointer of git-lfs"),
    "weights cut off": (edited("model.safetensors", half), "its weights cannot be read: SafetensorError"),
    "weights cut in their header": (
        edited("model.safetensors", lambda data: data[:20]),
        "cannot be read: SafetensorError",
    ),
    "weights empty": (text("model.safetensors", ""), "model.safetensors is empty"),
    "weights a page of HTML": (text("model.safetensors", "<!doctype html>" * 99), "its weights cannot be read"),
    "no weights": (gone("model.safetensors"), "no weights there; looked for model.safetensors, "),
    "weights of other software": (both(gone("model.safetensors"), text("tf_model.h5", "x")), "no weights there"),
    "one file of many is gone": (one_part_gone, "model.safetensors.index.json lists files that are not all there"),
    "an index without files": (
        both(gone("model.safetensors"), text("model.safetensors.index.json", "{}")),
        "model.safetensors.index.json lists no files",
    ),
    "an index that leads elsewhere": (
        both(gone("model.safetensors"), text("model.safetensors.index.json", '{"weight_map": {"a": "../../x"}}')),
        "model.safetensors.index.json lists no files",
    ),
    "an index cut off": (
        both(in_parts, edited("model.safetensors.index.json", half)),
        f"model.safetensors.index.json {ANY_JSON}",
    ),
    "objects in a pickle": (as_pickle(foreign), "holds Python objects that are no tensors; save"),
    "a pickle of Python's own": (as_pickle(plain_pickle), "holds Python objects that are no tensors"),
    "a pickle a pointer": (as_pickle(text("pytorch_model.bin", POINTER)), "pytorch_model.bin is a pointer of git-lfs"),
    "a pickle cut off": (as_pickle(both(tensors, edited("pytorch_model.bin", half))), "its weights cannot be read: "),
    "a smaller vocabulary": (config(vocab_size=190), r"word_embeddings.weight' has shape \[200, 32\]"),
    "weights of 8 bits": (
        quantized,
        "'bert.encoder.layer.1.output.dense.weight' is of type I8, so the weights are quant",
    ),
    "weights that are no numbers": (
        not_finite,
        "'(bert.encoder.layer.1.output.dense.bias|backbone.layers.1.ffn.contract.bias)' holds a NaN or an infinity",
    ),
    # The tokenizer
    "no tokenizer": (gone("tokenizer.json", "tokenizer_config.json"), "no usable tokenizer: there are no files of one"),
    "no tokenizer.json": (gone("tokenizer.json"), "no usable tokenizer: there are no files of one"),
    "tokenizer.json a pointer": (text("tokenizer.json", POINTER), "tokenizer.json is a pointer of git-lfs"),
    "tokenizer.json empty": (text("tokenizer.json", ""), "tokenizer.json is empty"),
    "tokenizer.json cut off": (edited("tokenizer.json", half), f"tokenizer.json {ANY_JSON}"),
    "tokenizer.json with a BOM": (
        edited("tokenizer.json", lambda data: b"\xef\xbb\xbf" + data),
        f"tokenizer.json {ANY_JSON}",
    ),
    "tokenizer.json of nothing": (text("tokenizer.json", "{}"), "no usable tokenizer: "),
    "tokenizer_config.json cut off": (edited("tokenizer_config.json", half), f"tokenizer_config.json {ANY_JSON}"),
    "more tokens than the model": (
        more_tokens,
        "has ids up to 200, and the model knows 200 tokens: it is another model's",
    ),
    "far fewer tokens": (fewer_tokens, "it knows 40 tokens, and the model 200: its files are missing, damaged, or"),
    "a Japanese tokenizer": (both(gone("tokenizer.json"), japanese), "no usable tokenizer: .*fugashi"),
    "a slow tokenizer": (
        both(gone("tokenizer.json"), japanese, text("tokenizer_config.json", '{"tokenizer_class": "CanineTokenizer"}')),
        "no usable tokenizer: ",
    ),
    "a tokenizer of its own code": (
        text("tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}})),
        "no usable tokenizer: it is code of its own",
    ),
    "texts of no length": (
        text(
            "tokenizer_config.json", json.dumps({"model_max_length": 2, "tokenizer_class": "PreTrainedTokenizerFast"})
        ),
        "no usable tokenizer: max tokens 2 leaves no room",
    ),
}
HARMLESS_TO_A_BACKBONE = {
    "a gap in id2label",
    "id2label from 1 on",
    "two classes of one name",
    "a class without a name",
    "a class that is null",
    "no classes",
    "more classes than the head has",
    "fewer classes than the head has",
    "many labels",
    "many values",
    "a tagger",
    *(name for name in BROKEN if "exits" in name or "criterion" in name),
}
"""What fine-tuning replaces anyway."""
