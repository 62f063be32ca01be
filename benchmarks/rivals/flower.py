"""Workload (a) of `benchmarks.rounds` in Flower; prints the seconds of each round but the first as JSON.

    python flower.py DATA.npz ROUNDS PROCESSES

Runs in an environment with flwr[simulation] and torch; nothing of Tessera is imported. Clients keep their images as
tensors in memory, and train as `benchmarks.plain` has it.
"""

import json
import os
import sys
import time
from functools import cache
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

CLIENTS, COHORT, BATCH, LR = 1000, 100, 10, 0.05


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


@cache
def clients_data(path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, nn.Module]:
    """Images, labels, rows by client, and the network that a process uses for all of its clients."""
    torch.set_num_threads(1)
    with np.load(path) as file:
        return (*(torch.from_numpy(file[name]) for name in ("images", "labels", "rows")), network())


def client_app(path: str) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        images, labels, rows, net = clients_data(path)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        mine = rows[int(context.node_config["partition-id"])]
        optimiser = torch.optim.SGD(net.parameters(), lr=LR)
        for picks in mine[torch.randperm(len(mine))].split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(net(images[picks]), labels[picks]).backward()
            optimiser.step()
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": len(mine)})}
        return Message(content=RecordDict(content), reply_to=message)

    return app


def main(path: str, rounds: int, processes: int) -> None:
    ends: list[float] = []
    last = torch.zeros(())

    def note(number: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal last
        ends.append(time.perf_counter())
        before, last = last, arrays.to_torch_state_dict()["3.bias"]
        if torch.equal(before, last):
            raise RuntimeError(f"round {number} left the model as it was: its clients have failed")
        return MetricRecord({"round": number})

    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=COHORT / CLIENTS, fraction_evaluate=0.0)
        torch.manual_seed(0)
        strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=rounds, evaluate_fn=note)

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": processes, "include_dashboard": False, "logging_level": "ERROR"},
    }
    run_simulation(server, client_app(path), num_supernodes=CLIENTS, backend_config=backend)
    print(json.dumps({"seconds": np.diff(ends)[1:].tolist()}))


if __name__ == "__main__":
    # Ray's workers find what clients need in a module of this name, not in a script.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    import flower

    flower.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
