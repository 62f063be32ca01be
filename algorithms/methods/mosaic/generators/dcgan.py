"""A DCGAN for each client, trained against the client's images and a frozen copy of its classifier.

Source: Mosaic, arXiv 2505.19699, and its released code; the networks are those of Radford et al., arXiv 1511.06434.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from algorithms.core import settings
from algorithms.core.contract import Client
from algorithms.core.kit import Kit
from algorithms.core.payload import Tensors
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.task import LABEL, Shard
from algorithms.core.training import Batches, pair_if_single
from algorithms.methods.mosaic.generators.family import as_they_are
from algorithms.nets.dcgan import DCDiscriminator, DCGenerator
from algorithms.parts.losses import NormGap, diversity, entropy
from algorithms.tasks.images import IMAGE, ImageTask, images_of

BETAS = (0.5, 0.999)


@dataclass(frozen=True, kw_only=True)
class GanConfig(settings.Config):
    """Settings of the generator `dcgan`."""

    conditional: bool = setting(False, "dcgan: whether a class is asked of the generator, beside the noise")
    latent: int = setting(100, "dcgan: entries of the noise vector", ge=1)
    gan_width: int = setting(64, "dcgan: channels of the widest maps, ngf and ndf of the paper", ge=1)
    gan_epochs: int = setting(200, "dcgan: passes over the client's examples", ge=1)
    gan_steps: int | None = setting(None, "dcgan: batches in all, instead of gan_epochs", ge=1)
    gan_batch: int = setting(64, "dcgan: images in a batch", ge=1)
    gan_lr: float = setting(2e-4, "dcgan: learning rate of Adam, for generator and discriminator", gt=0)
    classifier_epochs: int = setting(50, "dcgan: passes that train the client's own classifier from scratch", ge=0)
    classifier_steps: int | None = setting(None, "dcgan: batches in all, instead of classifier_epochs", ge=0)
    adversarial: float = setting(1.0, "dcgan: weight of the discriminator's verdict", ge=0)
    entropy: float = setting(0.0, "dcgan: weight of the entropy of the classifier's answer; low where it is sure", ge=0)
    diversity: float = setting(5.0, "dcgan: weight of the classes' evenness in a batch, over present classes", ge=0)
    classify: float = setting(0.0, "dcgan: weight of the cross-entropy of the class asked; conditional only", ge=0)
    inversion: float = setting(10.0, "dcgan: weight of the gap to the classifier's batch statistics", ge=0)
    inversion_below: int = setting(100, "dcgan: clients with fewer examples use `inversion`; tau of the paper", ge=0)
    least_examples: int = setting(10, "dcgan: a client with fewer examples trains no generator", ge=1)


@dataclass(frozen=True)
class DCPart:
    """A client's generator as a `Part`.

    Attributes:
        net: the network without weights of its own, in eval mode; shared by all parts.
        state: its weights.
        weights: float64 (C,), how often each class is asked; None for a generator without classes.
    """

    net: DCGenerator
    state: Tensors
    weights: Tensor | None

    def latents(self, count: int, draws: torch.Generator) -> dict[str, Tensor]:
        labels = torch.full((count,), -1)
        if self.weights is not None and count:
            labels = torch.multinomial(self.weights, count, replacement=True, generator=draws)
        return {"z": torch.randn(count, self.net.latent, generator=draws), "label": labels}

    def samples(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        z, labels = latents["z"], latents["label"]
        state = {name: value.to(z.device) for name, value in self.state.items()}
        images: Tensor = functional_call(self.net, state, (z, labels if self.weights is not None else None))
        return images, labels


class DCGan:
    """The family `dcgan`; see `algorithms.methods.mosaic.generators.family`."""

    kind = "generator"
    needs_model = False

    def __init__(self, config: GanConfig, kit: Kit, released: Collection[str]) -> None:
        self.config, self.kit, self.released = config, kit, released

    def to_inputs(self) -> Callable[[Tensor], Tensor]:
        return as_they_are if "tanh_range" in self.released else images_of(self.kit.task).from_signed

    def part(self, tensors: Tensors, counts: Tensor) -> DCPart:
        weights = counts.to(torch.float64) if self.config.conditional else None
        return DCPart(self._frame, tensors, weights)

    def fit(self, client: Client) -> tuple[dict[str, Tensor], Tensor]:
        shard, classes = client.shard, self.kit.task.classes
        counts = shard.label_counts(classes)
        if "no_class_zero" in self.released:
            counts[0] = 0
        nothing_to_ask = self.config.conditional and not counts.any()
        if len(shard) < self.config.least_examples or nothing_to_ask:
            return {}, torch.zeros(classes, dtype=torch.int64)
        with torch_seeded(client.seed.number("gan networks")):
            generator = self._generator().to(self.kit.device)
            judge = DCDiscriminator(images_of(self.kit.task).shape, self.config.gan_width, self._generated_classes())
        small = len(client.shard) < self.config.inversion_below and "dead_inversion" not in self.released
        game = _Game(
            generator,
            judge.to(self.kit.device),
            self._classifier(client),
            shard,
            replace(self.config, inversion=self.config.inversion if small else 0.0),
            images_of(self.kit.task),
            self.released,
        )
        game.play(client.seed)
        return snapshot(generator), counts

    @cached_property
    def _frame(self) -> DCGenerator:
        with torch.device("meta"):
            return self._generator().eval().requires_grad_(False)

    def _generator(self) -> DCGenerator:
        shape = images_of(self.kit.task).shape
        return DCGenerator(shape, self.config.latent, self.config.gan_width, self._generated_classes())

    def _generated_classes(self) -> int | None:
        return self.kit.task.classes if self.config.conditional else None

    def _classifier(self, client: Client) -> nn.Module:
        """f_k: a network of the client's own, trained from scratch as clients train in this round; frozen."""
        net = self.kit.new_network(client.spec.net, client.spec.width)
        steps, epochs = self.config.classifier_steps, self.config.classifier_epochs
        work = replace(self.kit.work, steps=steps, epochs=None if steps is not None else epochs)
        self.kit.fit(net, self.kit.task, client.shard, work, client.seed)
        # The released code left it in train mode, where the fakes' own statistics replace the remembered ones.
        return net.train("live_classifier" in self.released).requires_grad_(False)


