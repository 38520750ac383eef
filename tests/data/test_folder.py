import os
import shutil
import tempfile
from pathlib import Path

import pytest

from hscc_search.data.folder import find_images
from hscc_search.errors import DataError


@pytest.fixture
def make(tmp_path):
    """Make files, and folders where a name ends with a slash; their content is never looked at, unless given."""

    def make(*names, content=b"", top="images"):
        for name in names:
            path = tmp_path / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(parents=True) if name.endswith("/") else path.write_bytes(content)
        return tmp_path / top

    return make


def classes(folder, level=None):
    """The paths below a folder that are images of a class, by class."""
    found = {}
    for path, class_name in find_images(folder, level).images:
        found.setdefault(class_name, []).append(path.relative_to(folder).as_posix())
    return found


def refusal(folder, level=None):
    """What is said of a folder that is refused: one line that can be printed."""
    with pytest.raises(DataError) as refused:
        find_images(folder, level)
    text = str(refused.value)
    text.encode()
    assert "\n" not in text
    assert "\x1b" not in text
    return text


def test_images_may_lie_at_any_depth_in_a_class_folder(make):
    folder = make("cat/0.png", "cat/patient1/day2/1.png", "dog/patient2/2.png", "dog/patient3/3.png")
    assert classes(folder) == {
        "cat": ["cat/0.png", "cat/patient1/day2/1.png"],
        "dog": ["dog/patient2/2.png", "dog/patient3/3.png"],
    }
    (note,) = find_images(folder).notes
    assert "below the class folders: 3 (cat/patient1, dog/patient2, dog/patient3)" in note


def test_patients_are_no_classes_even_where_each_class_numbers_them_anew(make):
    folder = make(*(f"{name}/patient{number:03}/slice.png" for name in ("ill", "well") for number in range(12)))
    assert classes(folder).keys() == {"ill", "well"}
    (note,) = find_images(folder).notes
    assert "24 (ill/patient000, ill/patient001, ill/patient002 and 21 more)" in note


@pytest.mark.parametrize("splits", [("Training", "Testing"), ("train", "val", "test"), ("TRAIN", "Valid"), ("train",)])
def test_parts_of_a_published_split_are_merged(make, splits):
    folder = make(*(f"{part}/{name}/{part}.png" for part in splits for name in ("cat", "dog")))
    assert {name: len(paths) for name, paths in classes(folder).items()} == {"cat": len(splits), "dog": len(splits)}
    assert find_images(folder).notes == ()


def test_a_class_in_one_part_alone_is_told(make):
    folder = make("train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png", "val/images/4.png")
    (note,) = find_images(folder).notes
    assert note == "classes that are not in each of train, val: images (val)"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["2024/cat/0.png", "2024/dog/1.png", "2025/cat/2.png"], ["2024, 2025", "such as cat", "class_level: 1 or 2"]),
        (["train/cat/0.png", "more/cat/1.png"], ["train beside more", "class_level: 1"]),
        (["train/0.png", "test/1.png"], ["hold images and no class folders", "class_level: 1"]),
        (["train/cat/0.png", "train/1.png"], ["train/1.png lies outside", "train/<class>/"]),
        (["cat/0.png", "1.png", "2.png"], ["images/1.png (and 1 more) lies outside", "images/<class>/"]),
        (["0.png"], ["0.png lies outside of a class folder"]),
    ],
)
def test_what_leaves_open_which_folders_are_the_classes_is_refused(make, names, said):
    text = refusal(make(*names))
    assert [words for words in said if words not in text] == []


def test_the_level_of_the_classes_can_be_given(make):
    folder = make("2024/cat/0.png", "2024/dog/1.png", "2025/cat/2.png")
    assert classes(folder, 1) == {"2024": ["2024/cat/0.png", "2024/dog/1.png"], "2025": ["2025/cat/2.png"]}
    assert classes(folder, 2) == {"cat": ["2024/cat/0.png", "2025/cat/2.png"], "dog": ["2024/dog/1.png"]}
    assert "lies outside" in refusal(folder, 3)


def test_test_and_control_are_classes_where_they_hold_images(make):
    assert classes(make("test/0.png", "control/1.png")).keys() == {"test", "control"}


def test_what_is_hidden_is_skipped_counted_and_named(make):
    hidden = (
        "cat/.ipynb_checkpoints/0-checkpoint.png",
        "__MACOSX/cat/._0.png",
        "cat/._0.png",
        ".DS_Store",
        "dog/Thumbs.db",
        "dog/desktop.ini",
        "@eaDir/0.png/thumb.jpg",
        ".git/objects/ab/cd.png",
    )
    folder = make("cat/0.png", "dog/1.png", "labels.csv", "cat/readme.txt", *hidden)
    assert classes(folder) == {"cat": ["cat/0.png"], "dog": ["dog/1.png"]}
    found = find_images(folder)
    assert len(found.skipped.hidden) == len(hidden)
    assert [path.name for path in found.skipped.others] == ["readme.txt", "labels.csv"]
    (note,) = found.notes
    assert "8 hidden (.DS_Store, .git, @eaDir and 5 more)" in note
    assert "2 other than images (cat/readme.txt, labels.csv)" in note


