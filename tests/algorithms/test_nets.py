"""Networks by name: sizes, features and heads, widths, torchvision's and a user's own, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from algorithms.core.seeds import torch_seeded
from algorithms.core.states import snapshot
from algorithms.nets import Classifier, Images, NetworkError, build, names, require_head
from algorithms.nets.forms import Modalities, Signals
from algorithms.nets.vision import torchvision
from algorithms.nets.width import narrow

ROOT = Path(__file__).parent.parent.parent
PROBLEMS = [((1, 8, 8), 2), ((1, 28, 28), 10), ((3, 32, 32), 100), ((3, 64, 64), 7), ((3, 20, 24), 1), ((4, 8, 13), 5)]
NARROWED = [name for name in names(Images) if name != "linear"]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def images(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


# What other networks do at 64x64 they do at 8x8; the two deep ones would make this file slow.
@pytest.mark.parametrize("name", [name for name in names(Images) if name not in ("resnet34", "resnet50")])
@pytest.mark.parametrize(("shape", "classes"), PROBLEMS)
def test_a_network_gives_one_logit_per_class_through_its_head(name, shape, classes):
    net = build(name, Images(shape), classes)
    batch = images(*shape)
    logits = net(batch)
    assert logits.shape == (2, classes)
    net.eval()
    features = net.features(batch)
    assert features.shape == (2, net.head.in_features)
    assert torch.allclose(net(batch), features @ net.head.weight.T + net.head.bias, atol=1e-5)


@pytest.mark.parametrize(("name", "features"), [("resnet34", 512), ("resnet50", 2048)])
def test_the_deep_networks_serve_grey_images_of_the_smallest_size(name, features):
    net = build(name, Images((1, 8, 8)), 3)
    assert net(images(1, 8, 8)).shape == (2, 3)
    assert net.head.in_features == features


def test_a_perceptron_for_mnist_is_784_64_10():
    assert parameters(build("mlp", Images((1, 28, 28)), 10)) == 784 * 64 + 64 + 64 * 10 + 10


def test_the_small_network_has_8_16_32_channels_and_four_features_for_each_of_the_last():
    convolutions = 9 * (3 * 8 + 8 * 16 + 16 * 32)
    normalisations = 2 * (8 + 16 + 32)
    assert parameters(build("small_cnn", Images((3, 32, 32)), 10)) == convolutions + normalisations + (4 * 32 + 1) * 10


def test_the_two_convolution_network_has_32_and_64_channels_and_128_hidden_units():
    convolutions = (25 * 3 + 1) * 32 + (25 * 32 + 1) * 64
    assert parameters(build("cnn2", Images((3, 32, 32)), 10)) == convolutions + (64 * 8 * 8 + 1) * 128 + (128 + 1) * 10


def test_resnet8_has_seven_3x3_convolutions_two_shortcuts_and_a_head():
    stem = 9 * 3 * 16 + 2 * 16
    first = 2 * (9 * 16 * 16 + 2 * 16)
    second = 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 3 * 2 * 32
    third = 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 3 * 2 * 64
    assert parameters(build("resnet8", Images((3, 32, 32)), 10)) == stem + first + second + third + 65 * 10


@pytest.mark.parametrize(("classes", "count", "nbytes"), [(10, 11_173_962, 44_734_408), (100, 11_220_132, 44_919_088)])
def test_resnet18_is_that_of_mosaic_to_the_byte(classes, count, nbytes):
    net = build("resnet18", Images((3, 32, 32)), classes)
    buffers = list(net.buffers())
    assert parameters(net) == count
    assert sum(buffer.numel() for buffer in buffers if buffer.is_floating_point()) == 9_600
    assert sum(1 for buffer in buffers if not buffer.is_floating_point()) == 20
    assert sum(value.numel() * value.element_size() for value in net.state_dict().values()) == nbytes


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_the_larger_resnets_compute_what_torchvision_s_do_with_a_small_stem(name):
    ours = build(name, Images((3, 32, 32)), 5).eval()
    theirs = torchvision().models.get_model(name, num_classes=5).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    with torch.no_grad():
        assert torch.allclose(ours(images(3, 32, 32)), theirs(images(3, 32, 32)), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_building_does_not_seed():
    states = []
    for seed in (5, 5, 6):
        with torch_seeded(seed):
            states.append(snapshot(build("small_cnn", Images((1, 8, 8)), 3)))
            states.append(snapshot(build("small_cnn", Images((1, 8, 8)), 3)))
    first, second, again, _, other, _ = (state["head.weight"] for state in states)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_built_network_is_in_train_mode_and_has_seen_no_batch():
    net = build("small_cnn", Images((1, 8, 8)), 3)
    assert all(module.training for module in net.modules())
    state = net.state_dict()
    assert all(int(value) == 0 for name, value in state.items() if name.endswith("num_batches_tracked"))
    assert all(torch.equal(v, torch.zeros_like(v)) for name, v in state.items() if name.endswith("running_mean"))


@given(channels=st.integers(1, 4096), width=st.floats(0.001, 1.0))
def test_a_narrowed_layer_keeps_at_least_one_and_at_most_all_channels(channels, width):
    kept = narrow(channels, width)
    assert 1 <= kept <= channels
    assert width * channels - 1e-6 <= kept < width * channels + 1


@pytest.mark.parametrize(("channels", "width", "kept"), [(100, 0.07, 7), (64, 0.5, 32), (8, 1 / 16, 1), (10, 0.25, 3)])
def test_a_narrowed_layer_has_the_ceiling_of_its_share(channels, width, kept):
    assert narrow(channels, width) == kept


@pytest.mark.parametrize("name", NARROWED)
def test_a_narrower_network_has_the_same_entries_narrowed_inside_only(name):
    full, half = (build(name, Images((3, 8, 8)), 6, width).state_dict() for width in (1, 0.5))
    assert list(full) == list(half)
    assert half["head.weight"].shape[0] == 6
    classes, colours, pixels = 6, 3, 3 * 8 * 8
    for entry, wide in full.items():
        outputs, inputs, *window = [*wide.shape, 0, 0] if wide.dim() < 2 else wide.shape
        expected = [
            outputs if outputs == classes else outputs // 2,
            inputs if inputs in (colours, pixels) else inputs // 2,
            *window,
        ]
        assert list(half[entry].shape) == expected[: wide.dim()], entry


@pytest.mark.parametrize("name", NARROWED)
@pytest.mark.parametrize("width", [1 / 16, 0.3])
def test_a_narrower_network_computes(name, width):
    assert build(name, Images((3, 8, 8)), 6, width)(images(3, 8, 8)).shape == (2, 6)


@pytest.mark.parametrize("width", [0, -0.5, 1.5, float("nan")])
def test_a_width_out_of_range_is_refused(width):
    with pytest.raises(NetworkError, match="must be a fraction above 0 and at most 1"):
        build("mlp", Images((1, 8, 8)), 3, width)


def test_a_misspelt_name_is_told_its_nearest_and_all_names():
    with pytest.raises(NetworkError, match="did you mean resnet18") as refusal:
        build("resnet_18", Images((3, 32, 32)), 10)
    assert all(name in str(refusal.value) for name in [*names(Images), "torchvision:NAME", "pkg.module:function"])


@pytest.mark.parametrize("shape", [(1, 0, 8), (8, 8)])
def test_images_without_pixels_or_channels_are_refused(shape):
    with pytest.raises(NetworkError, match="images need channels, height and width, each at least 1"):
        build("mlp", Images(shape), 3)


def test_a_problem_without_classes_is_refused():
    with pytest.raises(NetworkError, match="at least 1 output is needed"):
        build("mlp", Images((1, 8, 8)), 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 9), (3, 9, 3), (1, 4, 4)])
@pytest.mark.parametrize("name", names(Images))
def test_a_network_takes_images_of_any_size_or_says_how_large_they_must_be_and_which_networks_take_them(name, shape):
    form = Images(shape)
    if name in ("small_cnn", "cnn2") and min(shape[1:]) < 4:
        with pytest.raises(NetworkError) as refusal:
            build(name, form, 2)
        others = [other for other in names(Images) if other not in ("small_cnn", "cnn2")]
        expected = f"takes images of 4x4 and more; networks for these are {', '.join(others)}"
        assert str(refusal.value).endswith(expected)
    else:
        assert build(name, form, 2).eval()(torch.zeros(2, *shape)).shape == (2, 2)


def test_small_images_among_the_modalities_are_refused():
    form = Modalities({"picture": Images((1, 2, 2)), "sound": Signals((1, 8))})
    with pytest.raises(NetworkError, match=r"takes images of 4x4 and more$"):
        build("two_branch", form, 2)


def test_a_network_too_deep_for_the_images_is_refused_with_name_size_and_cause():
    with pytest.raises(NetworkError, match=r"'torchvision:vgg11' for images of 3x8x8 and 4 outputs: .*too small"):
        build("torchvision:vgg11", Images((3, 8, 8)), 4)


# torchvision's classifiers


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "densenet121"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_classifiers_serve_grey_and_colour(name, channels):
    net = build(f"torchvision:{name}", Images((channels, 32, 32)), 5)
    assert isinstance(net, Classifier)
    assert net(images(channels, 32, 32)).shape == (2, 5)
    net.eval()
    assert net.features(images(channels, 32, 32)).shape == (2, net.head.in_features)


def test_a_torchvision_classifier_in_two_parts_is_the_same_function():
    with torch_seeded(1):
        whole = torchvision().models.resnet18(num_classes=5).eval()
    with torch_seeded(1):
        parts = build("torchvision:resnet18", Images((3, 32, 32)), 5).eval()
    assert torch.equal(parts(images(3, 32, 32)), whole(images(3, 32, 32)))


def test_the_first_convolution_for_grey_images_is_as_large_as_the_one_it_replaces():
    with torch_seeded(1):
        colour = build("torchvision:resnet18", Images((3, 32, 32)), 5).body.conv1.weight
        grey = build("torchvision:resnet18", Images((1, 32, 32)), 5).body.conv1.weight
    assert grey.shape == (64, 1, 7, 7)
    assert float((grey.std() / colour.std()).detach()) == pytest.approx(1, abs=0.05)


def test_a_network_with_auxiliary_heads_gives_plain_logits_while_it_trains():
    net = build("torchvision:googlenet", Images((1, 32, 32)), 5)
    assert net.train()(images(1, 32, 32)).shape == (2, 5)


def test_an_unknown_torchvision_name_is_told_its_nearest():
    with pytest.raises(NetworkError, match=r"nearest: .*mobilenet_v2"):
        build("torchvision:mobilenet2", Images((3, 32, 32)), 10)


def test_a_torchvision_classifier_without_a_last_linear_layer_is_taken_as_it_is():
    net = build("torchvision:squeezenet1_1", Images((3, 64, 64)), 10)
    assert type(net) is torchvision().models.SqueezeNet
    with pytest.raises(NetworkError, match="has no head"):
        require_head(net)


def test_narrower_versions_exist_of_our_own_networks_only():
    with pytest.raises(NetworkError, match="narrower versions exist of mlp, small_cnn"):
        build("torchvision:resnet18", Images((3, 32, 32)), 10, width=0.5)


# A user's function


class Named(nn.Module):
    """A network that says nothing of bodies and heads."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.inside = nn.Linear(pixels, 4)
        self.out = nn.Linear(4, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.out(self.inside(pixels.flatten(1)).relu())


def plain(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Named(shape[0] * shape[1] * shape[2], classes)


def classifier(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Classifier(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def ending_in_softmax(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(plain(shape, classes), nn.LogSoftmax(dim=1))


def linear_in_the_middle(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes), nn.ReLU(), nn.BatchNorm1d(classes))


def seven_logits(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return plain(shape, 7)


def classifier_of_seven(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return classifier(shape, 7)


def without_bias(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=False))


def no_module(shape: tuple[int, int, int], classes: int) -> str:
    return "a network"


def without_arguments() -> nn.Module:
    return nn.Flatten()


def failing(shape: tuple[int, int, int], classes: int) -> nn.Module:
    raise OSError("the disk is elsewhere")


def tuple_maker(shape: tuple[int, int, int], classes: int) -> nn.Module:
    class Pair(Named):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits = super().forward(pixels)
            return logits, logits  # type: ignore[return-value]

    return Pair(64, classes)


def two_outputs_in_training(shape: tuple[int, int, int], classes: int) -> nn.Module:
    class Auxiliary(Named):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits = super().forward(pixels)
            return (logits, logits) if self.training else logits  # type: ignore[return-value]

    return Auxiliary(64, classes)


def failing_in_training(shape: tuple[int, int, int], classes: int) -> nn.Module:
    class Strict(Named):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ZeroDivisionError("no batch")
            return super().forward(pixels)

    return Strict(64, classes)


def all_frozen(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return plain(shape, classes).requires_grad_(False)


def with_extra_state(shape: tuple[int, int, int], classes: int) -> nn.Module:
    class Scaled(nn.Linear):
        def get_extra_state(self) -> dict[str, float]:
            return {"scale": 1.0}

        def set_extra_state(self, state: dict[str, float]) -> None:
            pass

    net = Named(64, classes)
    net.inside = Scaled(64, 4)
    return net


def noisy(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Draws numbers, and changes buffers of both kinds, while it trains."""
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, classes), nn.LogSoftmax(1))


not_callable = 3


def test_a_module_that_ends_in_a_linear_layer_becomes_a_classifier_of_the_same_function():
    with torch_seeded(2):
        whole = plain((1, 8, 8), 3)
    with torch_seeded(2):
        parts = build(f"{__name__}:plain", Images((1, 8, 8)), 3)
    assert isinstance(parts, Classifier)
    assert parts.head.in_features == 4
    assert torch.equal(parts(images(1, 8, 8)), whole(images(1, 8, 8)))


def test_a_classifier_from_a_user_s_function_is_taken_as_it_is():
    net = build(f"{__name__}:classifier", Images((1, 8, 8)), 3)
    assert isinstance(net.body, nn.Flatten)


@pytest.mark.parametrize("function", ["ending_in_softmax", "linear_in_the_middle", "without_bias"])
def test_a_network_that_does_not_end_in_a_linear_layer_is_taken_as_it_is(function):
    with torch_seeded(2):
        whole = globals()[function]((1, 8, 8), 3)
    with torch_seeded(2):
        net = build(f"{__name__}:{function}", Images((1, 8, 8)), 3)
    assert list(net.state_dict()) == list(whole.state_dict())
    assert torch.equal(net.eval()(images(1, 8, 8)), whole.eval()(images(1, 8, 8)))
    with pytest.raises(NetworkError, match=r"has no head: its last operation is not an nn\.Linear with a bias"):
        require_head(net)


def test_trying_a_network_out_leaves_its_buffers_and_the_generator_alone():
    with torch_seeded(2):
        whole, drawn = noisy((1, 8, 8), 3).state_dict(), torch.rand(1)
    with torch_seeded(2):
        net = build(f"{__name__}:noisy", Images((1, 8, 8)), 3)
        assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(value, whole[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("seven_logits", r"outputs of shape \(2, 7\); needed is \(2, 3\)"),
        ("classifier_of_seven", r"outputs of shape \(2, 7\); needed is \(2, 3\)"),
        ("no_module", "returned a str; needed is a torch.nn.Module"),
        ("without_arguments", "unexpected keyword argument 'shape'"),
        ("failing", "OSError: the disk is elsewhere"),
        ("tuple_maker", "gives a tuple in train mode, where a tensor is needed"),
        ("two_outputs_in_training", "gives a tuple in train mode, where a tensor is needed"),
        ("failing_in_training", "cannot be trained: ZeroDivisionError: no batch"),
        ("all_frozen", "all of it is frozen"),
        ("with_extra_state", "keeps a dict in its state, inside._extra_state; only tensors"),
        ("not_callable", "'int' object is not callable"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_a_user_s_function_that_gives_no_fitting_network_is_told_what_is_needed(function, message):
    with pytest.raises(NetworkError, match=f"{__name__}:{function}.*{message}"):
        build(f"{__name__}:{function}", Images((1, 8, 8)), 3)


def test_the_traceback_of_a_user_s_function_travels_as_the_cause():
    with pytest.raises(NetworkError) as refusal:
        build(f"{__name__}:failing", Images((1, 8, 8)), 3)
    assert isinstance(refusal.value.__cause__, OSError)


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(NetworkError, match="No module named 'nowhere'"):
        build("nowhere.nets:function", Images((1, 8, 8)), 3)


# The import of torchvision


def python(code: str, *folders: Path) -> str:
    """The output of a fresh interpreter, with these folders before all others on its path."""
    path = os.pathsep.join(map(str, [*folders, ROOT]))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pretend_torchvision(folder: Path, code: str) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import operators\n")
    (package / "operators.py").write_text(code)
    return folder


IMPORT = """
import torch
from algorithms.nets.vision import torchvision
assert torchvision() is torchvision()
print(hasattr(torch.ops.torchvision, "nms"))
"""


def test_torchvision_imports_in_a_fresh_process_and_its_parts_work():
    code = """
from algorithms.nets.vision import torchvision
vision = torchvision()
import torchvision as same
from torchvision.transforms import v2
print(vision is same, vision.datasets.MNIST.__name__, v2.Resize.__name__, vision.models.resnet18.__name__)
"""
    assert python(code) == "True MNIST Resize resnet18"


def test_nothing_is_declared_where_a_plain_import_works(tmp_path):
    assert python(IMPORT, pretend_torchvision(tmp_path, "")) == "False"


def test_operators_are_declared_where_their_absence_stops_the_import(tmp_path):
    code = "import torch\ntorch.library.register_fake('torchvision::nms')(lambda boxes, scores, threshold: scores)\n"
    assert python(IMPORT, pretend_torchvision(tmp_path, code)) == "True"


def test_another_failure_of_the_import_is_not_hidden(tmp_path):
    code = """
import torch
from algorithms.nets.vision import torchvision
try:
    torchvision()
except RuntimeError as error:
    print(error, hasattr(torch.ops.torchvision, "nms"))
"""
    assert python(code, pretend_torchvision(tmp_path, "raise RuntimeError('no disk')\n")) == "no disk False"


def test_building_our_own_networks_does_not_import_torchvision():
    code = """
import sys
from algorithms.nets import Images, build
build("mlp", Images((1, 8, 8)), 3)
print("torchvision" in sys.modules)
"""
    assert python(code) == "False"
