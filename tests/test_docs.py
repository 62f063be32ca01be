"""What the documentation takes from the program is what the program says now."""

import difflib
import re

import pytest

from docs import make, references

PAGES = {path.name: path.read_text() for path in make.pages()}
PHASES = "mosaic-mnist-phases.md"
STALE = f"the documentation is stale; run {make.MAKE} and look at what it changes"


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if list(make.blocks_of(text))])
def test_shown_output_is_what_the_commands_print_now(page):
    for shown, block in make.current_blocks(PAGES[page]):
        if not shown.agrees_with(block):
            changes = difflib.unified_diff(shown.text.splitlines(), block.splitlines(), "shown", "printed", lineterm="")
            pytest.fail(f"{page}, {shown.command}: {STALE}\n" + "\n".join(changes), pytrace=False)


@pytest.mark.parametrize("path", make.reference_files(), ids=lambda path: path.name)
def test_references_are_those_of_the_code(path):
    if path.read_text() != make.reference_files()[path]:
        pytest.fail(f"{path.name}: {STALE}", pytrace=False)


@pytest.mark.parametrize("page", PAGES)
def test_every_output_is_marked_so_that_it_can_be_compared(page):
    """A console block either shows commands alone, or is marked; and every mark is understood."""
    loose = [
        block
        for block in re.findall(r"(?<! -->\n)^```console\n(.*?)^```$", PAGES[page], flags=re.DOTALL | re.MULTILINE)
        if any(not line.startswith("$ ") for line in block.splitlines())
    ]
    assert loose == []
    assert len(re.findall(r"^<!-- (?:output|table)", PAGES[page], flags=re.MULTILINE)) == len(
        list(make.blocks_of(PAGES[page]))
    )


def console(*lines, options=""):
    return make.ShownBlock("tessera x", options, "\n".join(["```console", "$ tessera x", *lines, "```"]))


def test_lines_are_kept_by_number_and_gaps_are_shown():
    shown = console(options=", lines 1-2 4 6-")
    assert shown.block("a\nb\nc\nd\ne\nf\ng\n").splitlines()[2:-1] == ["a", "b", "    ...", "d", "    ...", "f", "g"]
    assert console(options=", lines 2").block("a\nb\nc\n").splitlines()[2:-1] == ["    ...", "b", "    ..."]


def test_clock_and_free_memory_may_differ_and_nothing_else():
    shown = console("    0:15  round 1", "free on this machine: 3.1 GB", "loss 0.5")
    assert shown.agrees_with(console("    1:02  round 1", "free on this machine: 900.0 MB", "loss 0.5").text)
    assert not shown.agrees_with(console("    0:15  round 1", "free on this machine: 3.1 GB", "loss 0.6").text)


def test_where_figures_vary_words_still_count():
    shown = console("accuracy  9.8 %  digest fff7bc98e0083599", options=", figures vary")
    assert shown.agrees_with(console("accuracy 10.2 %  digest 0123456789abcdef").text)
    assert not shown.agrees_with(console("precision 9.8 %  digest fff7bc98e0083599").text)


def test_only_blocks_that_differ_are_rewritten():
    page = "# A\n\n<!-- output -->\n```console\n$ tessera run nothing\nold\n```\n\nThe end.\n"
    fresh = make.rewritten(page)
    assert "nothing: neither a preset nor a file" in fresh
    assert fresh.startswith("# A\n")
    assert fresh.endswith("\nThe end.\n")
    assert make.rewritten(fresh) == fresh


def test_blocks_that_look_alike_are_told_apart_by_their_place():
    page = "".join(f"<!-- table: benchmarks/results/{name} -->\n| old |\n\n" for name in ("memory.md", PHASES))
    memory, phases = (make.ROOT / "benchmarks/results" / name for name in ("memory.md", PHASES))
    heads = [next(line for line in path.read_text().splitlines() if line.startswith("|")) for path in (memory, phases)]
    assert [line for line in make.rewritten(page).splitlines() if line in heads] == heads


def test_files_of_a_page_lie_beside_its_commands(tmp_path):
    named, nameless = "```yaml\n# mine.yaml\nrounds: 1\n```\n", "```yaml\nrounds: 2\n```\n"
    make.write_files(f"{named}\n{nameless}\n<!-- file: a.csv -->\n```csv\nx,y\n1,2\n```\n", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "# mine.yaml\nrounds: 1\n"
    assert (tmp_path / "a.csv").read_text() == "x,y\n1,2\n"


def test_every_key_and_every_setting_is_in_the_references():
    from actors.steps.orders import find_method, method_names
    from engine.config.schema import RunConfig

    page = references.configuration()
    for place, section in references.sections(RunConfig):
        part = page.split(f"\n## {place}\n")[1].split("\n## ")[0]
        assert all(f"| `{key}` |" in part for key in section.model_fields), place
    page = references.methods()
    for name in method_names():
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert all(f"| `{key}` |" in part for key in find_method(name).Config.__dataclass_fields__), name


def test_ranges_defaults_and_choices_are_in_words():
    page = references.configuration()
    assert "| `momentum` | number | `0.0` | at least 0, below 1 |" in page
    assert "| `clip` | number, null | `null` | above 0 |" in page
    assert "| `kind` | `inline`, `ray` | `inline` |" in page
