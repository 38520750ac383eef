import os
from pathlib import Path

import pytest

from hscc_search.config import ColumnsConfig
from hscc_search.data.tables import images_of_table
from hscc_search.errors import DataError


@pytest.fixture
def table(tmp_path):
    def write(text, name="images.csv"):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def rows(images):
    return [(str(image.path.name), image.class_name, image.group, image.part) for image in images]


@pytest.mark.parametrize("sign", [",", ";", "\t"], ids=["commas", "semicolons", "tabs"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_table_says_where_images_lie_and_what_they_are(table, tmp_path, sign, mark):
    lines = ["path,label,group,split", "a.png,ill,p1,Training", '"b, c.png",well,p2,val', "", "d.png,ill,3,TEST"]
    text = "\r\n".join(lines).replace(",", sign) if sign != "," else "\n".join(lines)
    if sign != ",":
        text = text.replace(f"b{sign} c", "b, c")
    images, _ = images_of_table(table(mark + text), ColumnsConfig())
    assert rows(images) == [
        ("a.png", "ill", "p1", "train"),
        ("b, c.png", "well", "p2", "validation"),
        ("d.png", "ill", "3", "test"),
    ]
    assert images[0].path == tmp_path / "a.png"


def test_columns_may_have_other_names_and_groups_and_parts_may_be_missing(table):
    path = table("file,diagnosis,who\na.png,ill,p1\n")
    assert rows(images_of_table(path, ColumnsConfig(path="file", label="diagnosis"))[0]) == [
        ("a.png", "ill", None, None)
    ]
    named = ColumnsConfig(path="file", label="diagnosis", group="who")
    assert rows(images_of_table(path, named)[0]) == [("a.png", "ill", "p1", None)]


def test_absolute_paths_stay(table):
    ((image,), _) = images_of_table(table("path,label\n/images/a.png,ill\n"), ColumnsConfig())
    assert image.path == Path("/images/a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "names no images"),
        ("file,label\na.png,ill\n", r"has no column 'path': its columns are file, label; .*data\.columns\.path"),
        ("path,label,path\na,b,c\n", "two columns 'path'"),
        ("path,label\na.png,\n", "line 2 .* no value in column 'label'"),
        ("path,label\na.png,ill,more\n", "line 2 .* has 3 cells and the header 2"),
        ("path,label\na.png\n", "line 2 .* has 1 cells and the header 2"),
        ("path,label\na.png,ill\nb.png,ill\na.png,well\n", "names image a.png twice, in line 2 and line 4"),
        (
            "path,label,split\na.png,ill,holdout\n",
            "line 2 .* column split: 'holdout' is no part .* train, validation, test",
        ),
        ("path,label,group\na.png,ill,\n", "line 2 .* no value in column 'group'"),
        ('path,label\n"a.png,ill\n', "is no CSV"),
        (b"path,label\na.png,\xff\n", "no text in UTF-8"),
        ("path,label\na.png,il\x1bl\n", "no plain text"),
    ],
)
def test_a_table_that_cannot_be_used_ends_in_one_line(table, text, message):
    with pytest.raises(DataError, match=message) as told:
        images_of_table(table(text), ColumnsConfig())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
        (os.mkdir, "is no regular file: give a CSV or Parquet file"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "is too large.*at most"),
    ],
    ids=["pipe", "device", "folder", "huge"],
)
def test_only_a_regular_file_of_some_size_is_read(tmp_path, suffix, make, said):
    make(tmp_path / f"images{suffix}")
    with pytest.raises(DataError, match=said):
        images_of_table(tmp_path / f"images{suffix}", ColumnsConfig())


def test_a_table_that_has_more_than_its_size_says_is_not_cut(tmp_path, monkeypatch):
    (tmp_path / "images.csv").symlink_to("/proc/self/status")
    monkeypatch.setattr("hscc_search.data.tables._MOST_BYTES", 10)
    with pytest.raises(DataError, match="is too large: it has 11 bytes"):
        images_of_table(tmp_path / "images.csv", ColumnsConfig())


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv \(No such file"):
        images_of_table(tmp_path / "none.csv", ColumnsConfig())


def test_a_missing_column_that_was_named_is_refused(table):
    with pytest.raises(DataError, match=r"no column 'who'.*data\.columns\.group"):
        images_of_table(table("path,label\na.png,ill\n"), ColumnsConfig(group="who"))


def test_parquet_reads_as_csv_does(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"path": ["a.png", "b.png"], "label": [0, 1], "group": ["p1", "p2"], "split": ["train", "test"]}
    parquet.write_table(arrow.table(columns), tmp_path / "images.parquet")
    images, _ = images_of_table(tmp_path / "images.parquet", ColumnsConfig())
    assert rows(images) == [("a.png", "0", "p1", "train"), ("b.png", "1", "p2", "test")]
    parquet.write_table(arrow.table({"path": ["a.png"], "label": [None]}), tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"row 1 .* no value in column 'label'"):
        images_of_table(tmp_path / "images.parquet", ColumnsConfig())
    (tmp_path / "images.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot read table"):
        images_of_table(tmp_path / "images.parquet", ColumnsConfig())


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {},
            "patient (2 values for 3 images), fold (2 values for 3 images); data.columns.group, data.columns.split may",
        ),
        ({"group": "patient"}, "fold (2 values for 3 images); data.columns.split may"),
        ({"group": "patient", "split": "fold"}, None),
    ],
)
def test_columns_that_may_hold_groups_or_parts_are_told_where_they_are_not_used(table, columns, told):
    text = "path,label,patient,fold\na.png,ill,p1,train\nb.png,well,p1,train\nc.png,ill,p2,test\n"
    _, notes = images_of_table(table(text), ColumnsConfig(**columns))
    assert [told in note for note in notes] == ([True] if told else [])