@dataclass(frozen=True)
class _Game:
    """Generator and discriminator of one client, and what they play with: all of the client's examples, or all but
    those of class 0 (`no_class_zero`), which then leave each batch smaller or out."""

    generator: DCGenerator
    judge: DCDiscriminator
    classifier: nn.Module
    shard: Shard
    config: GanConfig
    task: ImageTask
    released: Collection[str]

    def play(self, seed: Seed) -> None:
        """Train both in place: one step of the discriminator and one of the generator for each batch."""
        config, device = self.config, next(self.generator.parameters()).device
        batches = Batches(len(self.shard), config.gan_batch, seed)
        draws, gap = seed.torch("gan"), NormGap(self.classifier)
        by_judge, by_generator = (
            torch.optim.Adam(net.parameters(), lr=config.gan_lr, betas=BETAS) for net in (self.judge, self.generator)
        )
        for step in range(config.gan_steps or config.gan_epochs * batches.per_epoch):
            picks = self._visible(batches[step])
            if not len(picks):
                continue
            real, real_labels = self._real(picks, draws)
            z = torch.randn(len(real), config.latent, generator=draws).to(device)
            asked = self._ask(len(real), draws)
            fake = self.generator(z, self._label_input(asked))
            loss = F.softplus(-self.judge(real.to(device), self._label_input(real_labels))).mean()
            loss = loss + F.softplus(self.judge(fake.detach(), self._label_input(asked))).mean()
            _step(by_judge, loss)
            _step(by_generator, self._generator_loss(fake, asked.to(device), gap))

    def _generator_loss(self, fake: Tensor, labels: Tensor, gap: NormGap) -> Tensor:
        """L_adv + c L_ent + d L_div + i L_inv, and the class asked."""
        config = self.config
        loss = config.adversarial * F.softplus(-self.judge(fake, self._label_input(labels))).mean()
        if not (config.entropy or config.diversity or config.inversion or config.classify):
            return loss
        with gap.watching():
            logits = self.classifier(fake if "tanh_range" in self.released else self.task.from_signed(fake))
        if config.entropy:
            loss = loss + config.entropy * entropy(logits)
        if config.diversity:
            loss = loss + config.diversity * diversity(logits, self._present().to(logits.device))
        if config.classify:
            loss = loss + config.classify * F.cross_entropy(logits, labels)
        if config.inversion:
            loss = loss + config.inversion * gap.value()
        return loss

    def _real(self, picks: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = self.shard.rows[picks]
        pixels = self.task.augment(self.shard.columns[IMAGE][rows], draws)
        scaled = self.task.normalise(pixels) if "tanh_range" in self.released else self.task.to_signed(pixels)
        images, labels = pair_if_single(scaled, self.shard.columns[LABEL][rows])
        return cast(Tensor, images), labels

    def _visible(self, picks: Tensor) -> Tensor:
        """Those of some positions in the shard whose images are shown."""
        return picks[self.shard.own_labels[picks] != 0] if "no_class_zero" in self.released else picks

    def _ask(self, count: int, draws: torch.Generator) -> Tensor:
        """int64 (count,): classes drawn as often as the client holds images of them that are shown."""
        labels = self.shard.own_labels[self._visible(torch.arange(len(self.shard)))]
        return labels[torch.randint(len(labels), (count,), generator=draws)]

    def _label_input(self, labels: Tensor) -> Tensor | None:
        """The labels, for networks that are conditional on them."""
        return labels.to(next(self.generator.parameters()).device) if self.config.conditional else None

    def _present(self) -> Tensor:
        """bool (C,): the classes whose images are shown; all of them by the released rule."""
        present = self.shard.label_counts(self.task.classes) > 0
        if "no_class_zero" in self.released:
            present[0] = False
        return torch.ones_like(present) if "diversity_over_all" in self.released else present


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step; no gradient of the other player's weights is computed on the way."""
    own = optimiser.param_groups[0]["params"]
    for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
        parameter.grad = gradient
    optimiser.step()
