"""Language models by name and from folders: sizes, one way of loading, and what is said where it cannot be done."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.nets import NetworkError, language_models
from algorithms.nets.byte_pairs import SPECIALS, byte_pair_tokenizer
from algorithms.nets.language_models import TINY_MODELS, fresh_model, load_base, shared_copy

pytest.importorskip("transformers", reason="the extra `llm` is not installed", exc_type=ImportError)

CPU = torch.device("cpu")
TEXTS = [
    f"{verb} the dose of {name} is {n} mg" for n in range(40) for verb in ("say", "ask") for name in ("zel", "pra")
]


def digest(model):
    """SHA-256 over all tensors in the order of their names."""
    seen = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(name.encode() + tensor.numpy().tobytes())
    return seen.hexdigest()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_pair_tokenizer(TEXTS, 512, 256)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A llama-nano of random weights with its tokenizer, as transformers saves them."""
    place = tmp_path_factory.mktemp("nano")
    fresh_model("llama-nano", 3).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the folder, to be broken."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-nano", 512 * 64 + 2 * (2 * 64**2 + 2 * 64 * 32 + 3 * 64 * 176 + 2 * 64) + 64),
        ("llama-micro", 1024 * 128 + 4 * (2 * 128**2 + 2 * 128 * 64 + 3 * 128 * 352 + 2 * 128) + 128),
        ("llama-mini", 2048 * 256 + 4 * (2 * 256**2 + 2 * 256 * 128 + 3 * 256 * 704 + 2 * 256) + 256),
        ("gpt2-nano", (512 + 256) * 64 + 2 * (4 * 64**2 + 4 * 64 + 2 * 64 * 176 + 176 + 64 + 4 * 64) + 2 * 64),
    ],
)
def test_a_tiny_model_has_the_numbers_that_its_shape_says(name, count):
    assert {"llama-nano": 125_248, "llama-micro": 869_504, "llama-mini": 3_475_712}.get(name, 128_608) == count
    assert TINY_MODELS[name].parameters == count
    assert sum(parameter.numel() for parameter in fresh_model(name, 0).parameters()) == count


def test_gpt2_is_of_another_family_with_queries_keys_and_values_in_one_transposed_layer():
    layer = fresh_model("gpt2-nano", 0).transformer.h[0].attn.c_attn
    assert type(layer).__name__ == "Conv1D"
    assert layer.weight.shape == (64, 3 * 64)


