"""Content hashes of any Python value: code, objects, programs, models, data; the same in every process.

A value is read structurally, part by part, and each part has a name that a person can look for: the code of a
function, a default, a closure's variable, a global that the code reads, an attribute of an object, an option of a
model. No address, no `repr` and no shortened text is ever part of a hash. Code of libraries is known by its name and
version (`origins`). What has no content that could be read (a lock, a socket) is named instead. Source: ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copyreg
import dataclasses
import enum
import functools
import hashlib
import inspect
import logging
import re
import struct
import sys
import threading
import types
import typing
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any

import dspy
import pydantic
from pydantic.fields import FieldInfo

from cuesmith.teleprompters.runtime.origins import globals_of, imported, imports_of, named, names_of, version_of


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a value consists of.

    Attributes:
        digests: Name of a part, such as "metric: closure `least` of close" -> its content hash, 16 hex digits.
        unread: Where something is that has no readable content, each with its type.
        classes: The user's classes that it has instances of.
    """

    digests: Mapping[str, str]
    unread: tuple[str, ...] = ()
    classes: tuple[type, ...] = ()


def parts(prefix: str, value: object, *, covered: Mapping[int, str] = types.MappingProxyType({})) -> Parts:
    """Return the named parts of a value, with all code that it reaches.

    Args:
        prefix: What the value is, such as "metric"; every part's name begins with it.
        value: Anything.
        covered: id of a predictor -> its name, where its instructions and demonstrations are recorded elsewhere.
    """
    reader = _Reader(prefix, covered, with_code=True)
    reader.read(value)
    return Parts(reader.digests, tuple(reader.unread), tuple(reader.classes))


def data_parts(prefix: str, value: object) -> Parts:
    """Return the named parts of data; of its classes the names only."""
    reader = _Reader(prefix, {}, with_code=False)
    reader.read(value)
    return Parts(reader.digests, tuple(reader.unread), tuple(reader.classes))


def fingerprint(value: object) -> str:
    """Return the content hash of data, 16 hex digits: equal for equal content, whatever the process and the copy."""
    return _whole(_Reader("", {}, with_code=False), value)


_KEY = re.compile(r"(?i)(api|access|secret|private)_?-?key|passw(or)?d$|authorization$|credentials?$")
_MODEL_KEY = re.compile(r"(?i)key$|token$|secret$|passw(or)?d$|authorization$|credentials?$")
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_LOOKUPS = {"globals", "eval", "exec", "__import__"}
_SEARCHES = {"__subclasses__", "import_module", "environ", "getenv"}
"""Names by which code reaches what it does not name."""

_TRANSPORT = ("timeout", "num_retries", "max_retries", "cache")
"""Options of a model that say how it is reached, not what it answers."""

_MODULE_LOGS = {"history", "callbacks", "_compiled"}
_PREDICT_LOGS = {"stage", "traces", "train"}
"""Attributes of dspy's modules that are a log or a random name, or are read otherwise (here and below)."""
_LM_BASE = {"history", "callbacks", "cache", "num_retries", "kwargs", "model", "model_type",
            "_warned_zero_temp_rollout"}  # fmt: skip
_LM_PLUMBING = {"provider", "launch_kwargs", "train_kwargs", "finetuning_model", "_engine_spec", "_async_engine_spec",
                "_providers", "_engine_store", "_engine_lock"}  # fmt: skip
_PLACES = {"__name__", "__file__", "__spec__", "__loader__", "__builtins__", "__package__", "__path__", "__cached__",
           "__doc__", "__annotations__"}  # fmt: skip
"""Globals that say where a module is, not what it does."""
_CLASS_DATA = {"__annotations__", "__doc__", "__slots__", "__dataclass_fields__", "__private_attributes__"}
"""Data with two underscores in a class that is the user's own."""
_CODE = (types.FunctionType, classmethod, staticmethod, property)
_FLAGS = 0xFFFF
"""Flags of code that say what it does; those above only tell the compiler's `__future__`."""
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_BY_NAME = (*_SLOTS, types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType)
_CONTAINERS = (dict, list, tuple, set, frozenset, str, int, float, complex, bytes, bytearray)
_AT_WORK = (asyncio.AbstractEventLoop, asyncio.Future, futures.Executor, futures.Future, threading.Thread)
"""What works for a program while it runs, and is no part of its content."""
_WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


