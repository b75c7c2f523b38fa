"""A YAML file of a user's, read safely: data with the line of every key, and everything that is wrong in it at once.

Reads text, numbers, true, false, null, lists and mappings; bounded in size before its aliases are written out. Knows nothing
of what the files mean.
"""

import re
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from mask_impact.errors import InputError, shown, told
from mask_impact.results.inputs import MIB, TooLarge, read_file

MAX_BYTES = 10 * MIB  # of a YAML file


MAX_NODES = 100_000  # keys and values of a YAML file, what its aliases stand for written out


MAX_DEPTH = 50


class ConfigError(InputError):
    """Everything that is wrong in a configuration file: problems are lines "FILE:LINE: what is wrong; what is accepted"."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = [told(problem) for problem in problems]
        super().__init__("; ".join(self.problems))


class YamlFile:
    """A YAML file as data (mappings with keys of text, lists, scalars), what is wrong in it, and which line is what.

    content: what its mapping has; smaller: what to do about a file that is too large. Both are for messages.
    """

    def __init__(
        self, path: str, content: str = "model and prompts", smaller: str = "many prompts fit into a dataset"
    ) -> None:
        self.path, self._smaller = path, smaller
        text = self._read()
        try:
            loader = _Loader(text)
            self.root = loader.get_single_node()
            if self.root is None:
                self._refuse(1, f"the file is empty; a mapping with {content} is accepted")
            if not isinstance(self.root, yaml.MappingNode):
                self._refuse(self.root.start_mark.line + 1, f"no mapping; one with {content} is accepted")
            self.data = loader.value_of(self.root)
        except yaml.reader.ReaderError as error:
            problem = f"the character U+{error.character:04X} can't stand in YAML; leave it out"
            self._refuse(text.count("\n", 0, error.position) + 1, problem)
        except yaml.MarkedYAMLError as error:
            far = re.search("end of stream|<stream end>|could not find expected", error.problem)  # from where it began
            mark = (far and error.context_mark) or error.problem_mark
            plain = next(re.sub(*words, error.problem) for words in _PLAIN if re.match(words[0], error.problem))
            self._refuse(mark.line + 1, f"column {mark.column + 1}: {plain}")
        except (ValueError, OverflowError):  # PyYAML lets these through, from "\\UFFFFFFFF" for one
            self._refuse(
                loader.line + 1, f"column {loader.column + 1}: a code that stands for no character; leave it out"
            )
        self.problems = loader.problems  # (line, what is wrong in it)

    def _read(self) -> str:
        try:
            data = read_file(self.path, MAX_BYTES)
            return data.decode()  # PyYAML leaves out a byte order mark
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} of the file (0x{data[error.start]:02x})"
            self._refuse(data.count(b"\n", 0, error.start) + 1, f"{byte} is not UTF-8; save the file as UTF-8")
        except TooLarge as error:
            self._refuse(None, f"{error}; {self._smaller}")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            self._refuse(None, f"can't be read: {getattr(error, 'strerror', error)}; give the path of a YAML file")

    def _refuse(self, line: int | None, problem: str) -> NoReturn:
        raise ConfigError([f"{self.path}{'' if line is None else f':{line}'}: {problem}"]) from None

    def line(self, loc: tuple) -> int:
        """Where the key stands, or the element of a list; where it is not there, what it should stand in."""
        node, line = self.root, self.root.start_mark.line
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == part]
                if not found:
                    break
                key, node = found[-1]  # before it stand those that merge keys (<<) brought
                line = key.start_mark.line
            elif isinstance(node, yaml.SequenceNode):
                node = node.value[part]
                line = node.start_mark.line
        return line + 1

    def report(self, loc: tuple, problem: str) -> None:
        """Keeps what is wrong at `loc`, for raise_problems."""
        self.problems.append((self.line(loc), problem))

    def raise_problems(self) -> None:
        """ConfigError with everything that was reported, by line."""
        found = sorted(dict.fromkeys(self.problems), key=itemgetter(0))  # an anchor's are met at each of its aliases
        if found:
            raise ConfigError(f"{self.path}:{line}: {problem}" for line, problem in found)


_TAG = "tag:yaml.org,2002:"


_KINDS = {
    yaml.ScalarNode: ("str", "int", "float", "bool", "null", "merge"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}


# PyYAML's messages in plain words, the first that fits.
_PLAIN = (
    (r"found character '\\t' .*", "a tab, where YAML takes only spaces; indent with spaces"),
    (r"found character (.+) that cannot start.*", r"text can't begin with \1; put it in quotes"),
    ("mapping values are not allowed.*", "a ':' where none can be; check the indentation, put text with ': ' in quotes"),
    ("could not find expected ':'.*", "neither 'key: value' nor part of what is above; check indentation and quotes"),
    ("expected (<block end>|'<document start>').*", "this does not fit what is above; check indentation and quotes"),
    (r"expected ',' or '(.)'.*", r"a comma or the closing \1 is missing; give it"),
    ("found unexpected end of stream.*", "a quote is opened here and never closed; close it"),
    ("found undefined alias (.+)", r"there is no anchor for the alias \1; put text that begins with * in quotes"),
    ("found unknown escape character (.+)", r"a backslash and \1 in double quotes; take single quotes, or two backslashes"),
    ("but found another document", "a second document (---) begins here; one is accepted"),
    ("expected a mapping (or list of mappings )?for merging.*", "<< with something else; it takes mappings"),
    ("second occurrence", "an anchor with a name that is taken; give it another"),
    ("expected chomping or indentation.*", "text can't begin with | or >; put it in quotes"),
    ("(?s).+", r"\g<0>; check indentation and quotes"),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Reads nothing but text, numbers, true, false, null, lists and mappings, and knows their size before it writes them out.

    Numbers are decimal: 010, 0x10, 1:30 and dates are text, where YAML 1.1 would make 8, 16, 90 and dates of them.
    """

    def __init__(self, text: str) -> None:
        self.problems: list[tuple[int, str]] = []
        self._extents: dict[yaml.Node, tuple[int, int]] = {}  # of complete nodes: nodes, written out, and levels in it
        self._n_nodes = self._level = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self._n_nodes += 1
        self._level += 1
        self._limit(self._n_nodes, self._level, mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if not is_alias:
            self._extents[node] = self._checked(node)
        elif node not in self._extents:
            raise ComposerError(None, None, "an alias inside of what it stands for; it would have no end", mark)
        self._limit(*self._extents[node], mark)
        return node

    def _limit(self, n_nodes: int, level: int, mark: yaml.Mark) -> None:
        if n_nodes > MAX_NODES:
            problem = f"more than {MAX_NODES:,} keys and values, with its aliases written out; use fewer"
            raise ComposerError(None, None, problem, mark)
        if level > MAX_DEPTH:
            raise ComposerError(None, None, f"more than {MAX_DEPTH} levels in each other; use fewer", mark)

    def _checked(self, node: yaml.Node) -> tuple[int, int]:
        line, tag = node.start_mark.line + 1, node.tag.removeprefix(_TAG)
        if tag not in _KINDS[type(node)]:
            written = tag if tag.startswith("!") else f"!!{tag}"
            self.problems.append((line, f"the tag {shown(written)} is not accepted; leave tags out"))
            node.tag = self.resolve(type(node), "", (False, True))  # goes on as text, list or mapping
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
            firsts: dict[str, int] = {}
            for key in parts[::2]:
                if not isinstance(key, yaml.ScalarNode):
                    raise ComposerError(None, None, "a list or a mapping as a key; keys are text", key.start_mark)
                line = key.start_mark.line + 1
                if key.value in firsts:
                    problem = f"the key {shown(key.value)} is given twice, first in line {firsts[key.value]}; keep one"
                    self.problems.append((line, problem))
                firsts.setdefault(key.value, line)
        extents = [self._extents[part] for part in parts]
        return 1 + sum(n for n, _ in extents), 1 + max((levels for _, levels in extents), default=0)

    def value_of(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)  # merge keys
            return {key.value: self.value_of(value) for key, value in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(part) for part in node.value]
        try:
            return self.construct_object(node)
        except (ValueError, LookupError):  # !!int abc, or digits without end
            problem = f"{shown(node.value)} can't be read as its tag or its digits say; give a plain value"
            raise ConstructorError(None, None, problem, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.removeprefix(_TAG) not in ("int", "timestamp", "value")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z"), list("-+0123456789"))
_Loader.add_constructor(f"{_TAG}merge", yaml.SafeLoader.construct_yaml_str)  # as a value it is text
