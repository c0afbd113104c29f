"""Read pickles as plain data: nothing is imported, called or built.

A pickle is a program that names functions and calls them. Here, it only makes dictionaries, lists,
numbers and texts; a call is kept as a `Call`, for the caller to judge.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

#: Steps of a pickle that are run; 10,000 tensors take half a million.
MOST_STEPS = 2_000_000
#: Longest name, and largest number, that is a dictionary's key. A file may use one many times.
_LONGEST_NAME, _LARGEST_NUMBER = 1 << 12, 1 << 64
_DICTS = frozenset(
    (module, name)
    for module, names in {
        "collections": ("OrderedDict", "defaultdict", "Counter"),
        "builtins": ("dict",),
        "__builtin__": ("dict",),
    }.items()
    for name in names
)


class Global(NamedTuple):
    """A function or class that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Call(NamedTuple):
    """A function that a pickle would call, or a class that it would make an instance of."""

    function: Any
    arguments: Any


class Reference(NamedTuple):
    """A persistent id: what lies outside the pickle, such as a tensor's values."""

    key: Any


class ForbiddenGlobalError(ValueError):
    """A pickle names a function that the caller does not accept; `args[0]` is the `Global`."""


def read_pickle(data: BytesIO, accepts: Callable[[Global], bool]) -> Any:
    """Return what a pickle holds, and leave `data` behind its end.

    Dictionaries keep only keys that are texts or whole numbers of usual length; sets become lists.
    State that would be set on objects is dropped.

    Args:
        data: The pickle, of any protocol, and anything after it.
        accepts: Whether the pickle may name this function or class. It is not called in any case.

    Raises:
        ForbiddenGlobalError: It names another.
        ValueError: It is damaged or too long.
        LookupError: It is damaged.
    """
    machine = _Machine(accepts)
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if steps > MOST_STEPS:
            raise ValueError("the pickle is too long")
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """The stack machine of pickles; see `pickletools` for its operations."""

    def __init__(self, accepts: Callable[[Global], bool]) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks that MARK put aside
        self._memo: dict[int, Any] = {}
        self._accepts = accepts
        self._copied = 0  # items of dictionaries made of lists

    def step(self, name: str, argument: Any) -> None:
        if (operation := _OPERATIONS.get(name)) is not None:
            operation(self)
        elif name in _MEMO_READS:
            self.stack.append(self._memo[int(argument)])
        elif name in _MEMO_WRITES:
            self._memo[len(self._memo) if argument is None else int(argument)] = self.stack[-1]
        elif name in ("GLOBAL", "INST"):
            module, _, attribute = argument.partition(" ")
            self.push_name(module, attribute)
            if name == "INST":
                self.call_marked(self.stack.pop())
        elif name == "PERSID":
            self.stack.append(Reference(argument))
        elif argument is not None and name not in ("PROTO", "FRAME"):
            if name.startswith("EXT"):
                raise ValueError("the pickle names functions by number")
            self.stack.append(argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"{name} is not known")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_name(self, module: Any, attribute: Any) -> None:
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise ValueError("the name of a function is no text")
        named = Global(module, attribute)
        if named not in _DICTS and not self._accepts(named):
            raise ForbiddenGlobalError(named)
        self.stack.append(named)

    def stack_global(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, attribute)

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def make_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise ValueError("a tuple lacks items")
        self.stack[-count:] = [items]

    def call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Global) and function in _DICTS:
            # Python 2 gave an ordered dictionary its items as a list of lists.
            first = arguments[0] if isinstance(arguments, tuple) and arguments else ()
            self.stack.append({})
            if isinstance(first, list):
                # One list may make any number of dictionaries.
                self._copied += len(first)
                if self._copied > MOST_STEPS:
                    raise ValueError("the pickle is too long")
                self.set_items(item for key, value in first for item in (key, value))
            return
        self.stack.append(Call(function, arguments))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def new_with_keywords(self) -> None:
        del self.stack[-1:]
        self.reduce()

    def call_marked(self, function: Any) -> None:
        self.call(function, tuple(self.marked()))

    def make_object(self) -> None:
        function, *arguments = self.marked()
        self.call(function, tuple(arguments))

    def build(self) -> None:
        self.stack.pop()
        self.stack[-1]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def set_items(self, items: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            each = iter(items)
            pairs = zip(each, each, strict=True)
            target.update((k, v) for k, v in pairs if _is_key(k))

    def make_dict(self) -> None:
        items = self.marked()
        self.stack.append({})
        self.set_items(items)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()


def _is_key(value: Any) -> bool:
    """Return whether a value may be a key; nested tuples or large numbers can hash for hours."""
    if isinstance(value, str):
        return len(value) <= _LONGEST_NAME
    return isinstance(value, int) and -_LARGEST_NUMBER < value < _LARGEST_NUMBER


_MEMO_READS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})


def _push(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make())


_OPERATIONS: dict[str, Callable[[_Machine], Any]] = {
    "MARK": lambda m: m.mark(),
    "POP": lambda m: m.pop(),
    "POP_MARK": lambda m: m.marked(),
    "DUP": lambda m: m.stack.append(m.stack[-1]),
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_LIST": _push(list),
    "EMPTY_SET": _push(list),
    "EMPTY_DICT": _push(dict),
    "TUPLE": lambda m: m.push(tuple(m.marked())),
    "TUPLE1": lambda m: m.make_tuple(1),
    "TUPLE2": lambda m: m.make_tuple(2),
    "TUPLE3": lambda m: m.make_tuple(3),
    "LIST": lambda m: m.push(m.marked()),
    "FROZENSET": lambda m: m.push(m.marked()),
    "DICT": lambda m: m.make_dict(),
    "APPEND": lambda m: m.append([m.stack.pop()]),
    "APPENDS": lambda m: m.append(m.marked()),
    "ADDITEMS": lambda m: m.append(m.marked()),
    "SETITEM": lambda m: m.set_item(),
    "SETITEMS": lambda m: m.set_items(m.marked()),
    "STACK_GLOBAL": lambda m: m.stack_global(),
    "REDUCE": lambda m: m.reduce(),
    "NEWOBJ": lambda m: m.reduce(),
    "NEWOBJ_EX": lambda m: m.new_with_keywords(),
    "OBJ": lambda m: m.make_object(),
    "BUILD": lambda m: m.build(),
    "BINPERSID": lambda m: m.stack.append(Reference(m.stack.pop())),
}
