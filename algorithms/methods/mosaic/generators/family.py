"""The interface of a family of generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from algorithms.core.contract import Client
from algorithms.core.payload import Tensors
from algorithms.methods.mosaic.generators.mixture import Part


class Family(Protocol):
    """A kind of generator. Its instances hold its settings and the kit; they live on both sides.

    Attributes:
        kind: of the payload that a client's generator is.
        needs_model: whether `fit` needs the trained global model, which `client.received` then holds.
    """

    kind: str
    needs_model: bool

    def fit(self, client: Client) -> tuple[dict[str, Tensor], Tensor]:
        """On the client: its generator as named tensors, and int64 (C,), the examples by class that went into it.

        No tensors, and zeros, where the client holds too few.
        """
        ...

    def part(self, tensors: Tensors, counts: Tensor) -> Part:
        """The generator that `fit` sent, ready to draw from."""
        ...

    def to_inputs(self) -> Callable[[Tensor], Tensor]:
        """The function from generated samples to network inputs. Can be sent to other processes."""
        ...


def as_they_are(images: Tensor) -> Tensor:
    """Samples that are network inputs already."""
    return images
