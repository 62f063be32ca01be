"""States as trees: a frozen dataclass of tensors, numbers and containers to named tensors plus JSON, and back.

What a method's State may hold: tensors, int, float, bool, str, None, dict (keys all str or all int), list, tuple, and
frozen dataclasses of these. Every field needs an annotation from which its value can be rebuilt. No two values get one
path, whatever the keys are: in a path a key's "~" is written "~0" and its "/" "~1"; in the tree a first "$" is doubled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_TENSOR = "$tensor"


def flatten(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a value into tensors by path (`model/conv.weight`) and a JSON tree that names them.

    Raises:
        TypeError: for a value that cannot be saved, naming its path.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(value, (), tensors)


def _flatten(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[_path_text(path)] = value
        return {_TENSOR: _path_text(path)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _flatten(getattr(value, f.name), (*path, f.name), tensors) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        _refuse_keys(value, path)
        return {_escape(str(k)): _flatten(v, (*path, str(k)), tensors) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_flatten(v, (*path, str(i)), tensors) for i, v in enumerate(value)]
    raise TypeError(f"{_path_text(path)}: a {type(value).__name__} cannot be saved")


def _path_text(path: tuple[str, ...]) -> str:
    return "/".join(name.replace("~", "~0").replace("/", "~1") for name in path)


def _refuse_keys(value: Mapping[Any, Any], path: tuple[str, ...]) -> None:
    kinds = sorted({type(key).__name__ for key in value})
    if kinds not in ([], ["int"], ["str"]):
        raise TypeError(
            f"{_path_text(path)}: keys of type {' and '.join(kinds)} cannot be saved, only all str or all int"
        )


def _escape(key: str) -> str:
    return f"${key}" if key.startswith("$") else key


def _unescape(key: str) -> str:
    return key.removeprefix("$")


def rebuild(annotation: Any, tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten` for a value of the annotated type."""
    if isinstance(tree, dict) and _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if tree is None:
        return None
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return typing.cast(Any, annotation)(
            **{name: rebuild(hints[name], part, tensors) for name, part in tree.items()}
        )
    return _rebuild_container(annotation, tree, tensors)


def _rebuild_container(annotation: Any, tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return rebuild(_member(args, tree), tree, tensors)
    if isinstance(tree, dict):
        key, item = args if args else (str, Any)
        return {(int(k) if key is int else _unescape(k)): rebuild(item, v, tensors) for k, v in tree.items()}
    if isinstance(tree, list):
        if origin is tuple:
            items: Sequence[Any] = [args[0]] * len(tree) if args[-1] is Ellipsis else args
            return tuple(rebuild(a, v, tensors) for a, v in zip(items, tree, strict=True))
        return [rebuild(args[0] if args else Any, v, tensors) for v in tree]
    return tree


def _member(members: Sequence[Any], tree: Any) -> Any:
    """The member of a union that a tree is of: the only one besides None, or the dataclass with the tree's fields."""
    inner = [member for member in members if member is not type(None)]
    if len(inner) > 1:
        inner = [m for m in inner if dataclasses.is_dataclass(m) and {f.name for f in dataclasses.fields(m)} == {*tree}]
    (found,) = inner
    return found


def digest(value: Any) -> str:
    """SHA-256 over a state: the JSON tree, then each tensor's path, dtype, shape and bytes in sorted order.

    Two runs with one digest are the same run.
    """
    tensors, tree = flatten(value)
    total = hashlib.sha256(json.dumps(tree, sort_keys=True).encode())
    for chunk in _chunks(tensors):
        total.update(chunk)
    return total.hexdigest()


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    for path in sorted(tensors):
        tensor = tensors[path].detach().cpu().contiguous()
        yield f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode()
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
