"""From a preset's name or a file to a plain tree of settings; nothing is checked here but the YAML itself."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from engine.errors import MISSING, ConfigError, Problem, nearest, one_line

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_FLOAT_TAG, _DATE_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


def _resolvers(dates: bool) -> dict[Any, list[tuple[str, Any]]]:
    """PyYAML's rules for plain words, with 1e-3 read as the number that YAML 1.2 takes it for."""
    kept: dict[Any, list[tuple[str, Any]]] = {
        first: [(tag, regexp) for tag, regexp in rules if tag != _FLOAT_TAG and (dates or tag != _DATE_TAG)]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    rule = (_FLOAT_TAG, re.compile(f"^(?:{_FLOAT.pattern})$"))
    return {first: [*rules, rule] if first in "-+.0123456789" else rules for first, rules in kept.items()}


class _Loader(yaml.SafeLoader):
    """Safe, and remembers every key that stands twice in one mapping."""

    yaml_implicit_resolvers = _resolvers(dates=False)

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.repeats: list[tuple[str, Any]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    self.repeats.append((key.value, key.start_mark))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would otherwise read as a number."""

    yaml_implicit_resolvers = _resolvers(dates=True)


def dump(tree: Any) -> str:
    """YAML that `parse` reads back as the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: bytes | str, place: str) -> Any:
    """A YAML document as mappings, lists, text, numbers, booleans and null.

    Raises:
        ConfigError: naming the line and column of what is no YAML, and of every key that stands twice.
    """
    loader = None
    try:
        loader = _Loader(text)
        tree = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError([_syntax_problem(error, place)]) from None
    finally:
        if loader is not None:
            loader.dispose()
    if loader.repeats:
        raise ConfigError(
            [
                Problem(f"{place}, {_position(mark)}", MISSING, f"the key {key} stands twice in one mapping; keep one")
                for key, mark in loader.repeats
            ]
        )
    return _plain(tree, place)


def _position(mark: Any) -> str:
    return f"line {mark.line + 1} column {mark.column + 1}"


def _syntax_problem(error: Exception, place: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"{place}, {_position(mark)}" if mark else place
    words = [getattr(error, "context", None), getattr(error, "problem", None)]
    return Problem(where, MISSING, "not YAML: " + (", ".join(word for word in words if word) or str(error)))


def _plain(tree: Any, place: str) -> Any:
    """The tree as JSON would give it back."""
    try:
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        reason = f"may hold text, numbers, true, false, null, lists and mappings only ({error})"
        raise ConfigError([Problem(place, MISSING, reason)]) from None


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return _names("presets")


def preset_text(name: str) -> str:
    """A preset as it was written, comments included."""
    return _text("presets", name)


def comparison_names() -> list[str]:
    """Names of all comparisons that come with Tessera, sorted. Each is a configuration with `methods` in the place of
    `method`; or it names another as `base`, and holds what differs from it."""
    return _names("comparisons")


def comparison_text(name: str) -> str:
    """A comparison as it was written, comments included."""
    return _text("comparisons", name)


def _names(folder: str) -> list[str]:
    entries = (resources.files("engine") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def _text(folder: str, name: str) -> str:
    return (resources.files("engine") / folder / f"{name}.yaml").read_text(encoding="utf-8")


def read(preset_or_file: str) -> dict[str, Any]:
    """The tree of a preset, or of a file; a bare name is a preset's before it is a file's.

    Raises:
        ConfigError: neither exists, or it is no YAML mapping.
    """
    known = preset_or_file in preset_names()
    tree = parse(preset_text(preset_or_file) if known else _file(preset_or_file), preset_or_file)
    if not isinstance(tree, dict):
        raise ConfigError([Problem(preset_or_file, tree, "must hold a mapping with the sections of a configuration")])
    return tree


def _file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except FileNotFoundError:
        hint = nearest(name, preset_names())
        reason = f"neither a preset nor a file; {hint}presets are {', '.join(preset_names())}"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise ConfigError([Problem(name, MISSING, reason)])


def override(tree: dict[str, Any], overrides: Sequence[str], dotted_keys: Collection[str] = ()) -> dict[str, Any]:
    """The tree with `a.b=c` put in, in the order given; each value is read as YAML.

    Args:
        dotted_keys: keys that have dots of their own.

    Raises:
        ConfigError: all overrides that are not of this form.
    """
    tree = json.loads(json.dumps(tree))
    problems: list[Problem] = []
    for text in overrides:
        try:
            _put(tree, text, dotted_keys)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return tree


def _put(tree: dict[str, Any], text: str, dotted_keys: Collection[str]) -> None:
    place, equals, value = text.partition("=")
    *path, last = _keys(place, dotted_keys)
    if not equals or not all([*path, last]):
        raise ConfigError([Problem(f"--set {text}", MISSING, "must be of the form section.key=value")])
    parsed = parse(value, f"--set {text}")
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError([Problem(f"--set {text}", MISSING, f"{name} = {one_line(tree)} has no keys below it")])
    tree[last] = parsed


def _keys(place: str, dotted_keys: Collection[str]) -> list[str]:
    """The keys of a place, in which those of `dotted_keys` are one each."""
    for name in sorted(dotted_keys, key=len, reverse=True):
        before, found, after = place.partition(f".{name}.")
        if found:
            return [*before.split("."), name, *after.split(".")]
    return place.split(".")
