"""The code uses the field's words, sentences for docstrings, and no names of command-line options below `jobs`."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator

import pytest

from tests.support.jobs import REPOSITORY

OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
FOREIGN_OPTIONS = {
    "pipeline/cluster/connect.py": {"--metrics-export-port"},
    "pipeline/cluster/resources.py": {"--resources"},
    "pipeline/reports/page.py": {"--fill", "--ink", "--line", "--soft"},
}
"""Options of `ray start`, and variables of style sheets, by the file that may name them."""

RETIRED = {
    "Lane Lanes lane lanes": "Runner, CpuRunner, GpuRunner",
    "filler tile tile_size": "padding, pad_multiple",
    "mark marks": "version",
    "Answer": "ExitOutput",
    "leaves may_exit looks_at": "exits_at, should_exit, uses_exit",
    "outline": "from_config",
    "everyone": "global_rows",
    "Position": "TrainState",
    "warm_up_then_fall": "linear_warmup_decay",
    "ahead ask": "prefetch, add_teacher_logits",
    "_groups": "param_groups",
    "Promise promise promises promised": "Guarantee",
    "Findings findings": "AuditResult",
    "Marker harmless TELLING": "AttemptLog, probe, PROBE_ROWS",
    "place places": "resources, index, key, position, folder",
    "share shares": "fraction",
    "told said say": "reported, logged, log",
    "Tokeniser tokeniser tokenisers Tokenised tokenise tokenised": "Tokenizer, tokenizer",
    "Optimiser optimiser optimisers": "optimizer",
    "TextColumns": "Columns",
}
"""Identifiers that are gone, and the words that took their place."""
BRITISH = re.compile(
    r"(?:token|optim|normal|serial|initial|summar|synchron|minim|maxim|random)is(?:e|ation|ing)|colour", re.I
)
FRAGMENT = re.compile(r"Of |The same\b|As above\b|\[[^\]]*\]\.?$")
"""A docstring that begins so is no sentence, or is nothing but a shape."""


Finding = tuple[int, str]
"""A line, and what stands there."""


def options_in(source: str) -> Iterator[Finding]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((node.lineno, option) for option in OPTION.findall(node.value))


def retired_in(source: str) -> Iterator[Finding]:
    instead = {word: words for group, words in RETIRED.items() for word in group.split()}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in instead:
            yield token.start[0], f"{token.string} (now {instead[token.string]})"


def british_in(source: str) -> Iterator[Finding]:
    for number, line in enumerate(source.splitlines(), 1):
        yield from ((number, word) for word in BRITISH.findall(line))


def fragments_in(source: str) -> Iterator[Finding]:
    """Find fragments among the docstrings of modules, classes and functions, and among those of fields and constants."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text = node.value.value.strip()
            if FRAGMENT.match(text):
                yield node.lineno, text.splitlines()[0]


@pytest.mark.parametrize(
    ("find", "folders"),
    [
        (options_in, ("models", "pipeline")),
        (retired_in, ("models", "pipeline", "jobs")),
        (british_in, ("models", "pipeline", "jobs")),
        (fragments_in, ("models", "pipeline", "jobs")),
    ],
)
def test_no_file_uses_words_of_its_own(find: Callable[[str], Iterator[Finding]], folders: tuple[str, ...]) -> None:
    files = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert len(files) > 80
    findings = [
        (path.relative_to(REPOSITORY).as_posix(), *finding) for path in files for finding in find(path.read_text())
    ]
    wrong = [f"{name}:{line}: {what}" for name, line, what in findings if what not in FOREIGN_OPTIONS.get(name, ())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("find", "source", "lines"),
    [
        (options_in, '"""Give --keep."""\na = f"{b} --speed"\nc = "a--b, -- d"\n', [1, 2]),
        (retired_in, "lane = 1\nplane = 'lane'  # lane\nself.Promise\n", [1, 3]),
        (british_in, "# tokenised\nserialisation = 1\n'Colour'\n# otherwise\n", [1, 2, 3]),
        (fragments_in, 'a = 1\n"""Of a row."""\nb = 2\n"""[B, C]."""\nc = 3\n"""Rows as [B]."""\nd = "Of"\n', [2, 4]),
    ],
)
def test_every_check_finds_what_it_is_for(
    find: Callable[[str], Iterator[Finding]], source: str, lines: list[int]
) -> None:
    assert [line for line, _ in find(source)] == lines
