"""The kit that the engine lends to a method: networks by name, the device, the training loop, the distillation job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from algorithms.core.callbacks import Progress, ignore
from algorithms.core.distillation import Distillation, distil_here
from algorithms.core.payload import Tensors
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.states import snapshot
from algorithms.core.task import Shard, Task
from algorithms.core.training import Loss, TrainingLoop, Work, fit, training_loss


@dataclass
class Kit:
    """Lent to a method by whoever runs it: a worker on the client's side, the engine on the server's.

    Attributes:
        task: the learning problem.
        work: what a client does in a round by default; `work.at(round)` is at the rate of that round.
        seed: of the run.
        device: where networks compute.
        public: on the server's side, examples that it owns itself; None where it owns none.
        fit: the training loop of clients, `algorithms.core.training.fit`, or one that gives back the same bits because
            it remembers them.
        distil: performs a distillation: here in a loop, or as a pipeline and a train job on Ray; the same bits.
        show: shows a stage of a round to the person watching, as a predictor that is evaluated on test data. It
            returns nothing: test data decides nothing.
        starts: by the name of a network, tensors that it starts with in the place of fresh ones.
        tell: tells the person watching how far a phase of the server has come: (phase, done, total).
    """

    task: Task
    work: Work
    seed: Seed
    device: torch.device = torch.device("cpu")
    public: Shard | None = None
    fit: TrainingLoop = fit
    distil: Callable[[Distillation], dict[str, Tensor]] = distil_here
    show: Callable[[str, nn.Module], None] = ignore
    tell: Callable[[str, int, int], None] = ignore
    starts: Mapping[str, Tensors] = field(default_factory=dict)
    _resident: dict[tuple[str, float], nn.Module] = field(default_factory=dict)
    _names: WeakKeyDictionary[nn.Module, tuple[str, float]] = field(default_factory=WeakKeyDictionary)

    @property
    def loss(self) -> Loss:
        """The loss that the clients' training minimises, for objectives of a method's own; see `training_loss`."""
        return training_loss(self.task, self.work)

    def progress(self, phase: str, steps: int) -> Progress:
        """The progress of a phase of the server with so many steps, which is told as each is done."""
        return Progress(self.tell, phase, steps)

    def network(self, name: str, width: float = 1.0) -> nn.Module:
        """The one resident network of this name and width on the kit's device; load a state before use, keep no
        reference."""
        if (name, width) not in self._resident:
            self._resident[name, width] = self.new_network(name, width)
        return self._resident[name, width]

    def new_network(self, name: str, width: float = 1.0) -> nn.Module:
        """A network of one's own, with the weights of `initial`; of a fraction `width` of its hidden channels.

        What stands on a foundation is drawn by that and not by a name, which may be a place on this machine.
        """
        with torch_seeded(self.seed.number(f"initial {self.task.foundation(name) or name}")):
            net = self.task.network(name, width).to(self.device)
        if name in self.starts and width == 1:
            net.load_state_dict({**net.state_dict(), **self.starts[name]})
        self._names[net] = name, width
        return net

    def name_of(self, net: nn.Module) -> tuple[str, float] | None:
        """Name and width of a network that this kit has made; None for any other module."""
        return self._names.get(net)

    def initial(self, name: str) -> dict[str, Tensor]:
        """The initial state of a network: the same for every client and method of a run's seed and `starts`."""
        return snapshot(self.new_network(name))
