"""FedIT: federated instruction tuning, which is FedAvg on the factors of low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from algorithms.core.contract import Cohort, Plan, Terms, Update
from algorithms.core.payload import Payload, Tensors
from algorithms.core.settings import setting
from algorithms.core.states import combine
from algorithms.methods.fedavg import FedAvg, FedAvgState
from algorithms.parts.low_rank import norm, products


class FedIT(FedAvg):
    """Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", arXiv 2305.05644.

    Every client holds the frozen model W0 and trains adapters on its own answers, from those received. The server
    averages them factor by factor,

        A <- sum_k p_k A_k,    B <- sum_k p_k B_k,    p_k = n_k / sum_j n_j.

    The product of the means is not the mean of the products: they differ by

        E = sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B) (A_k - A),

    which `aggregation_error` tells as ||E|| / ||sum_k p_k B_k A_k||, Frobenius norms over all matrices together.

    Travels, per client and round: the adapters each way, r (d_in + d_out) numbers of 4 bytes a matrix; n_k up.
    """

    paper = "Zhang et al. 2024, arXiv 2305.05644"
    task_traits = frozenset({"adapters"})

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        measure_error: bool = setting(
            False, "tell in each round how far the mean of the products is from the product of the means"
        )

    config: Config

    def round(self, state: FedAvgState, plan: Plan, cohort: Cohort) -> tuple[FedAvgState, dict[str, float]]:
        if not self.config.measure_error:
            return super().round(state, plan, cohort)
        means = cohort.means(self.train, self.terms, Payload.of(weights=state.model))
        model = means["weights"].result(otherwise=state.model)
        mean_product = means["products"].result(otherwise=products(state.model))
        return replace(state, model=model), {"aggregation_error": _relative_error(model, mean_product)}

    def terms(self, update: Update) -> Terms:
        terms = super().terms(update)
        if not self.config.measure_error:
            return terms
        return {**terms, "products": (products(update.payload.tensors("weights")), self.share(update))}


def _relative_error(model: Tensors, mean_product: Tensors) -> float:
    """||E|| over the norm of the mean of the products; 0 where that is 0."""
    whole = norm(mean_product)
    return norm(combine(lambda mean, product: mean - product, mean_product, products(model))) / whole if whole else 0.0
