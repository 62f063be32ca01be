"""The `data` section of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationInfo, field_validator

from engine.data.instructions.settings import Settings
from engine.errors import nearest

NEEDS = {
    "digits": "",
    "generated": "name",
    "sklearn": "name",
    "torchvision": "name",
    "hf": "name",
    "csv": "file or folder",
    "jsonl": "file or folder",
    "parquet": "folder or file",
    "imagefolder": "folder",
}
"""The text after the colon of each source, "" for none."""

SOURCES = tuple(NEEDS)
SPELLINGS = (
    "digits, generated:sentences, generated:instructions, sklearn:NAME, torchvision:NAME, hf:NAME, csv:FILE, "
    "jsonl:FILE, parquet:FOLDER or imagefolder:FOLDER"
)

INSTRUCTIONS = "generated:instructions"
_OF_INSTRUCTIONS = f"of {INSTRUCTIONS}: {{}}"

PLACES = {
    "generated": ("sentences", INSTRUCTIONS.partition(":")[2]),
    "sklearn": ("breast_cancer", "wine", "diabetes", "digits"),
}
"""The names that a source knows, where they are a few."""


def _read_columns(value: Any) -> dict[str, tuple[str, ...]]:
    """By hand, because a union's errors would name each spelling in turn."""
    if not isinstance(value, dict):
        raise ValueError("must be a mapping from what a column is for to its name, as {label: fine_label}")
    found = {}
    for role, names in value.items():
        names = [names] if isinstance(names, str) else names
        if not (isinstance(role, str) and isinstance(names, list | tuple) and names):
            raise ValueError(f"{role} must name a column, or a list of columns")
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"{role} must name a column, or a list of columns, found {names!r}")
        found[role] = tuple(names)
    return found


def _write_columns(columns: dict[str, tuple[str, ...]]) -> dict[str, str | list[str]]:
    return {role: names[0] if len(names) == 1 else list(names) for role, names in columns.items()}


def _read_public(value: Any, info: ValidationInfo) -> float | str | None:
    """By hand, because a union's errors would name each spelling in turn."""
    if value is None or (isinstance(value, str) and value):
        return value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise ValueError("must be a share of the training rows above 0 and below 1, a folder, or null")
    if value + info.data.get("validation", 0.0) >= 1:
        raise ValueError(f"leaves no training row beside validation = {info.data['validation']:g}; make both smaller")
    return float(value)