def test_a_hidden_folder_is_read_where_it_is_asked_for(make):
    folder = make("cat/0.png", "dog/1.png", top=".cache")
    assert classes(folder).keys() == {"cat", "dog"}


@pytest.mark.parametrize("suffix", [".JPG", ".Png", ".webp", ".WEBP", ".jfif", ".TIF", ".bmp"])
def test_formats_are_read_in_whatever_case(make, suffix):
    assert classes(make(f"cat/0{suffix}", "dog/1.png"))["cat"] == [f"cat/0{suffix}"]


@pytest.mark.parametrize(
    ("names", "content", "said"),
    [
        (["bird/2.gif", "bird/3.GIF"], b"", ["class 'bird'", "2 of its 2", "1 .gif, 1 .GIF", "bird/2.gif", ".webp"]),
        (["cat/2.heic"], b"", ["class 'cat'", "1 of its 2", "1 .heic"]),
        (["cat/deep/2.nii.gz"], b"", ["class 'cat'", "2.nii.gz"]),
        (["cat/2"], b"\x89PNG\r\n\x1a\n", ["class 'cat'", "1 without suffix", "cat/2"]),
        (["cat/2.part"], b"\xff\xd8\xff\xe0", ["class 'cat'", "1 .part"]),
        (["cat/2.001"], b"\0" * 128 + b"DICM", ["class 'cat'", "1 .001"]),
        (["bird/notes.txt"], b"a bird", ["class folder", "bird holds no images", ".webp"]),
        (["bird/"], b"", ["bird holds no images"]),
        (["bird/.ipynb_checkpoints/0.png"], b"", ["bird holds no images"]),
    ],
)
def test_a_class_that_loses_images_is_refused_by_name(make, names, content, said):
    make("cat/0.png", "dog/1.png")
    text = refusal(make(*names, content=content))
    assert [words for words in said if words not in text] == []


def test_a_folder_of_other_formats_alone_says_which(make):
    assert "only 2 .gif (read are .bmp" in refusal(make("cat/0.gif", "dog/1.gif"))


def test_a_gif_beside_the_class_folders_is_no_image_of_a_class(make):
    folder = make("cat/0.png", "dog/1.png", "overview.gif")
    assert [path.name for path in find_images(folder).skipped.others] == ["overview.gif"]


def test_links_that_lead_back_are_followed_once(make, tmp_path):
    folder = make("cat/0.png", "dog/1.png")
    (folder / "cat" / "up").symlink_to("..")
    (folder / "dog" / "above").symlink_to(tmp_path)
    (folder / "dog" / "more").symlink_to(make("2.png", top="elsewhere"))
    assert classes(folder) == {"cat": ["cat/0.png"], "dog": ["dog/1.png", "dog/more/2.png"]}
    assert [path.name for path in find_images(folder).skipped.links] == ["up", "above"]


def test_a_class_folder_may_be_a_link_but_not_to_another_class(make, tmp_path):
    folder = make("cat/0.png")
    (folder / "dog").symlink_to(make("1.png", top="elsewhere"))
    assert classes(folder) == {"cat": ["cat/0.png"], "dog": ["dog/1.png"]}
    (folder / "zebra").symlink_to("cat")
    assert "zebra is a link to a folder that was read already" in refusal(folder)


@pytest.mark.parametrize("target", ["nowhere", "zebra"], ids=["nothing", "itself"])
def test_a_link_to_nothing_may_be_a_class_and_is_refused(make, target):
    folder = make("cat/0.png", "dog/1.png")
    (folder / "zebra").symlink_to(target)
    assert "zebra leads nowhere" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"b\xff", r"b\xff"), (b"b\nc", r"b\nc"), (b"b\x1b[31m", r"b\x1b[31m"), ("b\u2028".encode(), r"b\u2028")],
    ids=["no UTF-8", "line break", "escape", "line separator"],
)
def test_a_class_of_an_unprintable_name_is_refused(make, name, shown):
    folder = make("cat/0.png")
    os.mkdir(os.path.join(os.fsencode(folder), name))  # noqa: PTH102, PTH118 - a name of bytes
    Path(os.fsdecode(os.path.join(os.fsencode(folder), name, b"1.png"))).touch()  # noqa: PTH118
    assert shown in refusal(folder)


def test_files_may_have_any_names(make):
    folder = make("cat/0.png", "dog/1.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/dog/\xff\n.png")).touch()
    Path(os.fsdecode(os.fsencode(folder) + b"/dog/\xff\x1b.txt")).touch()
    found = find_images(folder)
    assert len(found.images) == 3
    assert len(found.skipped.others) == 1


@pytest.mark.parametrize("closed", ["", "dog", "dog/deep"])
def test_a_folder_that_may_not_be_read_is_refused_by_name(closed):
    """As another user where the tests run as root, which may read everything."""
    folder = Path(tempfile.mkdtemp())
    try:
        for name in ("cat/0.png", "dog/1.png", "dog/deep/2.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        folder.chmod(0o755)
        (folder / closed).chmod(0)
        as_root = os.geteuid() == 0
        if as_root:
            os.seteuid(65534)
        try:
            assert f"cannot read folder {folder / closed} (Permission denied)" in refusal(folder)
        finally:
            if as_root:
                os.seteuid(0)
    finally:
        (folder / closed).chmod(0o755)
        shutil.rmtree(folder)
