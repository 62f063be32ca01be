"""Networks for every form of input: what each must do, whatever it computes; and what padding, the future and absent
modalities must not do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from algorithms.core.seeds import torch_seeded
from algorithms.nets import (
    Images,
    Modalities,
    NetworkError,
    Sequences,
    Signals,
    Tables,
    Texts,
    build,
    forms_of,
    names,
    require_head,
)
from algorithms.nets.forms import Form

PICTURE, SOUND, WORDS, ROW = Images((1, 8, 8)), Signals((2, 20)), Texts(30, 9), Tables(3, (4, 7))
FORMS: list[Form] = [
    PICTURE,
    SOUND,
    Signals((1, 1)),
    WORDS,
    Texts(2, 1),
    Sequences(11, 6),
    Sequences(2, 1),
    ROW,
    Tables(0, (2,)),
    Tables(2),
    Modalities({"picture": PICTURE, "sound": SOUND}),
    Modalities({"row": ROW, "words": WORDS, "sound": SOUND, "picture": PICTURE}),
]
DEEP = ("resnet18", "resnet34", "resnet50")
EVERY = [(name, form) for form in FORMS for name in names(form) if name not in DEEP]


def net_for(name: str, form: Form, outputs: int = 3, seed: int = 0) -> nn.Module:
    with torch_seeded(seed):
        return build(name, form, outputs)


def outputs_of(net: nn.Module, inputs: object) -> Tensor:
    with torch.no_grad():
        return net.eval()(inputs)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-6)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# What every network does


@pytest.mark.parametrize(("name", "form"), EVERY, ids=str)
def test_a_network_answers_through_its_head_with_one_vector_an_example_or_a_place(name, form):
    net = net_for(name, form)
    given = outputs_of(net, form.probe(5))
    assert given.shape == ((5, form.length, 3) if isinstance(form, Sequences) else (5, 3))
    assert given.isfinite().all()
    head = require_head(net).head
    assert torch.allclose(given, require_head(net).features(form.probe(5)) @ head.weight.T + head.bias, atol=1e-5)


@pytest.mark.parametrize(("name", "form"), EVERY, ids=str)
def test_a_step_of_training_reaches_every_parameter_and_lowers_the_loss(name, form):
    net, inputs = net_for(name, form), form.probe(4)
    labels = torch.arange(4) % 3 if not isinstance(form, Sequences) else torch.arange(4 * form.length) % 3
    loss = nn.functional.cross_entropy(net(inputs).flatten(0, -2), labels)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 1e-3 * parameter.grad
        assert nn.functional.cross_entropy(net(inputs).flatten(0, -2), labels) < loss


@pytest.mark.parametrize(("name", "form"), EVERY, ids=str)
def test_a_seed_gives_the_same_weights_and_the_same_gradients_twice(name, form):
    nets = [net_for(name, form) for _ in range(2)]
    for net in nets:
        net(form.probe(4)).square().sum().backward()
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(value, states[1][entry]) for entry, value in states[0].items())
    pairs = zip(*(net.parameters() for net in nets), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)
    assert not torch.equal(*(require_head(net_for(name, form, seed=seed)).head.weight for seed in (0, 1)))


@pytest.mark.parametrize(("name", "form"), EVERY, ids=str)
def test_a_state_passes_through_a_network_that_holds_another(name, form):
    net, other = net_for(name, form, seed=1), net_for(name, form, seed=2)
    with torch.no_grad():
        found = functional_call(other.eval(), net.state_dict(), (form.probe(),))
    assert close(found, outputs_of(net, form.probe()))


@pytest.mark.parametrize(("name", "form"), EVERY, ids=str)
def test_an_example_s_answer_does_not_depend_on_who_else_is_in_the_batch(name, form):
    net, inputs = net_for(name, form), form.probe(3)
    alone = inputs[:1] if isinstance(inputs, Tensor) else {key: value[:1] for key, value in inputs.items()}
    assert close(outputs_of(net, alone), outputs_of(net, inputs)[:1])


# Which network serves what


def test_every_form_has_its_networks():
    assert set(names(Tables)) == {"mlp", "linear"}
    assert set(names(Signals)) == {"mlp", "linear", "cnn1d", "resnet1d"}
    assert set(names(Texts)) == {"fasttext", "textcnn", "lstm", "gru", "transformer"}
    assert set(names(Sequences)) == {"lstm_lm", "decoder"}
    assert set(names(Modalities)) == {"two_branch"}
    assert set(names()) == {name for form in FORMS for name in names(form)}
    assert forms_of("mlp") == (Images, Signals, Tables)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", [*names(), "torchvision:resnet18"])
def test_a_network_asked_for_a_form_that_it_does_not_serve_names_those_that_do(name, form):
    if name in names(form) or (name.startswith("torchvision") and isinstance(form, Images)):
        return
    with pytest.raises(NetworkError, match=f"{name}.*{type(form).__name__.lower()}; networks that do are") as refusal:
        build(name, form, 3)
    assert all(other in str(refusal.value) for other in [*names(form), "pkg.module:function"])
    assert ("torchvision:NAME" in str(refusal.value)) == isinstance(form, Images)


@pytest.mark.parametrize(
    "form",
    [
        Signals((0, 5)),
        Signals((1, 2, 3)),
        Texts(1, 4),
        Texts(5, 0),
        Sequences(1, 4),
        Tables(0),
        Tables(1, (3, 0)),
        Modalities({}),
        Modalities({"picture": PICTURE, "sound": Signals((0, 5))}),
    ],
    ids=repr,
)
def test_a_form_that_nothing_can_have_is_refused(form):
    with pytest.raises(NetworkError, match="need"):
        build("mlp", form, 3)


@pytest.mark.parametrize("name", ["linear", "lstm", "gru", "transformer", "lstm_lm", "decoder", "two_branch"])
def test_a_network_without_narrower_versions_refuses_a_width(name):
    form = next(form for form in FORMS if name in names(form))
    with pytest.raises(NetworkError, match=r"one width only, and 0\.5 is asked; (narrower|no network)"):
        build(name, form, 3, width=0.5)


# Sizes


def test_a_perceptron_for_tables_embeds_each_category_in_half_its_values_and_fifty_at_most():
    net = net_for("mlp", Tables(3, (1, 4, 7, 1000)))
    sizes = [1, 2, 4, 50]
    embeddings = 1 * 1 + 4 * 2 + 7 * 4 + 1000 * 50
    assert parameters(net) == embeddings + (3 + sum(sizes)) * 64 + 64 + 64 * 3 + 3


def test_a_linear_model_for_tables_has_a_weight_for_each_number_and_each_value_of_a_category():
    net = net_for("linear", ROW, outputs=2)
    assert parameters(net) == (3 + 4 + 7) * 2 + 2
    row = {"numbers": torch.tensor([[1.0, 2.0, -1.0]]), "categories": torch.tensor([[3, 5]])}
    weight, bias = net.head.weight.detach(), net.head.bias.detach()
    expected = weight[:, 0] + 2 * weight[:, 1] - weight[:, 2] + weight[:, 3 + 3] + weight[:, 3 + 4 + 5] + bias
    assert close(outputs_of(net, row)[0], expected)


def test_the_mean_of_tokens_is_that_of_the_real_ones():
    net = net_for("fasttext", WORDS)
    vectors = net.body.embedding.weight.detach()
    text = {"ids": torch.tensor([[5, 6, 5, 0, 0]]), "length": torch.tensor([3])}
    with torch.no_grad():
        assert close(net.features(text)[0], (2 * vectors[5] + vectors[6]) / 3)


def test_a_text_that_an_example_lacks_has_features_of_zeros():
    absent = {"ids": torch.zeros(1, 4, dtype=torch.int64), "length": torch.zeros(1, dtype=torch.int64)}
    assert torch.equal(net_for("fasttext", WORDS).features(absent), torch.zeros(1, 64))


def test_residual_networks_over_time_have_the_layers_of_resnet8():
    stem = 7 * 2 * 16 + 2 * 16
    first = 2 * (3 * 16 * 16 + 2 * 16)
    second = 3 * 16 * 32 + 3 * 32 * 32 + 16 * 32 + 3 * 2 * 32
    third = 3 * 32 * 64 + 3 * 64 * 64 + 32 * 64 + 3 * 2 * 64
    assert parameters(net_for("resnet1d", SOUND, outputs=10)) == stem + first + second + third + 65 * 10


# Texts: what stands after the end


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[list[int]], int, int]:
    """Up to four texts of 1 to 9 tokens, and two numbers of places to which they are padded."""
    words = draw(st.lists(st.lists(st.integers(1, 29), min_size=1, max_size=9), min_size=1, max_size=4))
    longest = max(map(len, words))
    return words, longest, longest + draw(st.integers(1, 12))


def padded(words: list[list[int]], places: int, filler: int) -> dict[str, Tensor]:
    ids = torch.tensor([text + [filler] * (places - len(text)) for text in words])
    return {"ids": ids, "length": torch.tensor([len(text) for text in words])}


@pytest.mark.parametrize("name", names(Texts))
@settings(max_examples=20)
@given(case=texts(), filler=st.integers(0, 29))
def test_what_stands_after_the_end_of_a_text_changes_nothing(name, case, filler):
    words, short, long = case
    net = net_for(name, WORDS)
    assert close(outputs_of(net, padded(words, short, 0)), outputs_of(net, padded(words, long, filler)))


@pytest.mark.parametrize("name", names(Texts))
def test_every_token_of_a_text_counts(name):
    net, words = net_for(name, WORDS), [1, 2, 3, 4, 5]
    before = outputs_of(net, padded([words], 7, 0))
    for place in range(5):
        other = [*words[:place], 9, *words[place + 1 :]]
        assert not close(outputs_of(net, padded([other], 7, 0)), before)


@pytest.mark.parametrize("name", ["textcnn", "lstm", "gru", "transformer"])
def test_the_order_of_tokens_counts_unless_only_their_mean_is_taken(name):
    there, back = ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    for net, same in ((net_for(name, WORDS), False), (net_for("fasttext", WORDS), True)):
        answers = [outputs_of(net, padded([words], 6, 0)) for words in (there, back)]
        assert close(*answers) == same


# Sequences: what is still to come


@pytest.mark.parametrize("name", names(Sequences))
@settings(max_examples=20)
@given(data=st.data())
def test_a_token_changes_no_answer_before_it_and_the_one_at_it(name, data):
    form = Sequences(11, 8)
    tokens = torch.tensor([data.draw(st.lists(st.integers(0, 10), min_size=8, max_size=8))])
    place = data.draw(st.integers(0, 7))
    other = tokens.clone()
    other[0, place] = (tokens[0, place] + data.draw(st.integers(1, 10))) % 11
    net = net_for(name, form)
    before, after = outputs_of(net, tokens)[0], outputs_of(net, other)[0]
    assert close(before[:place], after[:place])
    assert not close(before[place], after[place])
    assert close(outputs_of(net, tokens[:, : place + 1])[0], before[: place + 1])


# Modalities: what an example lacks


def lacking(form: Modalities, missing: int, fill: int) -> dict[str, Tensor]:
    """Four examples, of which the second lacks a modality; something stands in its place."""
    inputs = form.probe(4)
    inputs["present"][1, missing] = 0
    name = list(form.parts)[missing]
    for key, value in inputs.items():
        if key == name or key.startswith(f"{name}."):
            value[1] = fill
    return inputs


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("missing", range(4))
def test_what_stands_in_the_place_of_an_absent_modality_changes_nothing(training, missing):
    form = FORMS[-1]
    answers, gradients = [], []
    for fill in (0, 1):
        net = net_for("two_branch", form).train(training)
        answers.append(net(lacking(form, missing, fill)))
        answers[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert close(*answers)
    assert all(one.isfinite().all() and close(one, other) for one, other in zip(*gradients, strict=True))


def test_an_example_that_lacks_a_modality_is_told_from_one_whose_features_are_zeros():
    form = FORMS[-2]
    net, inputs = net_for("two_branch", form), form.probe(1)
    with torch.no_grad():
        for branch in net.body.branches:
            for parameter in branch.parameters():
                parameter.zero_()
    whole = outputs_of(net, inputs)
    inputs["present"][0, 1] = 0
    assert close(whole - outputs_of(net, inputs), net.head.weight.detach()[None, :, -1])


# A user's function for other forms than images


def of_tokens(form: Texts, outputs: int) -> nn.Module:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors, self.out = nn.EmbeddingBag(form.vocabulary, 4), nn.Linear(4, outputs)

        def forward(self, texts: dict[str, Tensor]) -> Tensor:
            return self.out(self.vectors(texts["ids"]))

    return Bag()


def per_place(form: Sequences, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(form.vocabulary, 4), nn.Linear(4, outputs))


def last_place(form: Sequences, outputs: int) -> nn.Module:
    class Last(nn.Sequential):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens)[:, -1]

    return Last(*per_place(form, outputs))


@pytest.mark.parametrize(("function", "form"), [("of_tokens", WORDS), ("per_place", Sequences(11, 6))])
def test_a_user_s_function_is_given_the_form_and_the_number_of_outputs(function, form):
    net = build(f"{__name__}:{function}", form, 5)
    assert require_head(net).head.out_features == 5
    assert outputs_of(net, form.probe()).shape[-1] == 5


def test_a_user_s_network_for_sequences_answers_at_every_place():
    with pytest.raises(NetworkError, match=r"outputs of shape \(2, 3\); needed is \(2, 6, 3\)"):
        build(f"{__name__}:last_place", Sequences(11, 6), 3)


def test_a_function_for_images_is_told_how_it_was_called_for_another_form():
    with pytest.raises(NetworkError, match=r"of_tokens\(shape=\(1, 8, 8\), classes=3\) cannot be called"):
        build(f"{__name__}:of_tokens", PICTURE, 3)