_LEAVES: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    int: lambda v: b"i%x;" % v if v >= 0 else b"i-%x;" % -v,
    bool: lambda v: b"T" if v else b"F",
    float: lambda v: b"f" + struct.pack(">d", v),
    complex: lambda v: b"c" + struct.pack(">dd", v.real, v.imag),
    bytes: lambda v: b"b%d:%b" % (len(v), v),
    type(None): lambda v: b"N",
    type(Ellipsis): lambda v: b"E",
    type(NotImplemented): lambda v: b"I",
}


def _joined(tag: bytes, pieces: Iterable[bytes]) -> bytes:
    found = hashlib.blake2b(tag + b"(", digest_size=16)
    for piece in pieces:
        found.update(b"%d," % len(piece))
        found.update(piece)
    return b"#" + found.digest()


def _hex(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _short(qualname: str) -> str:
    return qualname.rpartition("<locals>.")[2]


def _of(name: str) -> str:
    return f" of {name}" if name else ""


class _Reader:
    """Reads one value. Functions, classes, objects and models are nodes: each is read once, and has parts.

    A node is referred to by its name, so that a change deep inside changes the part it is in, and no other.
    """

    def __init__(
        self, prefix: str, covered: Mapping[int, str], *, with_code: bool, ranked: frozenset[int] = frozenset()
    ) -> None:
        self.digests: dict[str, str] = {}
        self.unread: dict[str, None] = {}
        self.classes: dict[type, None] = {}
        self._prefix, self._covered, self._with_code = prefix, covered, with_code
        self._nodes: dict[object, tuple[object, bytes]] = {}
        self._names: Counter[str] = Counter()
        self._order: list[tuple[object, str]] = []
        self._waiting: deque[tuple[object, Callable[[], None]]] = deque()
        self._open: dict[int, int] = {}
        self._done: dict[int, tuple[object, bytes]] = {}
        self._kept_by_none: dict[int, tuple[object, bytes]] = {}
        self._loops = 0
        self._ranked = ranked
        self._here = ""

    def read(self, value: object) -> None:
        """Read the value and all nodes that it leads to."""
        self._part("", value)
        while self._waiting:
            value, visit = self._waiting.popleft()
            try:
                visit()
            except Exception as error:  # whatever a user's object raises when it is looked at
                self._unreadable(value, because=type(error).__name__)

    # -- parts and nodes

    def _part(self, name: str, *values: object) -> None:
        here = f"{self._prefix}: {name}" if name and self._prefix else name or self._prefix
        self._here = here.encode("utf-8", "replace").decode()
        self._open.clear()
        try:
            found = [self._encoded(value) for value in values]
        except Exception as error:
            found = [b"?"]
            self._unreadable(values[0], because=type(error).__name__)
        self.digests[self._here] = _hex(_joined(b"part", found))

    def _unreadable(self, value: object, because: str = "") -> None:
        kind = type(value)
        self.unread[f"{self._here} ({kind.__module__}.{kind.__qualname__}{because and ', ' + because})"] = None

    def _node(self, value: object, label: str, visit: Callable[[Any, str], None], key: object = None) -> bytes:
        key = id(value) if key is None else key
        known = self._nodes.get(key)
        if known is None:
            self._names[label] += 1
            self._order.append((key, label))
            name = label if self._names[label] == 1 else f"{label} ({self._names[label]})"
            known = self._nodes[key] = (value, b"@" + _text(name))
            self._waiting.append((value, functools.partial(visit, value, name)))
        return known[1]

    def _attributes(self, values: Mapping[str, object], name: str, leave_out: Iterable[str] = ()) -> None:
        for attribute in sorted(set(values) - set(leave_out), key=str):
            value = values[attribute]
            hidden = isinstance(value, str) and _KEY.search(str(attribute))
            self._part(f"attribute `{attribute}`{_of(name)}", "a key" if hidden else value)

    # -- values

    def _encoded(self, value: object) -> bytes:
        leaf = _LEAVES.get(type(value))
        if leaf is not None:
            return leaf(value)
        known = self._nodes.get(id(value)) or self._done.get(id(value))
        if known is not None and known[0] is value:
            return known[1]
        node = self._as_node(value)
        if node is not None:
            return node
        if id(value) in self._open:
            self._loops += 1
            return b"^%d" % (len(self._open) - self._open[id(value)])
        self._open[id(value)] = len(self._open)
        loops = self._loops
        found = self._as_data(value)
        self._open.pop(id(value), None)
        if loops == self._loops:
            self._done[id(value)] = (value, found)
        return found

    def _all(self, tag: str, *values: object) -> bytes:
        return _joined(tag.encode(), [self._encoded(value) for value in values])

    def _as_node(self, value: Any) -> bytes | None:
        match value:
            case type():
                return self._class(value)
            case types.FunctionType():
                return self._function(value)
            case _ if type(value).__name__ == "cython_function_or_method":
                return self._all("function", value.__module__, value.__qualname__, version_of(value.__module__))
            case functools.partial():
                made = getattr(value.func, "__name__", type(value.func).__name__)
                return self._node(value, f"partial of {_short(made)}", self._read_partial)
            case dspy.BaseLM():
                here = self._here.removeprefix(f"{self._prefix}: ").removeprefix(self._prefix)
                return self._node(value, here if here.startswith("LM of") else here and f"LM in {here}", self._read_lm)
            case dspy.Module():
                name = self._covered.get(id(value))
                label = type(value).__name__ if name is None else f"predictor `{name}`"
                return self._node(value, label, self._read_module)
            case dspy.Adapter() | dspy.Embedder():
                return self._node(value, type(value).__name__, self._read_object)
            case enum.Enum() | types.ModuleType():
                return None
        if version_of(type(value).__module__) is None and not _is_builtin(type(value)):
            return self._node(value, _short(type(value).__qualname__), self._read_object)
        return None

    def _as_data(self, value: Any) -> bytes:
        match value:
            case list() | tuple() if type(value) in (list, tuple):
                return self._all(type(value).__name__, *value)
            case dict() | types.MappingProxyType() if type(value) in (dict, types.MappingProxyType):
                return self._dict(value)
            case set() | frozenset() if type(value) in (set, frozenset):
                return _joined(type(value).__name__.encode(), self._unordered(value))
            case types.CodeType():
                return self._code(value)
            case types.ModuleType():
                return self._module(value)
            case enum.Enum():
                return self._all("enum", type(value), value._name_, value._value_)
            case logging.Logger():
                return self._all("logger", value.name)
            case contextvars.ContextVar():
                return self._all("variable", value.name)
            case weakref.ref():
                return self._all("weak", value())
            case FieldInfo():
                return self._field(value)
            case pydantic.SecretStr() | pydantic.SecretBytes():
                return self._all("secret", type(value))
        return self._wrapper(value) or self._typing(value) or self._array(value) or self._library_object(value)

    def _dict(self, values: Mapping[Any, object]) -> bytes:
        hidden = [isinstance(k, str) and isinstance(v, str) and bool(_KEY.search(k)) for k, v in values.items()]
        pairs = [(k, "a key" if hide else v) for (k, v), hide in zip(values.items(), hidden, strict=True)]
        return _joined(type(values).__name__.encode(), [self._all("", k, v) for k, v in pairs])

    def _unordered(self, values: Iterable[object]) -> list[bytes]:
        """Encode the members of a set in an order that only their content gives: theirs differs by process."""
        if all(type(v) in _LEAVES for v in values):
            return sorted(map(self._encoded, values))
        return [self._encoded(v) for v in sorted(values, key=self._rank)]

    def _rank(self, value: object) -> str:
        if id(value) in self._ranked:  # it holds the set that it stands in
            return ""
        return _whole(_Reader("", {}, with_code=False, ranked=self._ranked | {id(value)}), value)

    def _wrapper(self, value: Any) -> bytes | None:
        """Encode what stands for other code: methods, properties, decorators of Python's own."""
        match value:
            case types.MethodType():
                return self._all("method", value.__func__, value.__self__)
            case staticmethod() | classmethod():
                return self._all(type(value).__name__, value.__func__)
            case property():
                return self._all("property", value.fget, value.fset, value.fdel)
            case functools.cached_property():
                return self._all("cached", value.func)
            case functools.partialmethod():
                return self._all("partial", value.func, value.args, value.keywords)
            case types.BuiltinFunctionType():
                owner = value.__self__
                if owner is None or isinstance(owner, types.ModuleType):
                    return self._all("builtin", value.__module__, value.__qualname__)
                return self._all("builtin method", owner, value.__name__)
            case types.MethodWrapperType():
                return self._all("builtin method", value.__self__, value.__name__)
            case _ if isinstance(value, _BY_NAME):
                return self._all("builtin", value.__objclass__, value.__name__)
            case functools._lru_cache_wrapper():
                return self._all("cache", value.__wrapped__, value.cache_parameters())
        return None

    def _typing(self, value: Any) -> bytes | None:
        origin = typing.get_origin(value)
        if origin is not None:
            kind = "Union" if origin in (types.UnionType, typing.Union) else origin
            return self._all("type", kind, typing.get_args(value), getattr(value, "__metadata__", ()))
        if isinstance(value, typing.TypeVar):
            return self._all("TypeVar", value.__name__, value.__bound__, value.__constraints__)
        if isinstance(value, typing.NewType):
            return self._all("NewType", value.__name__, value.__supertype__)
        if isinstance(value, typing.ForwardRef):
            return self._all("ForwardRef", value.__forward_arg__)
        if type(value).__module__ == "typing" and isinstance(getattr(value, "_name", None), str):
            return self._all("typing", value._name)
        return None

    def _array(self, value: Any) -> bytes | None:
        """Encode arrays, frames and tensors by their bytes, whatever their layout in memory."""
        kind, home = type(value), type(value).__module__.partition(".")[0]
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            data = value.tolist() if value.dtype.hasobject else value.tobytes()
            return self._all("array", value.dtype, value.shape, data)
        if home == "torch" and hasattr(value, "untyped_storage"):
            flat = value.detach().cpu().contiguous().reshape(-1)
            data = flat.view(named("torch", "uint8")).numpy().tobytes() if flat.numel() else b""
            return self._all("tensor", kind, str(value.dtype), tuple(value.shape), value.requires_grad, data)
        if home == "pandas" and hasattr(value, "iloc"):
            columns = [value.iloc[:, i] for i in range(value.shape[1])] if value.ndim == 2 else [value]
            heads = value.columns if value.ndim == 2 else value.name
            return self._all("frame", kind, heads, value.index, [(c.dtype, _cells(c)) for c in columns], value.attrs)
        if home == "pandas" and hasattr(value, "get_indexer"):
            return self._all("index", kind, list(value.names), value.dtype, _cells(value))
        return None

    def _library_object(self, value: Any) -> bytes:
        """Encode an instance of a library's class by what pickle would keep of it.

        One that pickle could not keep (a client with a socket, a progress bar with a file) is known by its class and
        the arguments it was made with, as far as they are its attributes.
        """
        kind = type(value)
        if isinstance(value, _WEAK):
            return self._all("weak", kind)
        if isinstance(value, _AT_WORK) or id(value) in self._kept_by_none:
            self._unreadable(value)
            known = self._kept_by_none.get(id(value))
            return self._all("made", kind) if known is None else known[1]
        before = self._mark()
        try:
            reduced = _reduced(value)
            if isinstance(reduced, str):
                return self._all("global", kind, reduced)
            made, arguments, *rest = reduced
            state, items, pairs = (*rest, None, None, None)[:3]
            found = self._all("object", made, arguments, state, list(items or ()), list(pairs or ()))
            if len(self.unread) == before[0]:
                return found
        except Exception:  # pickle's way to say no; but also whatever a library's code raises
            pass
        self._back_to(before)
        data = getattr(value, "__dict__", {})
        given = {name: data.get(name, data.get(f"_{name}")) for name in sorted(_parameters(kind))}
        found = self._all("made", kind, given)
        for place in list(self.unread)[before[0] :]:
            del self.unread[place]
        self._unreadable(value)
        self._kept_by_none[id(value)] = (value, found)  # in a net of such objects each would be read again and again
        return found

    def _mark(self) -> tuple[int, int, int, int]:
        return len(self.unread), len(self._open), len(self._done), len(self._order)

    def _back_to(self, mark: tuple[int, int, int, int]) -> None:
        """Forget what has been read since: it is no part of the value's content after all."""
        stores: tuple[dict[Any, Any], ...] = (self.unread, self._open, self._done)
        for kept, size in zip(stores, mark, strict=False):
            for late in list(kept)[size:]:
                del kept[late]
        for key, label in self._order[mark[3] :]:
            del self._nodes[key]
            self._names[label] -= 1
            self._waiting.pop()
        del self._order[mark[3] :]

    # -- code

    def _code(self, code: types.CodeType) -> bytes:
        """Encode bytecode, without line numbers and files."""
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        form = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS)
        return self._all("code", code.co_code, code.co_consts, names, form, code.co_exceptiontable)

    def _module(self, module: types.ModuleType) -> bytes:
        version = version_of(module.__name__)
        if version is not None:
            return self._all("module", module.__name__, version)
        return self._node(module, f"module {module.__name__}", self._read_user_module)

    def _read_user_module(self, module: types.ModuleType, name: str) -> None:
        """Read a module that is used as a whole: who knows which of its names."""
        for own, value in sorted(vars(module).items()):
            if own not in _PLACES and not isinstance(value, types.ModuleType):
                self._global(vars(module), own, frozenset())

    def _function(self, function: types.FunctionType) -> bytes:
        home = str(function.__globals__.get("__name__", ""))
        version = version_of(home)
        if version is None:
            return self._node(function, _short(function.__qualname__), self._read_function)
        for module in (home, function.__module__):
            if module and version_of(module) is not None and named(module, function.__qualname__) is function:
                return self._all("function", module, function.__qualname__, version)
        return self._node(function, _short(function.__qualname__), self._read_wrapper)

    def _read_wrapper(self, function: types.FunctionType, name: str) -> None:
        """Read a function that a library has made around something: what it is made around."""
        home = str(function.__globals__.get("__name__", ""))
        self._part(f"code of {name}", home, function.__code__.co_qualname, version_of(home))
        self._read_bound(function, name)

    def _read_function(self, function: types.FunctionType, name: str) -> None:
        self._part(f"code of {name}", function.__code__)
        self._read_bound(function, name)
        if not self._with_code:
            return
        if function.__annotations__:
            self._part(f"annotations of {name}", function.__annotations__)
        used, reads = names_of(function.__code__), globals_of(function.__code__)
        if _LOOKUPS & {*reads} or _SEARCHES & used or {"sys", "modules"} <= used:
            self._look_up(function, name)
        for read in reads:
            if read in function.__globals__ and read not in _PLACES:
                self._global(function.__globals__, read, used)
        package = function.__globals__.get("__package__")
        for module, taken in imports_of(function.__code__):
            self._import(imported(module, package if isinstance(package, str) else None), taken, used)

    def _look_up(self, function: types.FunctionType, name: str) -> None:
        """Read the code of a function's own module, and say so: it finds by name what no reader can foresee."""
        home = str(function.__globals__.get("__name__", ""))
        for own, value in sorted(function.__globals__.items()):
            if isinstance(value, types.FunctionType | type) and value.__module__ == home:
                self._global(function.__globals__, own, frozenset())
        self.unread[f"what {name} looks up by name"] = None

    def _read_bound(self, function: types.FunctionType, name: str) -> None:
        """Read the values that a function object carries: defaults, closure and attributes."""
        code, defaults = function.__code__, function.__defaults__ or ()
        given = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        for parameter, value in [*zip(given, defaults, strict=True), *sorted((function.__kwdefaults__ or {}).items())]:
            self._part(f"default `{parameter}` of {name}", value)
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if variable != "__class__":
                self._part(f"closure `{variable}` of {name}", *_contents(cell))
        self._attributes(vars(function), name)

    def _global(self, space: dict[str, Any], name: str, used: frozenset[str]) -> None:
        """Read a global that code uses; of a user's module, what the code uses of it."""
        value = space[name]
        if not isinstance(value, types.ModuleType) or version_of(value.__name__) is not None:
            self._node(value, f"global `{name}`", lambda v, label: self._part(label, v), key=(id(space), name))
            return
        self._import(value, (), used)

    def _import(self, module: types.ModuleType | None, taken: Iterable[str], used: frozenset[str]) -> None:
        if module is None:
            return
        own = vars(module)
        wanted = [name for name in sorted({*taken, *used}) if name in own and name not in _PLACES]
        if {"getattr", "vars", "__dict__", "*"} & {*used, *taken} or not wanted:
            self._encoded(module)
        for name in wanted:
            known = (id(own), "used", name)
            if known not in self._nodes:
                self._nodes[known] = (own, b"")
                self._global(own, name, used)

    def _read_partial(self, value: functools.partial[object], name: str) -> None:
        self._part(f"function of {name}", value.func)
        for place, argument in [*enumerate(value.args), *sorted(value.keywords.items())]:
            self._part(f"argument `{place}` of {name}", argument)
        self._attributes(vars(value), name)

    # -- classes

    def _class(self, cls: type) -> bytes:
        version = version_of(cls.__module__)
        if _is_builtin(cls) or (version is not None and named(cls.__module__, cls.__qualname__) is cls):
            return self._all("class", cls.__module__, cls.__qualname__, version)
        if version is None and not self._with_code:
            self.classes[cls] = None
            return self._all("class", _short(cls.__qualname__))
        return self._node(cls, f"class {_short(cls.__qualname__)}", self._read_class)

    def _read_class(self, cls: Any, name: str) -> None:
        self._part(f"bases of {name}", cls.__bases__, type(cls))
        own = dict(vars(cls))
        if issubclass(cls, enum.Enum):
            for member in cls:
                self._part(f"member `{member._name_}` of {name}", member._value_)
            own = {key: value for key, value in own.items() if isinstance(value, _CODE)}
        if issubclass(cls, pydantic.BaseModel):
            self._read_fields(cls, name)
            own.pop("__annotations__", None)
        if issubclass(cls, dspy.Signature):
            self._part(f"instructions of {name}", cls.instructions)
            own.pop("__doc__", None)
        self._attributes({key: value for key, value in own.items() if _is_own(key, value)}, name)

    def _read_fields(self, cls: type[pydantic.BaseModel], name: str) -> None:
        fields: Mapping[str, FieldInfo] = getattr(cls, "__pydantic_fields__", {})
        self._part(f"fields of {name}", list(fields))
        for field, info in fields.items():
            self._part(f"field `{field}` of {name}", info)
        found = getattr(cls, "__pydantic_decorators__", None)
        kinds = [getattr(found, kind.name) for kind in dataclasses.fields(found)] if found is not None else []
        checks = [(each, getattr(check, "info", None)) for kind in kinds for each, check in kind.items()]
        if checks:
            self._part(f"validators of {name}", checks)

    def _field(self, info: FieldInfo) -> bytes:
        said = {slot: getattr(info, slot, None) for slot in FieldInfo.__slots__ if not slot.startswith("_")}
        return self._all("field", {slot: value for slot, value in said.items() if value is not None})

    # -- objects

    def _read_object(self, value: Any, name: str) -> None:
        kind = type(value)
        self.classes[kind] = None
        self._part(f"class of {name}", kind)
        left_out = {"callbacks"} if isinstance(value, dspy.Adapter | dspy.Embedder) else set()
        if isinstance(value, dspy.Embedder):
            left_out |= {"batch_size", "caching", "default_kwargs"}
            self._options(value.default_kwargs, name)
        self._attributes({**_slots(value), **getattr(value, "__dict__", {})}, name, left_out)
        base = next((base for base in _CONTAINERS if isinstance(value, base)), None)
        if base is not None:
            self._part(f"content of {name}", _content(base, value))
        elif _keeps_state(kind):
            self._part(f"state of {name}", value.__reduce_ex__(4)[1:])

    def _read_module(self, module: dspy.Module, name: str) -> None:
        self._part(f"class of {name}", type(module))
        data, left_out = vars(module), set(_MODULE_LOGS)
        if type(data.get("compilation")).__module__.startswith("cuesmith."):  # an earlier compile's record
            left_out.add("compilation")
        if isinstance(module, dspy.Predict):
            left_out |= {"lm", "signature", *_PREDICT_LOGS}
            self._part(f"LM of {name}", data.get("lm"))
            if id(module) in self._covered:
                left_out.add("demos")
                self._read_fields(module.signature, name)
            else:
                self._part(f"signature of {name}", module.signature)
        self._attributes(data, name, left_out)

    def _read_lm(self, lm: Any, name: str) -> None:
        self._part(f"class{_of(name)}", type(lm))
        self._part(f"model{_of(name)}", lm.model, getattr(lm, "model_type", None))
        self._options(getattr(lm, "kwargs", {}), name)
        engines = [self._engine(getattr(lm, spec, None)) for spec in ("_engine_spec", "_async_engine_spec")]
        self._part(f"engine{_of(name)}", *engines)
        left_out = _LM_BASE | (_LM_PLUMBING if hasattr(lm, "_engine_spec") else set())
        self._attributes({k: v for k, v in vars(lm).items() if not _names_key(k)}, name, left_out)

    def _engine(self, engine: object) -> object:
        """Return what is known of an engine: its kind and its `identity` or the state it would be saved by."""
        if engine is None or isinstance(engine, str):
            return engine
        dump = getattr(engine, "identity", None) or getattr(engine, "dump_state", None)
        return type(engine), _without_keys(dump()) if callable(dump) else None

    def _options(self, options: Mapping[str, object], name: str) -> None:
        """Read the options of calls to a model, without the secrets among them."""
        for option, value in sorted(options.items()):
            if option not in _TRANSPORT and value is not None and not _names_key(option):
                self._part(f"option `{option}`{_of(name)}", _without_keys(value, "header" in option.lower()))