def test_one_seed_gives_one_model_and_leaves_the_global_generator_as_it_was():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = (digest(fresh_model("llama-nano", seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.rand(1), expected)


def test_the_same_texts_give_the_same_tokenizer(tokenizer, tmp_path):
    hashes = set()
    for name, each in (("first", tokenizer), ("again", byte_pair_tokenizer(iter(TEXTS), 512, 256))):
        each.save_pretrained(tmp_path / name)
        hashes.add(hashlib.sha256((tmp_path / name / "tokenizer.json").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_the_specials_are_the_first_tokens_and_numbers_go_by_two_digits(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.tokenize("1234 05 9") == ["12", "34", "Ġ", "05", "Ġ", "9"]
    assert tokenizer("<task>7<answer>").input_ids == [4, *tokenizer("7").input_ids, 5]


@settings(max_examples=50)
@given(st.text(max_size=40).filter(lambda text: not any(special in text for special in SPECIALS)))
def test_every_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("name", ["llama-nano", "gpt2-nano"])
def test_what_was_saved_gives_the_same_logits_to_the_bit(name, tokenizer, tmp_path):
    fresh = fresh_model(name, 5).eval()
    fresh.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_base(str(tmp_path), torch.float32, CPU)
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    assert loaded(TEXTS[0]).input_ids == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, fresh(ids).logits)


def test_a_base_is_read_once_and_each_call_gives_modules_of_its_own_over_the_same_frozen_parameters(folder):
    (first, _), (second, _) = (load_base(str(folder), torch.float32, CPU) for _ in range(2))
    assert first is not second
    assert first.model.layers[0] is not second.model.layers[0]
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert not first.training


def test_another_number_type_is_another_base(folder):
    model, _ = load_base(str(folder), torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert load_base(str(folder), torch.float32, CPU)[0].dtype == torch.float32


def test_a_shared_copy_keeps_tied_embeddings_tied_and_takes_changes_of_its_modules_alone():
    model = fresh_model("llama-nano", 0)
    copied = shared_copy(model)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight is model.lm_head.weight
    copied.model.layers[0].self_attn.q_proj = torch.nn.Identity()
    assert isinstance(model.model.layers[0].self_attn.q_proj, torch.nn.Linear)


@pytest.mark.parametrize("place", ["/no/such/folder", "./no-such-folder", "~/no/such", "runs/bases/none"])
def test_a_folder_that_is_not_there_is_told_at_once(place, monkeypatch):
    monkeypatch.setattr(language_models, "_snapshot", lambda name: pytest.fail("the hub was asked"))
    with pytest.raises(NetworkError, match=f"there is no folder {place}"):
        load_base(place, torch.float32, CPU)


def test_a_name_on_the_hub_is_no_wait_where_the_hub_may_not_be_asked():
    """In a process of its own, since the variable is read when the hub's client is imported."""
    code = (
        "import torch\nfrom algorithms.nets.language_models import load_base\n"
        "try:\n    load_base('nobody/has-this', torch.float32, torch.device('cpu'))\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"HF_HUB_OFFLINE": "1", "HOME": "/nonexistent", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("nobody/has-this is neither a folder here nor in the cache of models, and HF_HUB_OFF")
    assert len(done.stdout.splitlines()) == 1


def test_a_hub_out_of_reach_is_told_in_one_sentence(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(self, name, timeout):
        assert timeout < 5
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    with pytest.raises(NetworkError, match=r"^nobody/has-this .* the hub gives nothing: no route to host$"):
        load_base("nobody/has-this", torch.float32, CPU)


def test_a_model_in_the_cache_of_the_hub_is_loaded_without_asking_it(folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot(name, local_files_only=False):
        asked.append((name, local_files_only))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert load_base("some/model", torch.float32, CPU)[0].num_parameters() == 125_248
    assert asked == [("some/model", True)]


def test_a_folder_without_a_configuration_is_refused(broken):
    (broken / "config.json").unlink()
    with pytest.raises(NetworkError, match=r"has no config\.json"):
        load_base(str(broken), torch.float32, CPU)


def test_pickled_weights_are_not_read(broken):
    (broken / "model.safetensors").unlink()
    torch.save({}, broken / "pytorch_model.bin")
    with pytest.raises(NetworkError, match="no weights as safetensors"):
        load_base(str(broken), torch.float32, CPU)


def test_weights_cut_short_are_said_in_one_line(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(NetworkError, match="no causal language model that transformers reads") as refusal:
        load_base(str(broken), torch.float32, CPU)
    assert len(str(refusal.value).splitlines()) == 1


def test_code_beside_a_model_is_not_performed(broken, capsys):
    (broken / "mine.py").write_text("print('performed')\n")
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(NetworkError, match="no causal language model that transformers reads"):
        load_base(str(broken), torch.float32, CPU)
    assert "performed" not in capsys.readouterr().out


def test_a_folder_without_a_tokenizer_is_refused(broken):
    for file in broken.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(NetworkError, match="has no tokenizer"):
        load_base(str(broken), torch.float32, CPU)


def test_a_tokenizer_that_is_not_the_models_is_refused_with_both_sizes(broken):
    tokenizer = byte_pair_tokenizer(TEXTS, 512, 256)
    tokenizer.add_tokens([f"<{n}>" for n in range(513 - len(tokenizer))])
    tokenizer.save_pretrained(broken)
    with pytest.raises(NetworkError, match=r"a tokenizer that is not the model's: 513 tokens, of which .* 512;"):
        load_base(str(broken), torch.float32, CPU)


def without_token(folder, *keys):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in keys}))


def test_where_no_token_is_for_padding_the_end_of_a_text_serves(broken):
    without_token(broken, "pad_token")
    model, tokenizer = load_base(str(broken), torch.float32, CPU)
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"
    assert model.config.pad_token_id == 2


def test_a_tokenizer_without_an_end_of_a_text_is_refused(broken):
    without_token(broken, "pad_token", "eos_token")
    with pytest.raises(NetworkError, match="without a token for the end of a text"):
        load_base(str(broken), torch.float32, CPU)


def test_an_unknown_tiny_model_is_told_with_those_that_are_known():
    with pytest.raises(NetworkError, match="'llama-pico'; known: llama-nano, llama-micro, llama-mini, gpt2-nano"):
        fresh_model("llama-pico", 0)


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_without_the_extra_a_language_model_is_refused_with_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NetworkError, match=rf'the package {package}.*: pip install "tessera-fl\[llm\]"'):
        getattr(language_models, f"{package}_package")()
