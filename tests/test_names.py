"""Names of functions and classes: a noun for a value, a verb for an effect, never a bare participle. Docstrings begin
with what a thing is or does, not with a question or a bare genitive."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROOMS = ("algorithms", "actors", "clusters", "engine", "benchmarks", "docs")

IRREGULAR = {
    *("begun", "bound", "broken", "brought", "built", "chosen", "dealt", "done", "drawn", "driven", "fed", "felt"),
    *("found", "frozen", "given", "gone", "grown", "heard", "held", "hidden", "kept", "known", "laid", "lain", "led"),
    *("left", "lent", "lost", "made", "meant", "met", "paid", "said", "sent", "seen", "shown", "sold", "spent"),
    *("spoken", "stood", "taken", "taught", "thrown", "told", "understood", "won", "worn", "written"),
}
"""Read, run, put, cut, set, split and spread are imperatives as well."""

NOT_PARTICIPLES = ("embed", "feed", "need", "proceed", "seed", "shed", "speed")

VALUES = {
    *("allowed", "balanced", "bound", "dropped", "enabled", "encoded", "expected", "failed", "finished", "fitted"),
    *(
        "done",
        "frozen",
        "generated",
        "hidden",
        "known",
        "labelled",
        "left",
        "lost",
        "mixed",
        "moved",
        "packed",
        "padded",
    ),
    *("planned", "ragged", "received", "released", "shared", "started", "stored", "unlabelled", "held_out", "left_out"),
    *(
        "evaluated",
        "kept",
        "loaded",
        "mapped",
        "served",
        "changed",
        "found",
        "chosen",
        "owned",
        "needed",
        "replaced",
        "augmented",
        "handed",
        "tested",
        "given",
    ),
}
"""Adjectives that stand for a value where its class or function says of what: `expected` bytes, `hidden` units, clients
`done`, what a client `received`."""

SPOKEN = {"begun", "felt", "gone", "heard", "lain", "meant", "met", "said", "spoken", "taken", "taught", "told"}
"""Participles that no local variable is either; others are: `scaled = scale * x`."""

EVENTS = ("started", "finished", "failed", "replaced")
"""Events that observers hear of, as methods of theirs."""


def is_bare_participle(name: str) -> bool:
    """Whether a name is a participle alone, or one with a preposition: `settled`, `kept_by`, but not `seen_counts`."""
    word = re.sub(r"_(to|from|by|on|at|in|with|of|up|out|as)$", "", name.strip("_"))
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower()
    last = word.removeprefix("fine_")
    return last in IRREGULAR or (last.endswith("ed") and "_" not in last and last not in NOT_PARTICIPLES)


def names(source: str) -> Iterator[tuple[int, str]]:
    """Functions and classes by line, but for observers' events."""
    tree = ast.parse(source)
    methods = {m for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for m in c.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            is_event = node in methods and node.name in EVENTS and not getattr(node, "decorator_list", [])
            if not is_event:
                yield node.lineno, node.name


def value_names(source: str) -> Iterator[tuple[int, str]]:
    """Parameters, fields and attributes by line, and of local variables those of `SPOKEN`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ClassDef):
            yield from (
                (field.lineno, field.target.id)
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            )
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.strip("_") in SPOKEN:
            yield node.lineno, node.id


@pytest.mark.parametrize(
    ("name", "is_bare"),
    [
        ("settled", True),
        ("_taken", True),
        ("fine_tuned", True),
        ("logged_to", True),
        ("Saved", True),
        ("seed", False),
        ("read", False),
        ("seen_counts", False),
        ("StackedLoop", False),
        ("resolve_outcome", False),
    ],
)
def test_a_bare_participle_is_told_from_other_words(name, is_bare):
    assert is_bare_participle(name) == is_bare


def test_no_function_or_class_is_named_by_a_bare_participle():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, name in names(path.read_text(encoding="utf-8"))
        if is_bare_participle(name)
    ]
    assert not found, "\n".join(found)


def test_parameters_fields_attributes_and_spoken_locals_are_found():
    source = "class A:\n    kept: int\n    def f(self, told, *, asked=1):\n        self._sent, said, scaled = 1, 2, 3\n"
    assert sorted(value_names(source)) == [
        (2, "kept"),
        (3, "asked"),
        (3, "self"),
        (3, "told"),
        (4, "_sent"),
        (4, "said"),
    ]


def test_no_value_that_others_see_is_named_by_a_bare_participle():
    found = sorted(
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for line, name in value_names(path.read_text(encoding="utf-8"))
        if is_bare_participle(name) and name.strip("_") not in VALUES
    )
    assert not found, "\n".join(found)


OPENERS = re.compile(r"(What|Which|Who|Whose|How|Where|When|Why|That|Of)\b")


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings by line: of modules, classes and functions, and those below a value."""
    for node in ast.walk(ast.parse(source)):
        for statement in getattr(node, "body", None) or () if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def test_docstrings_are_found_wherever_they_stand():
    source = '"""One."""\nA = 1\n"""Two."""\ndef f():\n    """Three."""\nclass B:\n    c: int = 1\n    """Four."""\n'
    assert sorted(docstrings(source)) == [(1, "One."), (3, "Two."), (5, "Three."), (8, "Four.")]


def test_no_docstring_begins_with_a_question():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, text in docstrings(path.read_text(encoding="utf-8"))
        if OPENERS.match(text)
    ]
    assert not found, "\n".join(found)
