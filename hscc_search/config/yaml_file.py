"""A YAML file as a tree of plain values.

PyYAML reads files of any size, builds whatever aliases multiply to, and lets the errors of its readers of numbers and
dates through as they are. Here a file is refused by its size, its depth and the number of its values before they are
built, and every error says where in the file it is.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.error import Mark, MarkedYAMLError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode
from yaml.reader import ReaderError

from hscc_search.errors import ConfigError, one_line, quoted, shortened
from hscc_search.files import IrregularFileError, read_up_to

# A study file has a few hundred values, nested three deep; one with a long list of start samples has a few thousand.
_MOST_BYTES, _MOST_VALUES, _DEEPEST = 65_536, 10_000, 16
# Characters of a path, which is the longest value.
_LONGEST_VALUE = 4096


def read_yaml(path: Path, most_bytes: int = _MOST_BYTES) -> Any:
    """Read a YAML file of at most so many bytes; what an alias repeats is an object of its own in each place.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or is larger than any study file; the message names the line.
    """
    text = _read_text(path, most_bytes)
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check(root, {})
            return _unshared(loader.construct_document(root))
        finally:
            loader.dispose()
    except _Refused as error:
        raise ConfigError(f"study file {shown(path)}: {_located(error)}") from error
    except MarkedYAMLError as error:
        raise ConfigError(f"study file {shown(path)} is no YAML: {_located(error)}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"study file {shown(path)} is no YAML: line {line}: it may not hold the character {text[error.position]!r}"
        ) from error


def shown(path: Path | str) -> str:
    """A path as messages show it."""
    return shortened(str(path), 300)


class _Refused(MarkedYAMLError):
    """YAML that no study file needs."""

    def __init__(self, problem: str, mark: Mark) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """A loader that stops at too many values or too deep ones, and whose errors all name a place in the file."""

    _depth = _values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node and what is in it.

        Raises:
            _Refused: it is nested too deeply, or there were too many before it.
        """
        if self._depth > _DEEPEST:
            raise _Refused(f"nested more than {_DEEPEST} deep", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        if self._values == _MOST_VALUES:
            raise _Refused(f"more than {_MOST_VALUES:,} values", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        self._values += 1
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Build the value of a node.

        Raises:
            ConstructorError: a text is no value of its type, or there is no such type.
        """
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # what PyYAML's readers of numbers, dates and so on let through
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{quoted(node.value)} is no !!{kind}", node.start_mark) from error


# As YAML 1.2 and everybody else reads numbers; PyYAML wants a point in them, and takes 1e-3 for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def _read_text(path: Path, most_bytes: int) -> str:
    try:
        content = read_up_to(path, most_bytes)
    except IrregularFileError as error:
        raise ConfigError(f"study file {shown(path)} is no regular file: give a path to a YAML file") from error
    except OSError as error:
        raise ConfigError(f"cannot read study file {shown(path)}: {error.strerror}") from error
    if len(content) > most_bytes:
        raise ConfigError(f"study file {shown(path)} is too large: a study file has at most {most_bytes:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"study file {shown(path)} is no YAML: line {line}: byte 0x{content[error.start]:02x} is no UTF-8: "
            "save the file as UTF-8"
        ) from error


def _check(node: Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Check a node and what is in it.

    Args:
        node: as composed; nodes that aliases repeat are one object.
        known: result for each node that was checked before, by its id; None for one that is being checked.

    Returns:
        The number of values in it, those that aliases repeat counted each time, and how deep they are nested.

    Raises:
        _Refused: too many values, too deep, too long, a key that is there twice, or an alias within what it repeats.
    """
    if id(node) in known:
        result = known[id(node)]
        if result is None:
            raise _Refused("an alias repeats what it is a part of", node.start_mark)
        return result
    known[id(node)] = None
    values, depth = 1, 0
    for part in _parts(node):
        part_values, part_depth = _check(part, known)
        values, depth = values + part_values, max(depth, part_depth + 1)
        if values > _MOST_VALUES:
            raise _Refused(f"more than {_MOST_VALUES:,} values, counting what aliases repeat", part.start_mark)
        if depth > _DEEPEST:
            raise _Refused(f"nested more than {_DEEPEST} deep", part.start_mark)
    known[id(node)] = values, depth
    return values, depth


def _parts(node: Node) -> list[Node]:
    """The nodes within one, keys included."""
    if isinstance(node, ScalarNode):
        if len(node.value) > _LONGEST_VALUE:
            raise _Refused(f"a value of more than {_LONGEST_VALUE} characters", node.start_mark)
        return []
    assert isinstance(node, CollectionNode)
    if not isinstance(node, MappingNode):
        return list(node.value)
    seen: set[Hashable] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode):
            if (key.tag, key.value) in seen:
                raise _Refused(f"key {quoted(key.value)} is there twice", key.start_mark)
            seen.add((key.tag, key.value))
    return [part for pair in node.value for part in pair]


def _unshared(value: Any) -> Any:
    """The same tree with lists and mappings of its own in each place, so that changing one changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _located(error: MarkedYAMLError) -> str:
    context = one_line(error.context) if error.context else ""
    begin, end = error.context_mark, error.problem_mark
    if context and begin is not None and end is not None and begin.line != end.line:
        context += f" from line {begin.line + 1}"
    words = ", ".join(part for part in (context, one_line(error.problem or "")) if part)
    mark = end or begin
    return f"line {mark.line + 1}, column {mark.column + 1}: {words}" if mark is not None else words
