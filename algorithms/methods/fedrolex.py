"""FedRolex: clients train parts of one network, windows of its channels that move on every round."""

from __future__ import annotations

from algorithms.core.contract import Plan
from algorithms.methods.heterofl import HeteroFL


class FedRolex(HeteroFL):
    """Alam et al., "FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction", NeurIPS 2022,
    arXiv 2212.01548.

    As HeteroFL, but in round t a client of width beta has, of a hidden layer's J channels, the ceil(beta J) from
    channel t mod J on, around the end. So all channels are trained equally often, whatever the clients' widths, and the
    global model may be wider than any client. Entries are averaged over those who had them in the round.

    The code clips the gradients' norm at 1: a setting of the clients' work.

    Travels: as in HeteroFL; the round and the width say which channels they are.
    """

    paper = "Alam et al. 2022, arXiv 2212.01548"

    def offset(self, plan: Plan) -> int:
        """One channel further each round."""
        return plan.round
