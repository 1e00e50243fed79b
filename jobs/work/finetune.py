"""Fine-tune an encoder on labelled text: the work of jobs/finetune.py."""

import argparse
from functools import partial

from jobs.work import loading, training
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.exits.task import Task
from pipeline.corpus.labelled import label_reader, read_texts, tokenize_texts
from pipeline.errors import InputError
from pipeline.training.finetune import FinetuneSpec, check_trainable, finetune, read_labelled, split_off_dev

TASKS = {"classification": Task.CLASSES, "regression": Task.VALUE, "multi-label": Task.LABELS}
"""Tasks by the names that users give."""


def run(args: argparse.Namespace) -> int:
    """Read the labelled text, and fine-tune; return the exit code."""
    loading.find_model(args.backbone)
    columns, task = loading.text_columns(args, args.label_column), TASKS[args.task]
    texts, classes = read_labelled(
        args.train, columns, args.limit, task=task, class_names=args.class_names, separator=args.label_separator
    )
    model = EarlyExitModel.from_pretrained(args.backbone, new_labels=classes, new_task=task)
    tokenizer = loading.load_tokenizer(args.backbone, model, args.max_tokens)
    if args.strategy and model.shape.layers == 1:
        raise InputError("backbone", f"{args.backbone}: has one layer, so that there are no exits to train")
    train = tokenize_texts(texts, tokenizer, classes, args.train, task)
    if args.dev:
        dev_texts = read_texts(args.dev, columns, read_label=label_reader(task, args.label_separator))
        dev = tokenize_texts(dev_texts, tokenizer, classes, args.dev, task)
    else:
        train, dev = split_off_dev(train, args.seed, least=2 if task is Task.VALUE else 1)
    check_trainable(train, dev, classes, path=args.train, dev_path=args.dev)
    spec = FinetuneSpec(
        backbone=loading.absolute_model(args.backbone),
        classes=classes,
        head=args.head,
        strategy=args.strategy,
        exit_weights=args.exit_weights,
        train=train,
        dev=dev,
        task=task,
        output=training.output_folder(args),
        training=training.config(args, early_stopping=args.early_stopping, head_learning_rate=args.head_learning_rate),
        second_stage=training.config(args, learning_rate=args.head_learning_rate),
        weights=weights_digest(args.backbone),
    )
    kind = {Task.VALUE: "one value", Task.LABELS: f"label sets of {len(classes)}"}.get(task, f"{len(classes)} classes")
    about = f"{args.backbone}: {model.shape.layers} layers, {kind}; {len(train):,} rows, {len(dev):,} dev"
    about += f"; {texts.rejected:,} cannot be used" if texts.rejected else ""
    del model
    return training.run(
        args,
        partial(finetune, spec),
        tokenizer_from=args.backbone,
        about=about,
        weights=str(spec.weights),
        tokenizer=tokenizer.spec.digest,
    )