def _is_builtin(cls: type) -> bool:
    """Whether a class is made in C: not all of these stand in their module under their name."""
    return not cls.__flags__ & (1 << 9) or cls.__module__ in sys.builtin_module_names


def _names_key(name: str) -> bool:
    return bool(_MODEL_KEY.search(name))


def _without_keys(value: object, only_names: bool = False) -> object:
    """Return an option without secrets: values named as keys, values of headers, users in addresses."""
    if isinstance(value, Mapping):
        return {
            name: None if only_names or _names_key(str(name)) else _without_keys(each, "header" in str(name).lower())
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_keys(each, only_names) for each in value]
    return _USER.sub("", value) if type(value) is str else value


def _whole(reader: _Reader, value: object) -> str:
    reader.read(value)
    return _hex(_joined(b"whole", [_text(f"{name}={found}") for name, found in reader.digests.items()]))


def _reduced(value: Any) -> Any:
    # What Dask has entered for all exceptions as it was imported is no part of them.
    known = None if isinstance(value, BaseException) else copyreg.dispatch_table.get(type(value))
    return known(value) if known is not None else value.__reduce_ex__(4)


def _keeps_state(kind: type) -> bool:
    """Whether a user's class derives from a library's one whose instances have content beside their attributes."""
    owner = next(c for c in kind.__mro__ if "__reduce_ex__" in vars(c) or "__reduce__" in vars(c))
    return owner is not object and version_of(owner.__module__) is not None and not issubclass(kind, enum.Enum)


