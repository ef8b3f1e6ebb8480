"""Strict reading of YAML: every mapping says which keys it knows, every value its type, every problem its line."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from services.common.duration_text import DURATION_FORM, parse_duration

_TAG: Final = "tag:yaml.org,2002:"
_T = TypeVar("_T")
Value = float | int | str | bool


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong at a place of a file; lines count from 1."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class Problems:
    """Gathers what is wrong with a file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.found: list[Problem] = []

    def add(self, node: yaml.Node, text: str) -> None:
        """Note what is wrong at a node."""
        self.found.append(Problem(self._file, line_of(node), text))


class Section:
    """One mapping of a file. `known` are the keys that it may have; others and repeated ones are problems."""

    def __init__(self, node: yaml.Node, problems: Problems, what: str, known: Sequence[str] = ()) -> None:
        self.node = node
        self.what = what
        self._problems = problems
        self.entries: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            problems.add(node, f"want {what} as keys with values, got {_describe(node)}")
            return
        for key, value in node.value:
            self._take(key, value, known)

    def _take(self, key: yaml.Node, value: yaml.Node, known: Sequence[str]) -> None:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name in self.entries:
            self._problems.add(key, f"want each key once in {self.what}, got {name!r} again")
        elif known and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            self._problems.add(key, f"{self.what} has no key {name!r}; {hint}")
        else:
            self.entries[name] = value

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def problem(self, key: str, text: str) -> None:
        """Note what is wrong with a key's value, or with the section when the key is not there."""
        self._problems.add(self.entries.get(key, self.node), f"{key}: {text}")

    def text(self, key: str, *, required: bool = False) -> str:
        """Return a text, empty when it is not there."""
        return self._read(key, "a text", _text, "", required=required)

    def choice(self, key: str, words: Sequence[str], *, required: bool = False) -> str:
        """Return one of the words, empty when it is not there or another one."""
        if required and key not in self.entries:
            self.problem(key, f"want {_either(words)}, got nothing")
        found = self.text(key)
        if found and found not in words:
            near = difflib.get_close_matches(found, words, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.problem(key, f"want {_either(words)}, got {found!r}{hint}")
            return ""
        return found

    def duration(self, key: str) -> timedelta | None:
        """Return a duration, None when it is not there."""
        return self._read(key, DURATION_FORM, lambda node: parse_duration(str(node.value)), None)

    def whole(self, key: str) -> int:
        """Return a whole number, 0 when it is not there."""
        return self._read(key, "a whole number", lambda node: _scalar_of(node, int), 0)

    def truth(self, key: str) -> bool:
        """Return a truth value, false when it is not there."""
        return self._read(key, "true or false", lambda node: _scalar_of(node, bool), default=False)

    def value(self, key: str) -> Value | list[Value] | None:
        """Return a number, text, truth value or list of them, None when it is not there or null."""
        node = self.entries.get(key)
        if node is None or node.tag == f"{_TAG}null":
            return None
        if isinstance(node, yaml.SequenceNode):
            elements = [found for each in node.value if (found := _value(each)) is not None]
            if len(elements) == len(node.value):
                return elements
        found = _value(node)
        if found is None:
            self.problem(key, f"want a number, text, truth value or list of them, got {_describe(node)}")
        return found

    def texts(self, key: str) -> list[str]:
        """Return a list of texts, empty when it is not there."""
        node = self.entries.get(key)
        if node is None:
            return []
        elements = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found = [text for each in elements if (text := _text(each)) is not None]
        if len(found) < len(elements) or not isinstance(node, yaml.SequenceNode):
            self.problem(key, f"want a list of texts such as [carrier, plane], got {_describe(node)}")
        return found

    def section(self, key: str, what: str, known: Sequence[str] = ()) -> "Section | None":
        """Return a mapping inside, None when it is not there; without `known` its keys are names of the user's."""
        node = self.entries.get(key)
        return None if node is None else Section(node, self._problems, what, known)

    def inner(self, what: str, known: Sequence[str]) -> "Iterator[tuple[str, Section]]":
        """Yield the mappings of a section whose keys are names of the user's."""
        for name, node in self.entries.items():
            yield name, Section(node, self._problems, f"{what} {name!r}", known)

    def _read(
        self, key: str, want: str, parse: Callable[[yaml.Node], _T | None], default: _T, *, required: bool = False
    ) -> _T:
        node = self.entries.get(key)
        if node is None:
            if required:
                self.problem(key, f"want {want}, got nothing")
            return default
        found = parse(node) if isinstance(node, yaml.ScalarNode) else None
        if found is None:
            # A text such as 12 or no is something else without quotes.
            quote = "; put quotes around it" if parse is _text and isinstance(node, yaml.ScalarNode) else ""
            self.problem(key, f"want {want}, got {_describe(node)}{quote}")
            return default
        return found


def documents(path: Path, problems: Problems) -> list[yaml.Node]:
    """Return the documents of a file, without empty ones; what is no YAML is a problem."""
    try:
        with path.open(encoding="utf-8") as file:
            return [node for node in yaml.compose_all(file, yaml.SafeLoader) if node.tag != f"{_TAG}null"]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.found.append(Problem(str(path), line, f"want YAML: {error.problem or error}"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.found.append(Problem(str(path), 1, f"want YAML in UTF-8: {error}"))
    return []


def line_of(node: yaml.Node) -> int:
    """Return the line of a node, from 1."""
    line: int = node.start_mark.line
    return line + 1


def _text(node: yaml.Node) -> str | None:
    return str(node.value) if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str" else None


def _scalar_of(node: yaml.Node, kind: type[_T]) -> _T | None:
    found = _value(node)
    return found if type(found) is kind else None


def _value(node: yaml.Node) -> Value | None:
    if not isinstance(node, yaml.ScalarNode):
        return None
    found: Any = yaml.SafeLoader("").construct_object(node)
    return found if isinstance(found, float | int | str | bool) else None


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys with values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if node.tag == f"{_TAG}null":
        return "nothing"
    return str(node.value)


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
