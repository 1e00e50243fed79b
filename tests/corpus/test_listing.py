"""The corpus is what the user sees: every file once, by folder and by glob alike, and nothing passed over in silence."""

import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.listing import list_inputs, matches
from pipeline.corpus.reader import read_shards
from pipeline.errors import InputError, StorageError, UserError
from pipeline.storage.locate import storage_of
from tests.support.compressed import packed
from tests.support.s3_server import S3Server


def fill(folder: str, *names: str) -> None:
    for name in names:
        storage_of(folder).make_folder(os.path.dirname(f"{folder}/{name}"))
        storage_of(folder).write(f"{folder}/{name}", f"{name}\n".encode())


def names(pattern: object) -> list[str]:
    return [file.name for file in list_inputs(str(pattern)).files]


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """Make a corpus, `in`, and another disk beside it."""
    fill(str(tmp_path), "in/d1/a.txt", "in/d2/b.txt", "disk2/2024/c.txt", "disk2/2024/deep/d.txt", "disk2/e.txt")
    return tmp_path / "in"


def test_linked_folders_and_files_are_read_under_the_name_of_the_link(disks: Path) -> None:
    (disks / "2024").symlink_to("../disk2/2024")
    (disks / "e.txt").symlink_to(disks.parent / "disk2" / "e.txt")
    expected = ["2024/c.txt", "2024/deep/d.txt", "d1/a.txt", "d2/b.txt", "e.txt"]
    assert names(disks) == names(f"{disks}/**") == names(f"{disks}/**/*.txt") == expected
    assert names(f"{disks}/*/*.txt") == ["2024/c.txt", "d1/a.txt", "d2/b.txt"]
    assert names(f"{disks}/2024") == ["c.txt", "deep/d.txt"]
    corpus = list_inputs(str(disks))
    assert corpus.remarks == []
    paths = [f"{disks.parent}/disk2/2024/{name}" for name in ("c.txt", "deep/d.txt")]
    assert [file.path for file in corpus.files][:2] == paths


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt", "/**/**/*.txt"])
def test_loops_end_and_every_file_is_listed_once(pattern: str, disks: Path) -> None:
    (disks / "loop").symlink_to(".")
    (disks / "d1" / "up").symlink_to("..")
    (disks / "d1" / "over").symlink_to("../d2")
    (disks / "d2" / "back").symlink_to("../d1")
    (disks / "latest").symlink_to("d1")
    corpus = list_inputs(f"{disks}{pattern}")
    assert [file.name for file in corpus.files] == ["d1/a.txt", "d2/b.txt"]
    assert corpus.remarks == ["5 names of what has another name already are left alone, such as latest (which is d1)"]


def test_two_linked_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    fill(str(tmp_path), "x/a.txt", "y/b.txt")
    (tmp_path / "x" / "y").symlink_to("../y")
    (tmp_path / "y" / "x").symlink_to("../x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "q").symlink_to("../y")
    (tmp_path / "in" / "p").symlink_to("../x")
    assert names(tmp_path / "in") == names(f"{tmp_path}/in/**/*.txt") == ["p/a.txt", "q/b.txt"]


def test_a_file_of_several_names_is_read_under_the_plainest(tmp_path: Path) -> None:
    fill(str(tmp_path), "in/b.txt", "in/day2/c.txt")
    os.link(tmp_path / "in" / "b.txt", tmp_path / "in" / "z.txt")
    os.link(tmp_path / "in" / "day2" / "c.txt", tmp_path / "in" / "d.jsonl")
    (tmp_path / "in" / "a.txt").symlink_to("b.txt")
    corpus = list_inputs(str(tmp_path / "in"))
    assert [file.name for file in corpus.files] == ["b.txt", "d.jsonl"]
    assert corpus.remarks == ["3 names of what has another name already are left alone, such as z.txt (which is b.txt)"]


