"""The round loop: asks the method for one round after another and tells the watchers what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from actors.clock import PhaseClock
from actors.cohort.delivery import Book, ClientMetric, Delivery, resolve_outcome
from actors.failures import FailurePolicy
from actors.runner import Listener, Runner, StepRequest
from actors.steps.orders import WorkerSetup, find_method
from actors.steps.worker import OWN, OWN_VALIDATION, one_thread
from algorithms.core.contract import ClientSpec, Plan
from algorithms.core.distillation import Distillation
from algorithms.core.kit import Kit
from algorithms.core.needs import Needs
from algorithms.core.seeds import Seed
from algorithms.core.task import Shard, Sums, add
from engine.records import GLOBAL, VALIDATION, Evaluation, RoundRecord, StageRecord, Watcher, evaluation_of
from engine.run.stopping import Stopping


@dataclass(frozen=True)
class Schedule:
    """The schedule of a run's rounds and of what happens between them.

    Attributes:
        rounds: how many.
        cohort: clients asked in a round.
        every: evaluate after each so many rounds; the last round is always evaluated.
    """

    rounds: int
    cohort: int
    every: int

    def evaluates(self, round: int) -> bool:
        """Whether the model is evaluated after this round (from 0)."""
        return (round + 1) % self.every == 0 or round + 1 == self.rounds


def choose(clients: Sequence[ClientSpec], count: int, seed: Seed) -> tuple[ClientSpec, ...]:
    """`count` clients without replacement, by a seed of their own, in the order of their numbers."""
    if count >= len(clients):
        return tuple(clients)
    picks = seed.at(phase="cohort").numpy("choose").choice(len(clients), size=count, replace=False)
    return tuple(clients[i] for i in sorted(picks.tolist()))


RowT = TypeVar("RowT")


def _drain(rows: list[RowT]) -> tuple[RowT, ...]:
    """Empty a list and return its rows: over a thousand rounds of a hundred clients they would take 100 MB."""
    copy = tuple(rows)
    rows.clear()
    return copy


@dataclass(frozen=True)
class Validation:
    """The evaluation of a run's model as the run goes.

    Attributes:
        evaluate: a predictor on validation rows; clients' own predictors are asked of the clients.
        rule: when the run ends.
    """

    evaluate: Callable[[nn.Module], Evaluation]
    rule: Stopping


class Checkpoints(Protocol):
    """Hears where rounds begin and end, so that a run can go on from there; see `engine.run.keeping`."""

    def begin(self, round: int) -> None: ...

    def end(self, rounds: Rounds, last: bool) -> None: ...


class Rounds:
    """A run under way: the method's state, the book, the clock.

    Attributes:
        state: the method's, after the last finished round.
        next: number of the next round.
        stages: the last evaluation of each stage shown.
        metrics: the last value of each metric of the method's server side.
        stopping: when the run ends before its last round, with what has been seen; None where it never does.
        processors: kinds of processors by the machine that a host started on.
        own: of a personal method, the metrics of each client's own predictor when it was last evaluated.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        needs: Needs,
        schedule: Schedule,
        runner: Runner,
        evaluate: Callable[[nn.Module], Evaluation],
        watchers: Sequence[Watcher],
        checkpoints: Checkpoints | None = None,
        public: Shard | None = None,
        policy: FailurePolicy | None = None,
        clock: PhaseClock | None = None,
        validation: Validation | None = None,
    ) -> None:
        """`needs` is the method's answer, which says what may travel; `public` are the server's own examples; `policy`
        says what is done where something fails; `clock` has run since the command began; `validation` may end the run
        early."""
        self._policy = policy or FailurePolicy()
        self._setup, self._needs, self._schedule, self._runner = setup, needs, schedule, runner
        self._evaluate, self._watchers, self._checkpoints = evaluate, watchers, checkpoints
        self._validate = None if validation is None else validation.evaluate
        self.stopping = None if validation is None else validation.rule
        self.book = Book()
        self.clock = clock or PhaseClock("start")
        self.clock.switch("start")
        self.stages: dict[str, Evaluation] = {}
        self.metrics: dict[str, float] = {}
        self.processors: dict[str, str] = {}
        self.own: dict[int, Mapping[str, float]] = {}
        self.next = 0
        seed = Seed(setup.seed)
        kit = Kit(
            task=setup.task,
            work=setup.work,
            seed=seed,
            device=setup.torch_device,
            starts=setup.starts,
            public=public,
            distil=self._distil,
            show=self._show,
            tell=self._tell,
        )
        method = find_method(setup.method)
        self.method = method(setup.config, kit)
        self._seed = seed
        with one_thread():
            self.state: Any = self.method.start(setup.clients)

    def play(self, until: int | None = None) -> None:
        """Play all rounds that are left, or those before round `until`."""
        while not self.is_over and (until is None or self.next < until):
            with one_thread():
                self._round()

    @property
    def is_over(self) -> bool:
        """Whether the last round has been played, or the run has been stopped."""
        return self.next >= self._schedule.rounds or (self.stopping is not None and self.stopping.is_over)

    def _round(self) -> None:
        number = self.next
        if self._checkpoints:
            self._checkpoints.begin(number)
        self.clock.switch("server")
        before = self.clock.read()
        plan = self._plan(number)
        cohort = Delivery(plan, self._runner, self._needs, self.book, self.clock, self._step_told, self._policy)
        self.state, metrics = self.method.round(self.state, plan, cohort)
        self.clock.switch("server")
        self.metrics.update(metrics)
        if self._schedule.evaluates(number):
            self._show_last(plan)
        after = self.clock.read()
        spent = {phase: total - before.get(phase, 0.0) for phase, total in after.items()}
        record = RoundRecord(
            number,
            clients=tuple(c.id for c in plan.clients),
            metrics=metrics,
            seconds={p: s for p, s in spent.items() if s > 0},
            entries=_drain(self.book.entries),
            client_metrics=_drain(self.book.metrics),
            faults=_drain(self.book.faults),
            spans=_drain(self.book.spans),
            rows=_drain(self.book.rows),
        )
        self.processors.update(self._runner.processors())
        self.next = number + 1
        for watcher in self._watchers:
            watcher.round(record)
        if self._checkpoints:
            self._checkpoints.end(self, last=self.is_over)

    def _plan(self, number: int) -> Plan:
        seed = self._seed.at(round=number, phase="server")
        chosen = choose(self._setup.clients, self._schedule.cohort, seed)
        clients = tuple(self._setup.client(client.id, seed) for client in chosen)
        return Plan(round=number, rounds=self._schedule.rounds, clients=clients, seed=seed)

    def evaluate_own(self) -> Mapping[int, Mapping[str, float]]:
        """The metrics of each client's own predictor after the last round; of a personal method."""
        if not self.own:  # in a run that was taken up after its last round
            with self.clock.during("evaluate"):
                self._evaluate_own(OWN, self._plan(self.next - 1))
        return self.own

    def _show_last(self, plan: Plan) -> None:
        """Show what the method predicts with after a round: one model, or each client's own; on test rows, and on
        validation rows where there are some."""
        predictor = None if self.method.personal else self.method.predictor(self.state)
        with self.clock.during("evaluate"):
            tested = self._evaluate_own(OWN, plan) if predictor is None else self._evaluate(predictor)
        self._tell_stage(GLOBAL, tested)
        if self._validate is None or self.stopping is None:
            return
        with self.clock.during("evaluate"):
            held = self._evaluate_own(OWN_VALIDATION, plan) if predictor is None else self._validate(predictor)
        self._tell_stage(VALIDATION, held)
        self.stopping = self.stopping.learn(plan.round, held.figures[self.stopping.figure.name], tested.figures)

    def _evaluate_own(self, step: str, plan: Plan) -> Evaluation:
        """Every client's own predictor on its own test or validation examples: the figures of all of these together."""
        everyone = tuple(client.id for client in self._setup.clients)
        request = StepRequest(step, everyone, self.method.own_message(self.state), plan.seed)
        sums: Sums = {}
        own: dict[int, Mapping[str, float]] = {}
        for outcome in self._runner.run(request):
            final = resolve_outcome(self._runner, request, outcome, self._policy, self.book)
            if final is None:
                continue
            for name, value in final.metrics.items():
                self.book.metrics.append(ClientMetric(plan.round, step, final.client, name, float(value)))
            own[final.client] = final.metrics
            sums = add(sums, final.sums)
        if step == OWN:
            self.own = own
        return evaluation_of(self._setup.task, sums)

    def _show(self, stage: str, predictor: nn.Module) -> None:
        with self.clock.during("evaluate"):
            evaluation = self._evaluate(predictor)
        self._tell_stage(stage, evaluation)

    def _tell_stage(self, stage: str, evaluation: Evaluation) -> None:
        self.stages[stage] = evaluation
        for watcher in self._watchers:
            watcher.stage(StageRecord(self.next, stage, evaluation))

    def _step_told(self, step: str, done: int, total: int) -> None:
        for watcher in self._watchers:
            watcher.step(self.next, step, done, total)

    def _distil(self, job: Distillation) -> dict[str, Tensor]:
        """A distillation by the runner, whose steps are told to the watchers."""

        def report(done: int) -> None:
            self._tell("distillation", done, job.steps)

        def note_replaced(kind: str) -> None:
            self.book.note_replaced(self.next, "distillation", kind)

        report(0)
        return self._runner.distil(job, Listener(report, note_replaced))

    def _tell(self, phase: str, done: int, total: int) -> None:
        self.clock.switch(f"server:{phase}")
        self._step_told(phase, done, total)
