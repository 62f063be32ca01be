"""The `data` section of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator

from engine.errors import nearest

SOURCES = ("digits", "torchvision", "parquet", "imagefolder")
SPELLINGS = "digits, torchvision:NAME, parquet:FOLDER or imagefolder:FOLDER"


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
    """Which images to learn from.

    `source` is one of

    - `digits`: scikit-learn's 8x8 digits, which need no file;
    - `torchvision:NAME`: a data set of torchvision's under `root`; `torchvision:EMNIST:SPLIT` for EMNIST;
    - `parquet:FOLDER`: `train.parquet` and `test.parquet` in the layout of the Hugging Face hub;
    - `imagefolder:FOLDER`: `train/CLASS/*.png` and `test/CLASS/*.png`.

    FOLDER may hold environment variables; one that does not exist is looked for under the folder TESSERA_DATA.

    With `validation` above 0 that share of the TRAINING rows is held out and stands in the place of the test set,
    whose file is then not even opened: so settings can be chosen without test data.

    `public` are images that the server owns itself, for methods that distil on such (FedDF with `unlabelled: public`):
    a share of the TRAINING rows, which no client then holds; or a folder as of `parquet:FOLDER`, of whose
    `train.parquet` the labels are not looked at.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    source: str = Field(description=SPELLINGS)
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

    @property
    def kind(self) -> str:
        """The word before the first colon of `source`."""
        return self.source.partition(":")[0]

    @property
    def place(self) -> str:
        """What follows the first colon of `source`: a name or a folder."""
        return self.source.partition(":")[2]

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, place = source.partition(":")
        if kind not in SOURCES:
            raise ValueError(f"there is no source {kind!r}; {nearest(kind, SOURCES)}use {SPELLINGS}")
        if kind == "digits" and source != "digits":
            raise ValueError(f"digits takes no name or folder, found {source!r}; use digits")
        if kind != "digits" and not place:
            raise ValueError(f"{kind} needs a {'name' if kind == 'torchvision' else 'folder'}; use {SPELLINGS}")
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
