"""The sections `partition` and `shift` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Kind = Literal[
    "iid", "dirichlet", "dirichlet_balanced", "classes", "quantity", "power_law", "log_normal", "column", "file"
]

BY_CLASS = ("dirichlet", "dirichlet_balanced", "classes")
"""The kinds that deal rows by their class, or by the values of a column in its place."""

NEEDS: dict[str, tuple[str, ...]] = {
    "iid": ("clients",),
    "dirichlet": ("alpha", "clients"),
    "dirichlet_balanced": ("alpha", "clients"),
    "classes": ("classes_per_client", "clients"),
    "quantity": ("alpha", "clients"),
    "power_law": ("exponent", "clients"),
    "log_normal": ("sigma", "clients"),
    "column": ("column",),
    "file": ("path",),
}
"""The fields without which a kind cannot be dealt."""

MAY: dict[str, tuple[str, ...]] = {
    "dirichlet": ("column", "min_examples"),
    "dirichlet_balanced": ("column", "min_examples"),
    "classes": ("column",),
    "quantity": ("min_examples",),
    "power_law": ("min_examples",),
    "log_normal": ("min_examples",),
    "column": ("clients",),
}
"""The fields that a kind uses where they are given."""

_RIGHT = {
    "clients": "a number of clients, at least 1",
    "alpha": "a number above 0; the smaller, the more unequal the clients",
    "classes_per_client": "a number of classes, at least 1",
    "exponent": "a number above 0; the larger, the more unequal the clients",
    "sigma": "a number above 0; the larger, the more unequal the clients",
    "column": "the name of a column of the training data",
    "path": "a Parquet file with the columns row and client",
}


class PartitionConfig(BaseModel):
    """The division of training rows among clients; every row goes to exactly one.

    The kinds:

    - `iid`: at random, in equal numbers;
    - `dirichlet`: the rows of each class in shares drawn from a Dirichlet over the clients;
    - `dirichlet_balanced`: the same, but a client that already holds its equal share of all rows gets none of the
      classes that follow (the rule of Mosaic's code);
    - `classes`: `classes_per_client` classes to each client;
    - `quantity`: at random, in numbers drawn from a Dirichlet;
    - `power_law`: at random, in numbers that fall with a client's rank as a power of it; the ranks are drawn;
    - `log_normal`: at random, in numbers drawn from a log-normal distribution;
    - `column`: the rows of one value of a column together: one client per value, or the values dealt to `clients`;
    - `file`: as a Parquet file says, where rows may be left out.

    `dirichlet`, `dirichlet_balanced` and `classes` deal rows by their class, which needs a task with classes; with
    `column` they deal them by the values of that column instead, which serves every task, as the others do.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: Kind = Field(description="the rule by which rows are dealt")
    clients: int | None = Field(default=None, ge=1, validate_default=True, description="number of clients")
    alpha: float | None = Field(
        default=None, gt=0, validate_default=True, description="concentration of the Dirichlet, omega of Mosaic's paper"
    )
    classes_per_client: int | None = Field(
        default=None, ge=1, validate_default=True, description="how many classes each client holds"
    )
    exponent: float | None = Field(
        default=None,
        gt=0,
        validate_default=True,
        description="of the power law: client of rank r has a share of r^-exponent",
    )
    sigma: float | None = Field(
        default=None, gt=0, validate_default=True, description="standard deviation of the logarithm of a client's rows"
    )
    column: str | None = Field(
        default=None,
        validate_default=True,
        description="column whose values make the clients, or take the place of classes",
    )
    path: Path | None = Field(
        default=None, strict=False, validate_default=True, description="Parquet file with the columns row and client"
    )
    min_examples: int | None = Field(
        default=None,
        ge=1,
        description="fewest rows of a client; null is 1, and for dirichlet_balanced 10 or, where that is less, "
        "half of an equal share",
    )

    @field_validator("clients", "alpha", "classes_per_client", "exponent", "sigma", "column", "path", "min_examples")
    @classmethod
    def _fits_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind, name = info.data.get("kind"), str(info.field_name)
        if kind is None:
            return value
        if value is None and name in NEEDS[kind]:
            raise ValueError(f"kind {kind} needs it: {_RIGHT[name]}")
        fields = NEEDS[kind] + MAY.get(kind, ())
        if value is not None and name not in fields:
            raise ValueError(f"kind {kind} does not use it, only {' and '.join(fields)}; leave it out")
        return value


class ShiftConfig(BaseModel):
    """Changes to the examples by which clients differ beyond what they were dealt; 0 leaves them as they are.

    Client k of K (from 0) gets its own:

    - `noise`: Gaussian noise on images and numbers, of standard deviation `noise * (k + 1) / K`;
    - `rotation`: images are turned by `k * rotation` degrees;
    - `colour`: every channel of images is multiplied by a gain drawn from `1 - colour` to `1 + colour`;
    - `labels`: a share `labels * (k + 1) / K` of the training labels is replaced by other classes.

    Training examples are shifted, and the test examples of clients that have their own, whose labels stay true. The
    test set of a global model is not.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    noise: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the noisiest client's noise: of pixels in [0, 1], or in "
        "standard deviations of a column of numbers",
    )
    rotation: float = Field(default=0.0, ge=0, lt=360, description="degrees from one client to the next, anticlockwise")
    colour: float = Field(default=0.0, ge=0, le=1, description="largest change of a channel's gain from 1")
    labels: float = Field(default=0.0, ge=0, le=1, description="share of wrong training labels of the last client")
