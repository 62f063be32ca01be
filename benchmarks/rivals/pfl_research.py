"""Workload (a) of `benchmarks.rounds` in pfl-research; prints the seconds of each round but the first as JSON.

    torchrun --nproc-per-node PROCESSES pfl_research.py DATA.npz ROUNDS

Runs in an environment with pfl and torch; nothing of Tessera is imported. Clients keep their images as tensors in
memory. pfl takes a client's batches in the order of its rows, without drawing a permutation.
"""

import json
import os
import sys
import time

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

DATA, ROUNDS = sys.argv[1], int(sys.argv[2])
CLIENTS, COHORT, BATCH, LR = 1000, 100, 10, 0.05


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss(self, images: Tensor, labels: Tensor, eval: bool = False) -> Tensor:
        return F.cross_entropy(self(images), labels)

    def metrics(self, images: Tensor, labels: Tensor, eval: bool = True) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(images, labels)) * len(labels), len(labels))}


class Ends(TrainingProcessCallback):
    """Notes the end of each round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
        self.seconds.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    with np.load(DATA) as file:
        images, labels, rows = (torch.from_numpy(file[name]) for name in ("images", "labels", "rows"))
    users = {k: (images[mine], labels[mine]) for k, mine in enumerate(rows)}
    sampler = get_user_sampler("random", list(range(CLIENTS)))
    data = FederatedDataset(lambda user: PyTorchTensorDataset(users[user], user_id=str(user)), sampler)
    net = Network()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    ends = Ends()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=ROUNDS, evaluation_frequency=10**6, train_cohort_size=COHORT, val_cohort_size=0
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[ends],
        send_metrics_to_platform=False,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps({"seconds": np.diff(ends.seconds).tolist()}))


if __name__ == "__main__":
    main()
