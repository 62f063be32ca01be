"""Short runs of several methods in a process of their own, which starts itself anew where portable bits need it.

    python -m tests.engine.portable_runs [ADDRESS]

prints the digest of each by name, as JSON; inline, or on the hosts of a Ray cluster.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from clusters.bits import ProcessStartError, require, restart


def setups() -> dict[str, Any]:
    """Setups by name: FedAvg and SCAFFOLD on convolutions, Mosaic whole with a GAN and with k-means."""
    from tests.algorithms.test_mosaic import RECIPES, setup
    from tests.support import tiny_setup

    nets = ("small_cnn",)
    return {
        "fedavg": tiny_setup("fedavg", clients=3, nets=nets),
        "scaffold": tiny_setup("scaffold", clients=3, nets=nets),
        "mosaic, dcgan": setup(clients=3, **RECIPES["conditional dcgan"]),
        "mosaic, mixed": setup(clients=3, **RECIPES["mixed"]),
    }


def inline() -> dict[str, str]:
    from tests.support import play

    return {name: play(setup, rounds=3).digest for name, setup in setups().items()}


def on_ray(address: str) -> dict[str, str]:
    """On two hosts and with a distillation beside them, on whatever nodes Ray puts these."""
    import ray

    from actors.distillation.plan import DistilResources
    from actors.hosts.placement import Placement
    from actors.hosts.ray import RayRunner
    from tests.support import play, tiny_shards

    ray.init(address=address, log_to_driver=False)
    found = {}
    for name, setup in setups().items():
        runner = RayRunner(
            setup,
            tiny_shards(3),
            Placement("pooled", 2, cpus=1.0, gpus=0.0, reason=""),
            distillation=DistilResources(bits="portable"),
            bits="portable",
        )
        try:
            found[name] = play(setup, runner, rounds=3).digest
        finally:
            runner.close()
    return found


def main() -> None:
    try:
        require("portable")
    except ProcessStartError:
        restart()
    from actors.process import set_kernels

    set_kernels("portable")
    print(json.dumps(on_ray(sys.argv[1]) if len(sys.argv) > 1 else inline()))


if __name__ == "__main__":
    main()
