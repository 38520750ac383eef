"""The sections on the images: where they lie, how they are read and divided."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hscc_search.config.pictures import (
    GREY_MEAN,
    GREY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageSize,
    Level,
    Resize,
    Shape,
    sized,
    window_bounds,
)
from hscc_search.config.section import FilePath, Section

# What counts as a copy of an image: see ``copies`` below.
CopyKind = Literal["near", "shape", "exact", "none"]
# Suffixes of the files that are read as tables.
TABLES = (".csv", ".tsv", ".parquet", ".pq")
# How a notice on what ``allow_leaks`` allows begins.
LEAKS = "the parts of this split, which was given, are not apart"


class ColumnsConfig(Section):
    """The columns of a table of images."""

    path: str = Field("path", description="column with the file of each image; relative paths start at the table")
    label: str = Field("label", description="column with the class of each image")
    group: str | None = Field(
        None, description="column that says which images belong together; without it group, where there is one"
    )
    split: str | None = Field(
        None,
        description="column with train, validation or test for each image; without it split, where there is one",
    )


class SplitConfig(Section):
    """The folders of a split of your own, relative to data.path."""

    train: str = Field(description="folder of the train part")
    validation: str | None = Field(
        None, description="folder of the validation part; without it that is drawn from the train folder"
    )
    test: str = Field(description="folder of the test part")

    @model_validator(mode="after")
    def _folders_that_differ(self) -> "SplitConfig":
        folders = self.by_part.values()
        if any(name.startswith("/") or ".." in name.split("/") for name in folders):
            raise ValueError(f"{', '.join(folders)}: folders below data.path, such as Training")
        if len({tuple(_steps(name)) for name in folders}) < len(folders):
            raise ValueError(f"each part needs a folder of its own, not {', '.join(folders)}")
        if len({len(_steps(name)) for name in folders}) > 1 or not all(map(_steps, folders)):
            raise ValueError(f"{', '.join(folders)} do not lie equally deep below data.path, as a split's folders must")
        return self

    @property
    def by_part(self) -> dict[str, str]:
        """The folders by the part that each holds."""
        return {part: name for part, name in self.model_dump().items() if name is not None}

    @property
    def depth(self) -> int:
        """The number of levels by which the folders lie below data.path."""
        return len(_steps(self.train))


def _steps(name: str) -> list[str]:
    return [step for step in name.split("/") if step not in ("", ".")]


class DataConfig(Section):
    """The images, their size, and their division into parts."""

    source: Literal["folder", "digits", "table", "python", "memory"] = Field(
        "folder",
        description="a folder of your own, a table of images, torch Datasets of your own, or the handwritten digits "
        "that come with scikit-learn",
    )
    path: FilePath | None = Field(
        None,
        description="folder with one folder of images per class, or the table: CSV, or Parquet with the extra parquet",
    )
    factory: str | None = Field(
        None,
        max_length=200,
        description="function of your own, 'module:function', for source python: it returns torch Datasets train, "
        "validation and test of (input, target), or of (input, target, group) where inputs belong together, as a dict "
        "or a tuple. uint8 inputs are RGB images; floating-point ones go into the network as they are, neither "
        "normalised nor flipped and turned",
    )
    columns: ColumnsConfig = Field(ColumnsConfig(), description="columns of the table")
    classes: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None,
        strict=False,
        description="the classes in the order of the network's outputs, as a checkpoint was trained with; "
        "alphabetical by default",
    )
    groups: str | None = Field(
        None,
        description="regular expression that finds in the path of each image, below data.path or as the table has it, "
        "which images belong together, such as a patient's: its first group in parentheses, or all it matches. They "
        "never stand in two parts, and are drawn again together for standard errors",
    )
    split: SplitConfig | None = Field(
        None, description="folders of a split of your own, which is kept as it is; without it one is drawn"
    )
    allow_leaks: bool = Field(
        False, description="keep a split of your own though copies or groups stand in two of its parts"
    )
    class_level: int | None = Field(
        None,
        ge=1,
        description="level of the folders below path whose names are the classes; without it the first, or the second "
        "where the first says train, test or validation, and the one below the folders of data.split",
    )
    copies: CopyKind = Field(
        "near",
        description="images that are copies of each other and never stand in two parts: near for what shows the same "
        "in the same colours (re-encoded, resized, brighter or darker), shape for the same in whatever colours, exact "
        "for equal pixels, none for no copies at all",
    )
    image_size: ImageSize = Field(
        224, description="side of the images in pixels, or height and width as `[height, width]`"
    )
    channels: int = Field(
        3,
        ge=1,
        le=1024,
        description="channels that the network takes: 3 for red, green and blue, with grey files as three equal ones, "
        "or 1 for grey, with colours turned to grey",
    )
    resize: Resize = Field(
        "squeeze",
        description="how an image is brought to size: squeeze changes its proportions, crop cuts off what is beyond "
        "the centre, pad fits the whole image in and adds black",
    )
    resize_to: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="with resize: crop, the pixels that the shorter side is brought to before the centre is cut out, "
        "such as 256 for an image_size of 224, as torchvision's Resize and CenterCrop do; by default nothing more is "
        "cut off than the proportions ask for",
    )
    range: tuple[Level, ...] | None = Field(
        None,
        strict=False,
        min_length=2,
        max_length=2,
        description="values that become 0 and 1 in grey files of more than 8 bits and in DICOM, after its rescaling; "
        "what is beyond is clipped. Without range and window: 0 and 65535 in 16-bit files, the file's own window in "
        "DICOM",
    )
    window: tuple[Level, ...] | None = Field(
        None,
        strict=False,
        min_length=2,
        max_length=2,
        description="the same as a window of DICOM, `[centre, width]`, which goes from centre - width / 2 to "
        "centre + width / 2 - 1",
    )
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of the images that the search measures on")
    test: float = Field(0.15, gt=0, lt=0.5, description="share of the images that only export and compare measure on")
    split_seed: int = Field(0, ge=0, lt=2**32, description="seed of the division into train, validation and test part")
    normalisation: Literal["stated", "dataset"] = Field(
        "stated",
        description="where mean and std come from: stated takes those below, dataset computes those that are not "
        "stated from the train part, and stores them with the study",
    )
    mean: tuple[Annotated[float, Field(ge=-1000, le=1000)], ...] = Field(
        IMAGENET_MEAN,
        strict=False,
        description="subtracted from each channel, which is 0 to 1; by default ImageNet's, for one channel their mean "
        "0.449",
    )
    std: tuple[Annotated[float, Field(ge=0.0001, le=1000)], ...] = Field(
        IMAGENET_STD,
        strict=False,
        description="divides each channel after the mean is subtracted; by default ImageNet's, for one channel their "
        "mean 0.226",
    )

    @property
    def shape(self) -> Shape:
        """The shape of one image: channels, height, width."""
        return sized(self.channels, self.image_size)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The values that become 0 and 1, from ``range`` or ``window``; None where neither is stated."""
        if self.range is not None:
            return self.range[0], self.range[1]
        return None if self.window is None else window_bounds(*self.window)

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "DataConfig":
        """The same images with these numbers, which were computed from them, for the normalisation."""
        return self.model_copy(update={"mean": mean, "std": std})

    @model_validator(mode="before")
    @classmethod
    def _default_normalisation(cls, tree: Any) -> Any:
        """Fill in the mean and std of one channel; leave those empty that are to be computed."""
        if not isinstance(tree, dict):
            return tree
        if tree.get("normalisation") == "dataset":
            return {"mean": (), "std": (), **tree}
        channels = tree.get("channels")
        if channels == 1:
            return {"mean": GREY_MEAN, "std": GREY_STD, **tree}
        own = tree.get("source") in ("python", "memory")
        if own and isinstance(channels, int) and channels in {2, *range(4, 1025)}:
            # Nobody knows how such inputs are spread: they stay as they are.
            return {"mean": (0.0,) * channels, "std": (1.0,) * channels, **tree}
        return tree

    @model_validator(mode="after")
    def _channels_of_files(self) -> "DataConfig":
        if self.source not in ("python", "memory") and self.channels not in (1, 3):
            raise ValueError(f"channels: image files give 1 or 3 channels, not {self.channels}")
        return self

    @model_validator(mode="after")
    def _numbers_for_each_channel(self) -> "DataConfig":
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels and (values or self.normalisation == "stated"):
                raise ValueError(
                    f"{key}: {len(values)} number{'' if len(values) == 1 else 's'} for {self.channels} "
                    f"channel{'' if self.channels == 1 else 's'}: use {self.channels}, or normalisation: dataset"
                )
        if bool(self.mean) != bool(self.std):
            raise ValueError("mean and std belong together: state both, or leave both out so that they are computed")
        return self

    @model_validator(mode="after")
    def _cut_fits(self) -> "DataConfig":
        if self.resize_to is None:
            return self
        if self.resize != "crop":
            raise ValueError("resize_to belongs to resize: crop")
        if self.resize_to < max(self.shape[1:]):
            raise ValueError(f"resize_to: {self.resize_to} is less than image_size {self.image_size}")
        return self

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "DataConfig":
        if self.range is not None and self.window is not None:
            raise ValueError("range and window say the same: use one of them")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: {list(self.range)} is not allowed: use [low, high], with high above low")
        if self.window is not None and self.window[1] <= 1:
            raise ValueError(f"window: {list(self.window)} is not allowed: use [centre, width], with a width above 1")
        return self

    @model_validator(mode="after")
    def _path_fits_source(self) -> "DataConfig":
        if self.source in ("folder", "table") and self.path is None:
            raise ValueError(f"source {self.source!r} needs a path here or --data PATH on the command line")
        if self.source in ("digits", "python", "memory") and self.path is not None:
            raise ValueError(f"source {self.source!r} takes no path: use source 'folder' for your own images")
        if (self.source == "python") != (self.factory is not None):
            raise ValueError("source 'python' and a factory 'module:function' need each other")
        if self.factory is not None and not all(self.factory.partition(":")):
            raise ValueError(f"factory: {self.factory!r} is not allowed: write package.module:function")
        if self.source != "folder" and self.class_level is not None:
            raise ValueError(f"source {self.source!r} has no folders: leave class_level out")
        if self.source != "folder" and self.split is not None:
            instead = ", and say columns.split" if self.source == "table" else ""
            raise ValueError(f"source {self.source!r} has no folders: leave split out{instead}")
        if self.split is not None and self.class_level is not None and self.class_level <= self.split.depth:
            raise ValueError(f"class_level {self.class_level} is not below the folders of split: leave it out")
        return self

    @model_validator(mode="after")
    def _groups_can_be_found(self) -> "DataConfig":
        if self.groups is None:
            return self
        if self.source not in ("folder", "table"):
            raise ValueError(f"groups: images of source {self.source!r} have no paths: leave groups out")
        if self.columns.group is not None:
            raise ValueError("groups and columns.group both say which images belong together: leave one out")
        try:
            re.compile(self.groups)
        except re.error as error:
            raise ValueError(f"groups: {self.groups!r} is no regular expression ({error})") from error
        return self

    @model_validator(mode="after")
    def _each_class_once(self) -> "DataConfig":
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: every class once, not {', '.join(self.classes)}")
        return self