def _content(base: Any, value: Any) -> object:
    """Return what an instance holds as the built-in type that its class derives from."""
    return list(value.items()) if base is dict else base(value)


def _contents(cell: types.CellType) -> tuple[object, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not filled yet
        return ()


def _cells(column: Any) -> object:
    plain = not getattr(column.dtype, "hasobject", True)  # one of numpy's own types
    return column.to_numpy() if plain else column.astype(object).tolist()


def _slots(value: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for cls in type(value).__mro__:
        for name, slot in vars(cls).items():
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    found.setdefault(name, slot.__get__(value, type(value)))
                except AttributeError:  # not set
                    continue
    return found


def _is_own(name: str, value: object) -> bool:
    """Whether something in a class was put there by its author."""
    if isinstance(value, _SLOTS) or name in ("_abc_impl", "__dict__", "__weakref__"):
        return False
    dunder = name.startswith("__") and name.endswith("__")
    return not dunder or isinstance(value, _CODE) or name in _CLASS_DATA


def _parameters(kind: type) -> set[str]:
    """Return the names of what an instance may be made with, by the class or one that it derives from."""
    found: set[str] = set()
    each: Any
    for each in kind.__mro__:
        if "__init__" in vars(each):
            with contextlib.suppress(TypeError, ValueError):
                found |= set(inspect.signature(each.__init__).parameters)
    return found
