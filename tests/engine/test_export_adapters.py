"""Language models in the formats of peft and transformers, and models that do not stand on the same frozen one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from algorithms.core.contract import ClientSpec
from algorithms.nets.language_models import base_checksum, peft_package, transformers_package
from engine.commands.cli import cli
from engine.data.questions import Reading
from engine.errors import ConfigError
from engine.models.exporting import ExportError, export, own_state
from engine.models.loading import LoadedModel, load
from engine.planning.weights import starting_weights
from engine.store.folder import FolderError, RunFolder
from engine.store.models import write_description, write_tensors
from tests.algorithms.support_language import base, prepared
from tests.engine.test_export import model_of as model_of_another_task

transformers, peft = transformers_package(), peft_package()

IDS = torch.tensor([[1, 4, 77, 300, 8, 5, 9], [1, 4, 200, 13, 7, 5, 2]])


def adapted(name: str = "llama-nano", width: float = 1.0, **task) -> LoadedModel:
    """A language model with random adapters, as `load` gives one."""
    learnt = prepared(net=base(name), **task).task
    net = learnt.network(base(name), width)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return LoadedModel(net.eval(), learnt, base(name), width, None, Reading({}, {}, None), {})


def frozen(name: str):
    return transformers.AutoModelForCausalLM.from_pretrained(base(name).removeprefix("hf:"), dtype=torch.float32)


@pytest.mark.parametrize(("name", "width"), [("llama-nano", 1.0), ("gpt2-nano", 1.0), ("llama-nano", 0.5)])
def test_peft_loads_the_adapters_and_gives_the_same_logits(name, width, tmp_path):
    model = adapted(name, width)
    export(model, "peft", tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = peft.PeftModel.from_pretrained(frozen(name), tmp_path / "adapter").eval()
    with torch.no_grad():
        found = loaded(input_ids=IDS).logits
    torch.testing.assert_close(found, model(IDS), atol=1e-6, rtol=0)
    assert (found - frozen(name).eval()(input_ids=IDS).logits).abs().max() > 0.01
    facts = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == base(name).removeprefix("hf:")
    assert facts["lora_alpha"] / facts["r"] == 2


@pytest.mark.parametrize("name", ["llama-nano", "gpt2-nano"])
def test_transformers_loads_the_merged_model_with_its_tokenizer_and_gives_the_same_logits(name, tmp_path):
    model = adapted(name)
    before = {key: value.clone() for key, value in model.net.base.state_dict().items()}
    export(model, "merged", tmp_path / "merged")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, model(IDS), atol=1e-5, rtol=0)
    assert tokenizer("It is 7.")["input_ids"] == model.net.tokenizer("It is 7.")["input_ids"]
    assert all(torch.equal(value, before[key]) for key, value in model.net.base.state_dict().items())


def test_adapters_are_written_as_tensors_by_their_own_names():
    model = adapted()
    assert own_state(model).keys() == model.net.state_dict().keys()


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_a_model_without_adapters_is_refused_in_a_sentence_and_leaves_nothing(kind, tmp_path):
    model = model_of_another_task("images")
    with pytest.raises(
        ExportError, match=rf"{model.network} is no language model with adapters, which peft and merged"
    ):
        export(model, kind, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_a_folder(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ExportError, match="is there already"):
        export(adapted(), "peft", tmp_path / "model")


# --- Folders of runs --------------------------------------------------------------------------------------------------


def written(folder, model: LoadedModel, **changes) -> RunFolder:
    """The model as a run's folder holds it."""
    from engine.models.description import task_values

    files = RunFolder(folder)
    folder.mkdir()
    foundation = model.task.foundation(model.network)
    entry = write_tensors(files, model.net.state_dict(), None, model.network, model.width, foundation)
    task = {"name": "instructions", "title": model.task.title, "values": task_values(model.task)}
    facts = {"task": task, "columns": {"instruction": "text"}, "roles": {}, "size": None}
    write_description(files, [dataclasses.replace(entry, **changes)], facts)
    return files


def test_a_run_of_adapters_is_exported_from_its_folder_by_the_command(tmp_path):
    model = adapted()
    written(tmp_path / "run", model)
    out = tmp_path / "adapter"
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "run"), "--to", "peft", "--out", str(out)])
    assert done.exit_code == 0, done.output
    loaded = peft.PeftModel.from_pretrained(frozen("llama-nano"), out).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, model(IDS), atol=1e-6, rtol=0)


def test_adapters_are_not_put_on_another_model_that_has_come_into_the_place_of_theirs(tmp_path):
    written(tmp_path / "run", adapted(), foundation="0" * 64)
    with pytest.raises(FolderError, match=r"hf:/\S+ names is another model now than the one .* adapters were trained"):
        load(tmp_path / "run")


def test_adapters_are_what_a_run_starts_from_on_the_same_frozen_model_alone(tmp_path):
    model = adapted()
    written(tmp_path / "run", model)
    found = starting_weights(str(tmp_path / "run"), [ClientSpec(0, model.network)], model.task)[model.network]
    assert found.keys() == model.net.state_dict().keys()
    assert all(torch.equal(value, model.net.state_dict()[name]) for name, value in found.items())
    other = base("llama-nano", 4)
    assert prepared(net=other).task.network(other).state_dict().keys() == model.net.state_dict().keys()
    with pytest.raises(ConfigError) as refusal:
        starting_weights(str(tmp_path / "run"), [ClientSpec(0, other)], model.task)
    assert f"was trained on {model.network}, another frozen model than the clients' {other}" in str(refusal.value)


def test_a_model_is_told_by_its_numbers_and_not_by_its_place(tmp_path):
    here = base().removeprefix("hf:")
    frozen("llama-nano").save_pretrained(tmp_path / "copy")
    transformers.AutoTokenizer.from_pretrained(here).save_pretrained(tmp_path / "copy")
    assert base_checksum(str(tmp_path / "copy")) == base_checksum(here)
    assert base_checksum(base("llama-nano", 4).removeprefix("hf:")) != base_checksum(here)


# --- Answers to instructions that nobody has answered -----------------------------------------------------------------


def test_predict_gives_a_whole_answer_to_each_instruction_as_transformers_writes_it(tmp_path):
    model = adapted()
    written(tmp_path / "run", model)
    asked = ["What is 3 plus 4?", "Say red 2 times 5, and then something longer.", "Say blue."]
    (tmp_path / "asked.txt").write_text("\n".join(asked))
    done = CliRunner().invoke(cli, ["predict", str(tmp_path / "run"), str(tmp_path / "asked.txt"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    tokenizer = model.net.tokenizer
    for text, row in zip(asked, found, strict=True):
        prompt = model.task.prompt_of(tokenizer, text)
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < model.task.context and (ids[-1] != tokenizer.eos_token_id or len(ids) == len(prompt)):
                ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        is_finished = ids[-1] == tokenizer.eos_token_id
        assert row["answer"] == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        assert row["finished"] == is_finished
        assert len(ids) - len(prompt) > 1


def test_an_instruction_as_long_as_the_context_is_refused_with_its_row(tmp_path):
    written(tmp_path / "run", adapted())
    (tmp_path / "asked.txt").write_text("short\n" + "long " * 60)
    done = CliRunner().invoke(cli, ["predict", str(tmp_path / "run"), str(tmp_path / "asked.txt")])
    assert done.exit_code == 2
    assert "48 are read" in done.output
    assert "Traceback" not in done.output