class DataConfig(BaseModel):
    """The examples to learn from.

    `source` is one of

    - `digits`: scikit-learn's digits as images of 8x8 pixels, which need no file;
    - `generated:sentences`: short sentences on four topics in three styles (`domain`), made from a fixed seed;
    - `generated:instructions`: tasks of five domains with facts that can be checked, answered by `writers` who
      each have a style of their own; see `writers` and the keys below it, which no other source uses;
    - `sklearn:NAME`: scikit-learn's tables breast_cancer, wine, diabetes (a number to predict) and digits (64 numbers);
    - `torchvision:NAME`: a data set of torchvision's under `root`; `torchvision:EMNIST:SPLIT` for EMNIST;
    - `hf:NAME`: a data set of the Hugging Face hub, `hf:NAME:PART` for a part of it; needs the package `datasets`;
    - `csv:FILE`: a file with a header line, or a folder with `train.csv` and `test.csv`;
    - `jsonl:FILE`: a file with a JSON object a line, or a folder with `train.jsonl` and `test.jsonl`;
    - `parquet:FOLDER`: `train.parquet` and `test.parquet`, or shards as `train-00000-of-00002.parquet`, in the layout
      of the Hugging Face hub; or one file;
    - `imagefolder:FOLDER`: `train/CLASS/*.png` and `test/CLASS/*.png`; PNG, JPEG or WebP.

    FOLDER and FILE may hold environment variables; one that does not exist is looked for under the folder TESSERA_DATA.
    Of a source with a single set of rows a fifth is the test half, by a shuffled order that never changes.

    `columns` names those of a file that a task is to use, as `{image: img, label: fine_label}`; where there is one
    candidate it is found. What else a file's words and numbers are is decided by `engine.data.contents`.

    With `validation` above 0 that share of the TRAINING rows is held out and stands in the place of the test set,
    whose file is then not even opened: so settings can be chosen without test data.

    `public` are examples that the server owns itself, for methods that distil on such (as FedDF with `unlabelled:
    public`): a share of the TRAINING rows, which no client then holds; or a folder as of `parquet:FOLDER`, of whose
    `train.parquet` the labels are not looked at.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    source: str = Field(description=SPELLINGS)
    columns: Annotated[dict[str, tuple[str, ...]], PlainValidator(_read_columns), PlainSerializer(_write_columns)] = (
        Field(default_factory=dict, description="columns by what the task needs them for, as {label: fine_label}")
    )
    root: Path | None = Field(
        default=None, strict=False, validate_default=True, description="folder of torchvision's data sets"
    )
    download: bool = Field(default=False, description="let torchvision fetch what is not under `root`")
    limit: int | None = Field(default=None, ge=1, description="use the first training rows only")
    test_limit: int | None = Field(default=None, ge=1, description="use the first test (or held-out) rows only")
    size: int | None = Field(
        default=None, ge=1, description="scale every image to this side in pixels, cropped at the centre to a square"
    )
    validation: float = Field(default=0.0, ge=0.0, lt=1.0, description="share of the training rows held out")
    public: Annotated[float | str | None, PlainValidator(_read_public)] = Field(
        default=None,
        description="images that the server owns: a share of the training rows, which no client then holds, or a "
        "folder with train.parquet; null: none",
    )

    writers: int | None = Field(
        default=None,
        ge=1,
        le=100,
        validate_default=True,
        description=_OF_INSTRUCTIONS.format("how many writers there are"),
    )
    items: int | None = Field(
        default=None,
        ge=1,
        le=2_000,
        validate_default=True,
        description=_OF_INSTRUCTIONS.format("training tasks of each writer; the test half has a quarter as many"),
    )
    content_shift: float | None = Field(
        default=None,
        ge=0,
        le=1,
        validate_default=True,
        description=_OF_INSTRUCTIONS.format(
            "share of a writer's tasks that are of its own domain; the others are of all domains in equal numbers"
        ),
    )
    style_shift: float | None = Field(
        default=None,
        ge=0,
        le=1,
        validate_default=True,
        description=_OF_INSTRUCTIONS.format(
            "share of a writer's answers that are in its own style; the others are in the canonical one"
        ),
    )
    seed: int | None = Field(
        default=None, ge=0, validate_default=True, description=_OF_INSTRUCTIONS.format("seed of every draw")
    )

    @property
    def kind(self) -> str:
        """The word before the first colon of `source`."""
        return self.source.partition(":")[0]

    @property
    def place(self) -> str:
        """The text after the first colon of `source`: a name or a folder."""
        return self.source.partition(":")[2]

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, place = source.partition(":")
        if kind not in SOURCES:
            raise ValueError(f"there is no source {kind!r}; {nearest(kind, SOURCES)}use {SPELLINGS}")
        if not NEEDS[kind] and source != kind:
            raise ValueError(f"{kind} takes no name or folder, found {source!r}; use {kind}")
        if NEEDS[kind] and not place:
            raise ValueError(f"{kind} needs a {NEEDS[kind]}; use {SPELLINGS}")
        if place not in PLACES.get(kind, (place,)):
            spellings = ", ".join(f"{kind}:{name}" for name in PLACES[kind])
            raise ValueError(f"{kind} has no {place!r}; {nearest(place, PLACES[kind])}use {spellings}")
        return source

    @field_validator("root")
    @classmethod
    def _root_fits_source(cls, root: Path | None, info: ValidationInfo) -> Path | None:
        kind = info.data.get("source", "").partition(":")[0]
        if kind == "torchvision" and root is None:
            raise ValueError("torchvision needs the folder that holds its data sets, or that shall hold them")
        if kind and kind != "torchvision" and root is not None:
            raise ValueError(f"is not used by {kind}; leave it out")
        return root

    @field_validator("download")
    @classmethod
    def _download_fits_source(cls, download: bool, info: ValidationInfo) -> bool:
        kind = info.data.get("source", "").partition(":")[0]
        if download and kind and kind != "torchvision":
            raise ValueError(f"only torchvision sources can be downloaded, not {kind}; leave it out")
        return download

    @field_validator("writers", "items", "content_shift", "style_shift", "seed")
    @classmethod
    def _is_of_instructions(cls, value: Any, info: ValidationInfo) -> Any:
        source = info.data.get("source")
        if value is None and source == INSTRUCTIONS:
            return getattr(Settings(), str(info.field_name))
        if value is not None and source not in (None, INSTRUCTIONS):
            raise ValueError(f"is not used by {source.partition(':')[0]}, only by {INSTRUCTIONS}; leave it out")
        return value