def test_a_file_is_read_under_a_name_that_says_its_format(tmp_path: Path) -> None:
    """The hub's cache has links with names to files without, and a writer may have put a hard link beside its own name."""
    fill(str(tmp_path), "blobs/abc123", "in/0001.tmp")
    (tmp_path / "snapshots" / "r1").mkdir(parents=True)
    (tmp_path / "snapshots" / "r1" / "data.csv").symlink_to("../../blobs/abc123")
    (tmp_path / "in" / "data.csv").hardlink_to(tmp_path / "in" / "0001.tmp")
    assert names(tmp_path) == ["in/data.csv", "snapshots/r1/data.csv"]


def test_a_glob_finds_files_under_the_name_of_a_link_to_a_folder_that_it_has_walked(tmp_path: Path) -> None:
    fill(str(tmp_path), "g/versions/v5/a.csv", "g/x/2024/b.csv")
    (tmp_path / "g" / "2024").symlink_to("versions/v5")
    assert names(f"{tmp_path}/g/**/2024/*.csv") == ["2024/a.csv", "x/2024/b.csv"]
    assert names(f"{tmp_path}/g/**/*.csv") == ["versions/v5/a.csv", "x/2024/b.csv"]


def test_a_glob_may_begin_at_the_root(tmp_path: Path) -> None:
    fill(str(tmp_path), "a.csv")
    first, rest = str(tmp_path).removeprefix("/").split("/", 1)
    assert names(f"/{first[:-1]}?/{rest}/*.csv") == [f"{tmp_path}/a.csv".removeprefix("/")]


def test_a_partition_may_begin_with_an_underscore(place: str) -> None:
    fill(place, "_year=2020/a.csv", "_logs/b.csv")
    assert names(place) == ["_year=2020/a.csv"]


def test_another_spelling_of_a_corpus_is_the_same_files(disks: Path) -> None:
    (disks.parent / "latest").symlink_to(disks / "d1")
    (direct,) = list_inputs(f"{disks}/d1").files
    for spelling in (
        f"{disks.parent}/latest",
        f"{disks.parent}/latest/",
        f"{disks}/d2/../d1",
        f"{disks.parent}/latest/*",
    ):
        assert list_inputs(spelling).files == [direct]
    (file,) = list_inputs(f"{disks.parent}/latest/a.txt").files
    assert file.shard_id(0) == direct.shard_id(0)


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.txt"])
@pytest.mark.parametrize("target", ["gone/x.txt", "x.txt", "d1/a.txt/x"])
def test_a_link_that_leads_nowhere_is_refused_by_name(pattern: str, target: str, disks: Path) -> None:
    (disks / "x.txt").symlink_to(target)
    with pytest.raises(InputError, match=f"{disks}/x.txt: is a link to {target}, which is not there"):
        list_inputs(f"{disks}{pattern}")
    with pytest.raises(InputError, match="is a link to"):
        list_inputs(f"{disks}/x.txt")


def test_a_link_that_no_name_asks_for_may_lead_nowhere(disks: Path) -> None:
    (disks / ".#a.txt").symlink_to("user@host.4711")
    (disks / "x.jsonl").symlink_to("gone")
    assert names(f"{disks}/d*/*.txt") == ["d1/a.txt", "d2/b.txt"]
    (disks / "x.jsonl").unlink()
    assert list_inputs(str(disks)).remarks == ["1 name beginning with _ or . is left alone, such as .#a.txt"]


def test_what_is_no_file_is_told_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(str(tmp_path), "in/a.txt")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    (tmp_path / "in" / "zero.txt").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path / "in")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("b.txt")
        corpus = list_inputs(str(tmp_path / "in"))
        assert [file.name for file in corpus.files] == ["a.txt"]
        assert corpus.remarks == ["3 names of pipes, sockets or devices are left alone, such as b.txt"]
        for name in ("b.txt", "pipe.txt", "zero.txt"):
            with pytest.raises(InputError, match=f"{name}: is a pipe, a socket or a device"):
                list_inputs(name)


