"""Train exits on a teacher's predictions: the work of jobs/distill.py."""

import argparse
from collections.abc import Collection
from functools import partial

from jobs.work import loading, training
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.errors import UnsupportedModelError
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.cluster.connect import join_or_start
from pipeline.corpus.columns import resolve_columns
from pipeline.corpus.formats import file_columns
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.errors import InputError
from pipeline.output.results import results_as_corpus
from pipeline.schema import LOGITS, PREDICTED
from pipeline.training.distill import DistillSpec, check_stream, distill
from pipeline.training.stream import StreamSpec, held_out


def run(args: argparse.Namespace) -> int:
    """Compose the stream of text or soft labels, and distill; return the exit code."""
    directory = loading.find_model(args.model)
    model = EarlyExitModel.from_pretrained(directory)
    tokenizer = load_tokenizer_spec(directory, model, args.max_tokens)
    if model.shape.layers == 1 and not args.layers:
        raise InputError("model", f"{args.model}: has one layer, so that there are no exits to train")
    layers = student_layers(args, model)
    dev = read_texts(args.dev, loading.text_columns(args, None)) if args.dev else None
    stream = stream_of(args, model, tokenizer)
    check_stream(stream, () if dev is not None else held_out(stream)[1])
    spec = DistillSpec(
        model=loading.absolute_model(args.model),
        head=args.head or "pooled",
        stream=stream,
        dev=None if dev is None else tokenize_texts(dev, Tokenizer(tokenizer), model.labels, task=model.task),
        output=training.output_folder(args),
        # A student's head is the teacher's, and learns with the backbone.
        training=training.config(args, head_learning_rate=None if layers else args.head_learning_rate),
        temperature=args.temperature,
        label_weight=args.label_share if args.label_column else 0.0,
        train_backbone=args.train_backbone,
        layers=layers,
        weights=weights_digest(directory),
    )
    what = f"backbone and exits, {args.train_backbone}" if args.train_backbone else "exits on a frozen backbone"
    what += f"; {spec.head} heads on {model.shape.layers - 1} layers"
    if layers:
        what = f"a student of layers {', '.join(map(str, layers))} of {model.shape.layers}"
    del model
    join_or_start()
    return training.run(
        args,
        partial(distill, spec),
        tokenizer_from=directory,
        about=f"{args.model}: {what}; {len(stream.corpus.files):,} files",
        model=directory,
        weights=str(spec.weights),
        tokenizer=tokenizer.digest,
    )


def student_layers(args: argparse.Namespace, model: EarlyExitModel) -> tuple[int, ...]:
    """Return the layers of the student that is asked for; none where exits are. Raises InputError for what cannot be."""
    if not args.layers:
        return ()
    for name in ("head", "train_backbone"):
        if getattr(args, name) is not None:
            raise InputError(name, "is about exits, and a student has none: distill it once more to give it some")
    count = model.shape.layers
    if args.layers[-1] > count:
        raise InputError("layers", f"{args.model} has {count} layers, and no layer {args.layers[-1]}")
    try:
        model.check_layers(args.layers)
    except UnsupportedModelError as error:
        raise InputError("layers", f"{args.model}: {error}") from error
    return tuple(args.layers)


def stream_of(args: argparse.Namespace, model: EarlyExitModel, tokenizer: TokenizerSpec) -> StreamSpec:
    """Find the files of the stream and their columns."""
    corpus = results_as_corpus(args.labels) if args.labels else list_inputs(args.input)
    for remark in corpus.remarks:
        print(remark)
    names = loading.text_columns(args, args.label_column)
    columns = resolve_columns(corpus.files, names, keep=[LOGITS] if args.labels else [])
    if args.labels:
        check_task(args.labels, file_columns(corpus.files[0]), model)
    return StreamSpec(
        corpus=corpus,
        columns=columns,
        tokenizer=tokenizer,
        classes=model.labels,
        task=model.task,
        label_column=args.label_column,
        label_separator=args.label_separator,
        limit=args.limit,
        seed=args.seed,
    )


def check_task(labels: str, names: Collection[str], model: EarlyExitModel) -> None:
    """Raise InputError for soft labels whose predictions are of another task: the same logits would mean something else."""
    predicted = {task: columns[0] for task, columns in PREDICTED.items()}
    others = [name for task, name in predicted.items() if task is not model.task and name in names]
    if others and predicted[model.task] not in names:
        raise InputError("labels", f"{labels}: has a column '{others[0]}', so they are of a model of another task")
