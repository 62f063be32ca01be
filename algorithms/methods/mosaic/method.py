"""Mosaic: data-free distillation from class-wise experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from algorithms.core.contract import (
    Client,
    ClientSpec,
    Cohort,
    Method,
    Plan,
    Reply,
    client_side,
)
from algorithms.core.kit import Kit
from algorithms.core.needs import Needs
from algorithms.core.payload import EMPTY, Payload
from algorithms.core.seeds import Seed
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.task import Task, Trait
from algorithms.core.training import Batches, Objective, Work, steps_of_work
from algorithms.methods.mosaic.experts import ClassWiseMeans, PlainSum, Teacher
from algorithms.methods.mosaic.generators import FAMILIES, CellConfig, GanConfig, Mixture, Shares
from algorithms.methods.mosaic.generators.lean import features_of
from algorithms.methods.mosaic.generators.mixed import beside, samples_needed
from algorithms.methods.mosaic.generators.shelf import ClientGenerator, as_memory, generators_in, pack
from algorithms.methods.mosaic.meta import Examples, MetaConfig, train_meta
from algorithms.methods.mosaic.prospectus import needs
from algorithms.methods.mosaic.student import StudentConfig, distillation
from algorithms.nets import Classifier, require_head
from algorithms.parts.bank import Bank, Expert
from algorithms.parts.prototypes import RELEASED_CENTRES, RELEASED_STATE, as_examples, join_prototypes, prototypes
from algorithms.parts.submodels import part_of, rescale, scaled_objective

Deviation = Literal[
    "no_class_zero",
    "ten_centres",
    "sum_pooling",
    "stale_prototypes",
    "shared_batches",
    "plain_average",
    "bhattacharyya",
    "live_classifier",
    "diversity_over_all",
    "dead_inversion",
    "tanh_range",
    "frozen_norm",
    "unbalanced",
]


@dataclass(frozen=True)
class MosaicState:
    """The state that the server carries.

    Attributes:
        student: name of the network that is evaluated.
        models: the global model of each of the clients' networks and of the student, by name; whole state dicts.
        experts: of the last round that formed them.
        generators: what each client sent, by number, those whose data were too few for one included.
        prototypes: float32 (P, F) by class, until the meta model has learned from them.
        served: clients that hold the others' generators for fine-tuning.
    """

    student: str
    models: dict[str, dict[str, Tensor]]
    experts: tuple[Expert, ...] = ()
    generators: dict[int, ClientGenerator] = field(default_factory=dict)
    prototypes: dict[int, Tensor] = field(default_factory=dict)
    served: tuple[int, ...] = ()


class Mosaic(Method[MosaicState]):
    """Data-free distillation from class-wise experts: "Mosaic: Data-Free Knowledge Distillation via Mixture-of-Experts
    for Heterogeneous Distributed Environments", arXiv 2505.19699.

    FedAvg for `warmup` rounds. In a client's first round it also makes a generator of images like its own, which it
    sends once. At the end of the warm-up experts theta^(c) = sum_k n_k^c theta_k / sum_j n_j^c, one a class, answer
    together through a meta model; this teacher is distilled into the global model on generated images; and the
    remaining rounds are FedAvg from there (fine-tuning). Clients of different networks are averaged apart, each
    network has experts of its own, all of them answer together, and every network is taught.

    A client of width beta trains the sub-network that FedRolex (arXiv 2212.01548) gives it: windows of every hidden
    layer's channels that move on by one channel a round, hidden outputs divided by beta in training. Averages and
    experts are taken entry by entry over the clients that have the entry, batch statistics included; an entry of an
    expert that no client with an example of the class has is the average's, and one that nobody has keeps its value.
    With `experts: client`, sub-networks themselves are the experts. Where a client only looks at features (prototypes,
    `generator: features`) it receives the whole model.

    Beyond these points, `released` differs from the code in three ways. Each epoch has an order of its own, where the
    code's loaders keep one for the whole run, and begin it again for fine-tuning. Features for prototypes are of images
    as they are, where the code's are cropped and flipped as for training; so they are under `corrected`, by choice. And
    one run stands for the code's two: clients' batches go on where those of the first run would begin anew.

    Travels, per client: its (sub-)network down and up with C label counts (8 C bytes) each round; its generator once,
    up; prototypes (4 F bytes each) in the last warm-up round, for which a narrow client receives the whole model, as
    every client does; where `mixed`, all generators once, down.

    The published code differs from what it is meant to do in 26 places. `variant: released` follows it wherever it can
    be followed, `deviations` in single places. Number, the rule here, and the name of the released one:

     1 a generator learns from all classes its client holds (no_class_zero: it never sees class 0,
       whose images are taken out of each batch; a client of class 0 alone sends a generator that has learnt nothing)
     2 k-means finds min(k, distinct features) centres (ten_centres: the first ten are read)
     3 any number of experts, which pass through one resident network one by one
     4 pooling is the mean over experts (sum_pooling: the sum, as its class for ten classes)
     5 prototypes are of the warm-up's last round (stale_prototypes: of its last
       `prototype_rounds`; the code keeps those of the 41 rounds of its second run, and none of the first one's 300)
     6 prototypes have their own batches (shared_batches: taken from those of training, which then miss them)
     7 features are computed without gradients
     8 `meta_steps` says how many steps the meta model takes, each on a fresh draw
     9 the average forgets its start, `ema` (plain_average: 0.99^steps of the random start stays in the teacher)
    10 J is the Jensen-Shannon divergence (bhattacharyya: the distance of that name)
    11 the generator's classifier is frozen in eval mode (live_classifier: its statistics follow the fakes)
    12 the logarithm of the diversity term is clamped (released: NaN once a probability underflows; not offered)
    13 diversity is over the client's own classes (diversity_over_all: over all C)
    14 inversion acts, with a plus sign, below `inversion_below` examples (dead_inversion: it has no gradient)
    15 images in [-1, 1] are mapped to normalised inputs (tanh_range: they are taken for them)
    16 the expert of a class that nobody holds is the plain average (released: fails; not offered)
    17 images for distillation are generated without gradients
    18 the student's batch normalisation is trained (frozen_norm: running statistics are used and kept)
    19 `shares`: equal as released, or proportional to n_k
    20 the meta model sees all classes alike (unbalanced: all examples alike, the first batch of each shuffle)
    21 experts are those of this run; 22 generators are handed over, not loaded by file name
    23 no test data decides anything: stages are shown, and nothing comes back
    24 a batch of one example is shown twice (released: one example is never used; not offered)
    25 any classes, channels and sizes; 26 one protocol for all methods
    """

    paper = "Mosaic, 2025, arXiv 2505.19699"
    State = MosaicState

    @dataclass(frozen=True, kw_only=True)
    class Config(GanConfig, CellConfig, MetaConfig, StudentConfig):
        variant: Literal["corrected", "released"] = setting(
            "corrected", "released: every rule of `deviations`, as in the published code"
        )
        deviations: tuple[Deviation, ...] = setting((), "single rules of the published code, for an ablation")
        warmup: int = setting(41, "rounds up to the distillation, the one that it ends included", ge=1)
        finetune_lr: float | None = setting(1e-4, "learning rate after the distillation; null: as before it", gt=0)
        mixed: bool = setting(False, "fine-tune on batches of which half are generated, by all clients' generators")
        student: str | None = setting(None, "network that is evaluated; null: that of the first client", network=True)
        generator: Literal["dcgan", "pca", "features"] = setting(
            "dcgan",
            "what imitates a client's data: a DCGAN, Gaussians over pixels, or over the global model's features",
        )
        experts: Literal["class", "client", "global", "replay"] = setting(
            "class",
            "what the meta model fuses: an expert per class, per client, or the global model; replay: no teacher",
        )
        experts_when: Literal["every round", "warm-up"] = setting(
            "every round", "rounds that form experts; those of the warm-up's last round teach"
        )
        prototypes: int = setting(10, "centres of features for a class and client", ge=1)
        prototype_rounds: int = setting(
            41, "stale_prototypes: rounds up to the distillation, its own included, that send prototypes", ge=1
        )
        least_in_prototype: int = setting(1, "examples a prototype must stand for, so that it tells less of one", ge=1)
        meta_data: Literal["prototypes", "images", "both"] = setting(
            "prototypes", "what the meta model learns from: prototypes, generated images with the class asked, or both"
        )
        meta_images: int = setting(3200, "generated images that the meta model learns from", ge=1)
        shares: Shares = setting("equal", "a generator's share of a batch: the same for all, or by its examples")

        @property
        def released_rules(self) -> tuple[Deviation, ...]:
            """Rules of the published code that apply."""
            return get_args(Deviation) if self.variant == "released" else self.deviations

        @property
        def uses_prototypes(self) -> bool:
            """Whether clients send prototypes."""
            return self.experts != "replay" and self.meta_data != "images"

        def takes_prototypes(self, round: int) -> bool:
            """Whether clients send them in this round of the warm-up."""
            rounds = self.prototype_rounds if "stale_prototypes" in self.released_rules else 1
            return self.uses_prototypes and self.warmup - rounds <= round < self.warmup

    config: Config

    budgets = {
        "laptop": {
            "gan_width": 16,
            "gan_steps": 200,
            "gan_batch": 32,
            "gan_lr": 2e-3,
            "classifier_steps": 200,
            "meta_images": 2000,
            "meta_width": 40,
            "meta_heads": 4,
            "meta_feedforward": 128,
            "distil_steps": 200,
            "distil_batch": 128,
            "distinct": 16,
            "distil_lr": 1e-3,
        }
    }

    def __init__(self, config: Config, kit: Kit) -> None:
        super().__init__(config, kit)
        self.family = FAMILIES[config.generator](config, kit, config.released_rules)

    @classmethod
    def requires(cls, config: Any) -> frozenset[Trait]:
        return frozenset({"classes"} if config.generator == "features" else {"classes", "images"})

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        return needs(config, task, clients, counts)

    def start(self, clients: Sequence[ClientSpec]) -> MosaicState:
        student = self.config.student or clients[0].net
        names = sorted({student, *(client.net for client in clients)})
        return MosaicState(student=student, models={name: self.kit.initial(name) for name in names})

    def round(self, state: MosaicState, plan: Plan, cohort: Cohort) -> tuple[MosaicState, dict[str, float]]:
        last = self.config.warmup - 1
        if plan.round > last:
            return self.fine_tuning_round(state, plan, cohort), {}
        if not self.family.needs_model:
            state = self.with_generators(state, plan, cohort)
        if self.config.takes_prototypes(plan.round):
            state = self.with_prototypes(state, plan, cohort)
        state = self.local_round(state, plan, cohort, self.train)
        if plan.round < last:
            return state, {}
        if self.family.needs_model:
            state = self.with_generators(state, plan, cohort)
        return self.distil_experts(state, plan)

    def predictor(self, state: MosaicState) -> nn.Module:
        net = self.kit.network(state.student)
        net.load_state_dict(state.models[state.student])
        return net.eval()

    def sources(self, state: MosaicState) -> Mapping[int, Mixture]:
        if self.config.generator == "features":
            return {}
        seed = self.kit.seed.at(phase="pictures")
        return {k: self._source({k: sent}, seed, batch=16) for k, sent in state.generators.items() if sent.tensors}

    def with_generators(self, state: MosaicState, plan: Plan, cohort: Cohort) -> MosaicState:
        """Stage B: every client that has not been asked yet makes its generator and sends it, once."""
        missing = [client for client in plan.clients if client.id not in state.generators]
        message = self._models(state, missing) if self.family.needs_model else EMPTY
        sent = {
            update.client: ClientGenerator(update.payload.tensors(self.family.kind), _counts(update.payload))
            for update in cohort.ask(self.make_generator, message, missing)
        }
        return replace(state, generators=dict(sorted({**state.generators, **sent}.items())))

    def with_prototypes(self, state: MosaicState, plan: Plan, cohort: Cohort) -> MosaicState:
        """Centres of the features that the global model gives before this round's training, beside any kept."""
        found = state.prototypes
        for update in cohort.ask(self.send_prototypes, self._models(state, plan.clients)):
            sent = update.payload.tensors("prototypes")
            found = join_prototypes(found, {int(label): centres for label, centres in sent.items()})
        return replace(state, prototypes=found)

    def local_round(
        self, state: MosaicState, plan: Plan, cohort: Cohort, step: Callable[[Client], Reply]
    ) -> MosaicState:
        """Stages A and C: local updates, the average of each network, and the experts, in one pass over the clients."""
        config, clients = self.config, {client.id: client for client in plan.clients}
        forms = config.experts_when == "every round" or plan.round == config.warmup - 1
        by_class = self.kit.task.classes if forms and config.experts == "class" else 0
        nets = sorted({client.net for client in plan.clients})
        means = {net: ClassWiseMeans(by_class, state.models[net]) for net in nets}
        parts = {
            form: part_of(self.kit, *form, plan.round) for form in sorted({form_of(client) for client in plan.clients})
        }
        messages = {form: Payload.of(weights=part.extract(state.models[form[0]])) for form, part in parts.items()}
        experts: list[Expert] = []
        for update in cohort.ask(step, {k: messages[form_of(client)] for k, client in clients.items()}):
            client, weights = clients[update.client], update.payload.tensors("weights")
            means[client.net].add(weights, _counts(update.payload), parts[form_of(client)])
            if forms and config.experts == "client":
                experts.append(self._own_expert(client, weights))
        models = {net: mean.plain(otherwise=state.models[net]) for net, mean in means.items()}
        if forms and config.experts == "global":
            experts = [Expert(net, model) for net, model in models.items()]
        if forms and config.experts == "class":
            experts = [Expert(net, e) for net, mean in means.items() for e in mean.experts(otherwise=models[net])]
        return replace(state, models={**state.models, **models}, experts=tuple(experts) or state.experts)

    def distil_experts(self, state: MosaicState, plan: Plan) -> tuple[MosaicState, dict[str, float]]:
        """Stage D: the meta model learns, and teaches the global model of every network; these are given back."""
        self.kit.show("fedavg", self.predictor(state))
        config, seed = self.config, plan.seed.at(phase="distillation")
        source = self._source(state.generators, seed, config.distil_batch)
        teacher, metrics = self._teacher(state, source, plan.seed)
        models: dict[str, dict[str, Tensor]] = {}
        for net, model in state.models.items():
            student, classes = self._student(net, model), self.kit.task.classes
            job = distillation(config, config.released_rules, source, teacher, student, classes, seed)
            models[net] = {**model, **self.kit.distil(job)}
        state = replace(state, models=models, prototypes={})
        self.kit.show("distilled", self.predictor(state))
        return state, {"generators": len(source.parts), **metrics}

    def fine_tuning_round(self, state: MosaicState, plan: Plan, cohort: Cohort) -> MosaicState:
        """A round after the distillation; clients new to mixed batches receive all generators first."""
        late = [client for client in plan.clients if client.id not in state.served]
        if self.config.mixed and late:
            message = pack(state.generators, self.family.kind)
            served = [update.client for update in cohort.ask(self.keep_generators, message, late)]
            state = replace(state, served=tuple(sorted([*state.served, *served])))
        return self.local_round(state, plan, cohort, self.fine_tune)

    def _teacher(self, state: MosaicState, source: Mixture, seed: Seed) -> tuple[nn.Module | None, dict[str, float]]:
        """The meta model over the experts; None where the labels asked are replayed."""
        if self.config.experts == "replay":
            return None, {}
        if not state.experts:
            raise ValueError("no client took part in the last round of the warm-up, so there are no experts")
        bank = Bank(state.experts, self.kit)
        self.kit.show("experts", PlainSum(bank))
        examples = self._meta_examples(state, bank, source)
        progress = self.kit.progress("meta model", self.config.meta_steps)
        meta = train_meta(examples, self.config, self.config.released_rules, seed, progress.count_step)
        teacher = Teacher(bank, meta)
        self.kit.show("teacher", teacher)
        return teacher, {"meta_examples": len(examples.labels)}

    def _meta_examples(self, state: MosaicState, bank: Bank, source: Mixture) -> Examples:
        """Experts' logits on prototypes, on generated images, or on both, with their labels."""
        logits, labels, device = [], [], self.kit.device
        if self.config.meta_data != "images":
            if not state.prototypes:
                raise ValueError("no client sent a prototype: lower least_in_prototype")
            features, of_class = as_examples(state.prototypes)
            logits.append(bank.from_features(features.to(device)))
            labels.append(of_class.to(device))
        if self.config.meta_data != "prototypes":
            batches = -(-self.config.meta_images // source.batch)
            progress = self.kit.progress("experts' answers", batches)
            for index in range(batches):
                latents = {name: value.to(device) for name, value in source.latents(index).items()}
                images, asked = source.inputs(latents)
                logits.append(bank.logits(images))
                labels.append(asked)
                progress.count_step()
        return Examples(torch.cat(logits), torch.cat(labels))

    def _own_expert(self, client: ClientSpec, weights: dict[str, Tensor]) -> Expert:
        """A client's network as an expert, which answers as it did in training."""
        net = self.kit.network(client.net, client.width)
        return Expert(client.net, rescale(net, weights, client.width), client.width)

    def _student(self, net: str, model: Mapping[str, Tensor]) -> nn.Module:
        """A network that holds the global model; its head alone where the samples are features."""
        student = self.kit.new_network(net)
        student.load_state_dict(model)
        return Classifier(nn.Identity(), require_head(student).head) if self.config.generator == "features" else student

    def _models(self, state: MosaicState, clients: Sequence[ClientSpec]) -> dict[int, Payload]:
        """The global model of each client's network, whole."""
        payloads = {net: Payload.of(weights=model) for net, model in state.models.items()}
        return {client.id: payloads[client.net] for client in clients}

    def _source(self, generators: Mapping[int, ClientGenerator], seed: Seed, batch: int) -> Mixture:
        """Generated samples of the clients that have a generator."""
        made = {k: sent for k, sent in generators.items() if sent.tensors}
        if not made:
            raise ValueError("no client holds enough examples for a generator: lower least_examples or least_in_cell")
        equal = self.config.shares == "equal"
        shares = tuple(1.0 if equal else float(sent.counts.sum()) for sent in made.values())
        parts = {k: self.family.part(sent.tensors, sent.counts) for k, sent in made.items()}
        return Mixture(parts, shares, batch, seed, self.family.to_inputs())

    @client_side
    def make_generator(self, client: Client) -> Reply:
        """Make a generator of the client's data, and count the examples by class that went into it."""
        tensors, counts = self.family.fit(client)
        return Reply(Payload({self.family.kind: tensors, "label_counts": {"counts": counts}}))

    @client_side
    def send_prototypes(self, client: Client) -> Reply:
        """Centres of the received model's features on as many batches as a round of training takes."""
        config, released = self.config, self.config.released_rules
        net = self.kit.network(client.spec.net)
        net.load_state_dict(client.received.tensors("weights"))
        batches = Batches(len(client.shard), self.kit.work.batch, client.seed)
        count, place = steps_of_work(self.kit.work, batches), 0
        if "shared_batches" in released:
            place = int(client.memory.get("position", 0))
        else:
            count = min(count, batches.per_epoch)
        picks = [batches[place + i] for i in range(count)]
        features = torch.cat([features_of(net, self.kit.task, client.shard, some) for some in picks])
        random_state = RELEASED_STATE if config.variant == "released" else client.seed.number("prototypes") % 2**32
        labels = client.shard.own_labels[torch.cat(picks)]
        found = prototypes(features, labels, config.prototypes, config.least_in_prototype, random_state)
        if "ten_centres" in released:
            found = {label: centres[:RELEASED_CENTRES] for label, centres in found.items()}
        payload = Payload.of(prototypes={str(label): centres for label, centres in found.items()})
        moved = {**client.memory, "position": place + count} if "shared_batches" in released else None
        return Reply(payload, memory=moved)

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training from the received weights on the client's own examples; of a narrow client, of its part."""
        return self._train_locally(client, self.kit.work)

    @client_side
    def keep_generators(self, client: Client) -> Reply:
        """Remember all clients' generators."""
        return Reply(EMPTY, memory={**client.memory, **as_memory(client.received, self.family.kind)})

    @client_side
    def fine_tune(self, client: Client) -> Reply:
        """Local training at the rate of fine-tuning, and the schedule; where mixed, half of each batch is generated."""
        work = replace(self.kit.work, lr=self.config.finetune_lr or self.kit.work.lr)
        if not self.config.mixed:
            return self._train_locally(client, work)
        work = replace(work, batch=max(1, work.batch // 2))
        return self._train_locally(client, work, self._mixed_objective(client, work))

    def _train_locally(self, client: Client, work: Work, objective: Objective | None = None) -> Reply:
        net = self.kit.network(client.spec.net, client.spec.width)
        net.load_state_dict(client.received.tensors("weights"))
        position = int(client.memory.get("position", 0))
        objective = scaled_objective(self.kit.loss, client.spec.width, objective)
        fitted = self.kit.fit(
            net, self.kit.task, client.shard, work, client.seed, position=position, objective=objective
        )
        counts = client.shard.label_counts(self.kit.task.classes)
        return Reply(
            payload=Payload.of(weights=snapshot(net), label_counts={"counts": counts}),
            memory={**client.memory, "position": fitted.position},
            metrics={"loss": fitted.loss, "steps": fitted.steps},
        )

    def _mixed_objective(self, client: Client, work: Work) -> Objective:
        """The task's loss on a batch of real examples with as many generated ones put beside it."""
        seed = client.seed.at(phase="mixed")
        needed = samples_needed(work, Batches(len(client.shard), work.batch, client.seed))
        source = self._source(generators_in(client.memory), seed, batch=needed)
        images, labels = source.inputs(source.latents(client.spec.id))
        return beside(self.kit.loss, images, labels, seed.torch("order", client.spec.id))


def form_of(client: ClientSpec) -> tuple[str, float]:
    """A client's network and width."""
    return client.net, client.width


def _counts(payload: Payload) -> Tensor:
    return payload.tensors("label_counts")["counts"]