def test_all_that_is_left_alone_is_counted_by_its_kind(place: str) -> None:
    fill(f"{place}/in", "a.txt", "b.md", "c.bz2", "_SUCCESS", ".DS_Store", "_x/d.txt", "_x/e.txt", "sub/.f.txt.crc")
    corpus = list_inputs(f"{place}/in")
    assert [file.name for file in corpus.files] == ["a.txt"]
    assert sorted(corpus.remarks) == [
        "2 files of other kinds are left alone, such as b.md",
        "4 names beginning with _ or . are left alone, such as .DS_Store",
    ]
    fill(f"{place}/hidden", "_SUCCESS", "x.orc")
    with pytest.raises(
        InputError, match=r"no file to read \(1 name begin.* as _SUCCESS; 1 file of other .* as x.orc\)"
    ):
        list_inputs(f"{place}/hidden")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("_*/*.txt", ["_x/d.txt"]),
        ("*/*.txt", ["s/f.txt"]),
        ("**/*.txt", ["a[1].txt", "s/f.txt"]),
        ("**/_x/*", ["_x/d.txt"]),
        (".h*", [".hidden.txt"]),
        ("**", ["a[1].txt", "s/f.txt", "s/t/g.csv"]),
        ("*", ["a[1].txt"]),
        ("a[[]1].txt", ["a[1].txt"]),
        ("[!b]*.txt", ["a[1].txt"]),
        ("s**/*.txt", ["s/f.txt"]),
        ("**/t/**", ["s/t/g.csv"]),
        ("**/**", ["a[1].txt", "s/f.txt", "s/t/g.csv"]),
    ],
)
def test_a_glob_means_the_same_on_disks_and_on_s3(pattern: str, found: list[str], place: str) -> None:
    fill(f"{place}/in", "a[1].txt", "s/f.txt", "s/t/g.csv", "_x/d.txt", ".hidden.txt")
    assert names(f"{place}/in/{pattern}") == found


@pytest.mark.parametrize("pattern", ["[z-a]*.txt", "[", "[!", "a[.txt", "[]", "[[:alpha:]]", "(", "{a,b}.txt", "\\"])
def test_a_bad_glob_is_one_line(pattern: str, place: str) -> None:
    fill(f"{place}/in", "a.txt")
    with pytest.raises(InputError, match="no such file, folder or match"):
        list_inputs(f"{place}/in/{pattern}")


def test_a_glob_matches_paths_as_the_listing_does() -> None:
    assert matches("/data/*.txt", "/data/a.txt")
    assert matches("/data/**/a.txt", "/data/a.txt")
    assert matches("/data/a.txt", "/data/a.txt")
    assert not matches("/data/*.txt", "/data/x/a.txt")
    assert not matches("/data/*.txt", "/data2/a.txt")
    assert not matches("/data", "/data/a.txt")


ODD_KEYS = [
    "dou//ble.txt",
    "double.txt",
    "/lead.txt",
    "//lead.txt",
    "in[1]/a.txt",
    "star*.txt",
    "what?.txt",
    "sp ace+%20#&.txt",
    "quote'\".txt",
    "ümläut.txt",
    "a/../b.txt",
    "./c.txt",
    "back\\slash.txt",
]


def test_keys_of_s3_are_what_they_are(s3: S3Server) -> None:
    readable = [key for key in ODD_KEYS if not any(piece.startswith(".") for piece in key.split("/"))]
    for key in ODD_KEYS:
        storage_of("s3://").write(f"s3://bucket/in/{key}", f"{key!r}\n".encode())
    corpus = list_inputs("s3://bucket/in")
    assert [file.name for file in corpus.files] == sorted(readable)
    rows: dict[str, str] = {}
    for file in corpus.files:
        (shard,) = read_shards(file, Columns(text="text"))
        assert shard.read_error is None
        rows |= dict(zip(shard.rows["id"].to_pylist(), shard.rows["text"].to_pylist(), strict=True))
    assert rows == {f"{key}:0": repr(key) for key in readable}


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("s3://bucket/in[1]", ["a.txt"]),
        ("s3://bucket/in[1]/", ["a.txt"]),
        ("s3://bucket/in[1]/a.txt", ["a.txt"]),
        ("s3://bucket/q*/b?", ["c.txt"]),
        ("s3://bucket/q*/*/*.txt", ["q*/b?/c.txt"]),
        ("s3://bucket/d//", ["e.txt"]),
        ("s3://bucket/d/", ["/e.txt"]),
        ("s3://bucket//", ["f.txt"]),
    ],
)
def test_a_prefix_may_have_any_characters(location: str, found: list[str], s3: S3Server) -> None:
    for key in ("in[1]/a.txt", "in1/x.txt", "q*/b?/c.txt", "d//e.txt", "/f.txt"):
        storage_of("s3://").write(f"s3://bucket/{key}", b"x\n")
    assert names(location) == found


def test_large_objects_of_odd_keys_are_read_by_ranges_in_the_version_that_was_listed(s3: S3Server) -> None:
    storage, path = storage_of("s3://"), "s3://bucket/in//a*b.txt"
    storage.write(path, b"a line of text\n" * (1 << 20))
    (file,) = list_inputs("s3://bucket/in").files
    assert sum(len(shard) for shard in read_shards(file, Columns(text="text"))) == 1 << 20
    shards = read_shards(file, Columns(text="text"))
    next(shards)
    storage.write(path, b"another text\n" * (1 << 20))
    with pytest.raises(StorageError, match="changed after it was listed"):
        list(shards)


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"\xff/a.txt", b"a\x80b.jsonl"])
def test_a_name_that_is_no_utf8_costs_its_file_under_an_escaped_name(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in" / os.fsdecode(name)
    path.parent.mkdir(parents=True)
    path.write_text('{"text": "a"}\n')
    fill(str(tmp_path / "in"), "good.txt")
    escaped = name.decode(errors="backslashreplace")
    corpus = list_inputs(str(tmp_path / "in"))
    bad, good = sorted(corpus.files, key=lambda file: file.problem is None)
    assert (bad.name, bad.path, good.name) == (escaped, f"{tmp_path}/in/{escaped}", "good.txt")
    (shard,) = read_shards(bad, Columns(text="text"))
    assert (shard.read_error, shard.last, len(shard)) == ("its name is no UTF-8; rename it", True, 0)
    assert resolve_columns(corpus.files, Columns(text="text")).text == "text"
    with pytest.raises(UserError, match="its name is no UTF-8; rename it"):
        resolve_columns([bad], Columns(text="text"))


def test_other_files_may_be_called_anything(tmp_path: Path) -> None:
    for name in (b"caf\xe9.md", b"new\nline \x1b[31m.md"):
        (tmp_path / os.fsdecode(name)).touch()
    fill(str(tmp_path), "a.txt")
    assert list_inputs(str(tmp_path)).remarks == [r"2 files of other kinds are left alone, such as caf\xe9.md"]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.txt.zst", "a.csv", "a.jsonl"])
@pytest.mark.parametrize("when", ["opened", "read"])
def test_a_file_that_is_being_written_is_no_damaged_one(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage is believed only of the file that was listed: one that has changed since ends the run, and is read by the next."""
    monkeypatch.setattr("pipeline.corpus.reader.SHARD_ROWS", 1000)
    path = tmp_path / name
    whole = whole_file(path)
    path.write_bytes(whole[: len(whole) // 2])
    (file,) = list_inputs(str(path)).files
    if when == "opened" or name in ("a.parquet", "a.txt.zst"):  # of whose half nothing can be read
        path.write_bytes(whole)
    shards = read_shards(file, Columns(text="text"))

    def complete(_shard: object) -> None:
        path.write_bytes(whole)

    with pytest.raises(StorageError, match=f"{path}: changed after it was listed"):
        list(map(complete, shards))
    with pytest.raises(StorageError, match=f"{path}: changed after it was listed"):
        list(read_shards(file, Columns(text="text")))


def whole_file(path: Path) -> bytes:
    texts = [f"{number * 7919 % 10007} row" for number in range(40_000)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=10_000)
        return path.read_bytes()
    line = {".jsonl": '{{"text": "{}"}}\n', ".csv": "{}\n", ".txt": "{}\n"}
    kind = next(suffix for suffix in path.suffixes if suffix in line)
    content = ("text\n" if kind == ".csv" else "") + "".join(line[kind].format(text) for text in texts)
    path.write_bytes(packed(path, content.encode()))
    return path.read_bytes()
