"""Keeps keys and tokens out of replies, events, errors, the journal and reports. Source: ours.

Two strengths. A model's reply loses only *known* secrets (those that the language models in play were given), and loses
them before anybody reads it: what a search sees live is what the journal holds and a resumed run reads. Text that
merely looks like a key stays there, for it may be the task. What is for people (errors, events, reports) loses both.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import copy
import dataclasses
import functools
import html
import inspect
import json
import os
import re
import sys
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar, cast

import dspy
import pydantic

T = TypeVar("T")

_MARK = "[redacted]"

_SECRET_NAME = re.compile(
    r"(?:(?:^|_|api|access|auth|private|secret|service|subscription)key|(?:^|_|access|auth|id|refresh|session|bearer)token"
    r"|secret|password|passwd|passphrase|credentials?|authorization|(?:^|_)(?:auth|pass|pwd|cookie|jwt|pat|sig|bearer))"
    r"(?:s|_id|_json|_value|_provider|_?\d+)*$"
)
_PLAIN_NAME = re.compile(
    r"(?:^|_)(?:(?:pad|eos|bos|unk|mask|sep|cls|stop|start|end|special|image|audio|video|think|thinking|of_text)_tokens?(?:_ids?)?"
    r"|tokens|cache_key|public_key|sort_key|primary_key)$"
)
_PLAIN_HEADERS = re.compile(
    r"(?i)accept.*|content-.*|user-agent|host|connection|origin|(?:http-)?referer|x-title|x-stainless-.*"
    r"|anthropic-(?:version|beta)|openai-(?:beta|organization|project)|x-request-id|traceparent|cache-control"
)
_PLAIN_OPTIONS = re.compile(
    "messages|prompt|model|temperature|max_(?:completion_)?tokens|n|stop|cache|rollout_id|timeout|seed|tools|response_format"
)
_PLACEHOLDER = re.compile(
    "an?|and|any|anything|api|apikey|bearer|change|changeme|dummy|empty|example|fake|false|foo|here|keys?|lm|lmstudio|local"
    "|localhost|me|my|na|needed|no|nokey|none|not|notneeded|notrequired|null|ollama|placeholder|redacted|required|sk|string"
    "|studio|test|testing|the|token|true|undefined|unset|unused|user|vllm|whatever|your"
)
_SCHEME = re.compile(r"(?i)(bearer|basic|token|apikey|api-key|key|digest)[ =:]+(\S.*)")
# A key has a digit in it: without that, `hf_hub_download` or `sk-learn-pipeline` would be taken for one.
_SHAPES = re.compile(
    r"(?i)\b(?:sk|pk|rk|gsk|xai|hf|gh[pousr])[-_](?=[\w\-]*\d)[\w\-]{12,}"
    r"|\bAIza[\w\-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bBearer\s+[\w.\-~+/=]{8,}|\bBasic\s+(?=[a-z+/]*(?:[0-9=]|(?-i:[a-z][A-Z])))[\w+/=]{8,}"
    r"|\beyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]*|(?<=://)[^\s/?#]+(?=@)"
    r"|(?<=[?&])((?:[\w\-]*(?:key|token)|sig|signature|password)=)[^&\s\"'#]+"
)
_PREFIXES = ("sk", "pk", "rk", "xai", "hf", "gho", "ghp", "ghr", "ghs", "ghu")
_STARTS = (
    *(prefix + join for prefix in _PREFIXES for join in "-_"),
    *("aiza", "akia", "bearer", "basic", "eyj", "://", "key=", "token=", "sig=", "signature=", "password="),
)
"""What matches `_SHAPES` has one of these in it: looking for them is ten times as fast."""

_REACHING = re.compile(r"(?i)engine|client|config|session|auth|provider|router|model|lm")
"""Attributes by which a model reaches its provider."""
_LONGEST_WORD = 12
"""Letters below which what stands in a key's place is a word that any reply may have. Ours."""
_SHORT = 8
_ASK_AGAIN_S = 60.0
"""Seconds for which the result of a callable that gives a key is taken to be still the same. Ours."""


class Redactor:
    """Replaces secrets by a mark. Thread-safe.

    Args:
        lms: Language models whose keys are secret, as those of the environment and of LiteLLM's globals are.
    """

    def __init__(self, lms: Iterable[object] = ()) -> None:
        self._lock = threading.Lock()
        self._secrets: set[str] = set()
        self._known: tuple[str, ...] = ()
        self._met: dict[int, weakref.ref[object]] = {}
        self._alike: set[object] = set()
        self._given: set[tuple[str, str]] = set()
        self._asked: dict[int, float] = {}
        self._surroundings: object = None
        self._look_around()
        for lm in lms:
            self.learn(lm)

    def learn(self, owner: object, options: Mapping[str, object] = MappingProxyType({})) -> None:
        """Take in the secrets of a language model or embedder, and of one call's options; cheap when nothing is new.

        Args:
            owner: The object that makes a call. Its options, its attributes, and those of its engine are looked at.
            options: What this call is given besides.
        """
        given = getattr(owner, "kwargs", None) or getattr(owner, "default_kwargs", None) or {}
        others = [(name, value) for name, value in options.items() if value is not given.get(name)]
        new = [(name, value) for name, value in (*given.items(), *others) if not self._knows(name, value)]
        looks = self._new_looks(owner)
        found = [secret for name, value in new for secret in _secrets(name, _asked_for(name, value))]
        if looks is not None:
            with contextlib.suppress(RecursionError):
                found += _held(owner)
            self._surroundings = None
        self._look_around()
        self._add(found)
        # Only now: what is noted here, another thread's call relies on.
        self._given.update((name, value) for name, value in new if isinstance(value, str))
        self._asked.update({id(v): time.monotonic() + _ASK_AGAIN_S for name, v in new if _gives_secret(name, v)})
        if looks is not None:
            self._alike.add(looks)
            self._meet(owner)

    def __call__(self, text: str) -> str:
        """Return text that is for people, without known secrets and without what looks like one."""
        text = self._without_known(text)
        lowered = text.lower()
        if not any(start in lowered for start in _STARTS):
            return text
        return _SHAPES.sub(lambda match: (match[1] or "") + _MARK, text)

    def reply(self, value: T) -> T:
        """Return what a model or a metric said, without known secrets: text, or any data that holds text.

        The same object is returned if there is none in it.
        """
        if not self._known:
            return value
        try:
            return redacted(value, self._without_known)
        except RecursionError:  # nested deeper than JSON goes: no file can hold it
            return value

    def _without_known(self, text: str) -> str:
        for form in self._known:
            if form in text:
                whole = len(form) < _SHORT or form.isalpha()
                pattern = rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])" if whole else re.escape(form)
                text = re.sub(pattern, _MARK, text)
        return text

    def _knows(self, name: str, value: object) -> bool:
        """Whether an option cannot be a secret, or has been looked at; what gives a key is asked again now and then."""
        if _PLAIN_OPTIONS.fullmatch(name):
            return True
        if isinstance(value, str):
            return (name, value) in self._given
        return _gives_secret(name, value) and time.monotonic() < self._asked.get(id(value), 0.0)

    def _new_looks(self, owner: object) -> object:
        """Return the looks of a model if none that looks alike has been met, else None."""
        met = self._met.get(id(owner))
        if met is not None and met() is owner:
            return None
        looks = _looks(owner)
        if looks not in self._alike:
            return looks
        self._meet(owner)  # dspy copies a model for many a call
        return None

    def _meet(self, owner: object) -> None:
        with contextlib.suppress(TypeError):
            self._met[id(owner)] = weakref.ref(owner)

    def _look_around(self) -> None:
        """Take in the environment's and LiteLLM's keys if they can have changed since the last look."""
        now = (len(os.environ), "completion" in vars(sys.modules.get("litellm", object)))
        if now == self._surroundings:
            return
        found = [secret for name, value in list(os.environ.items()) for secret in _of_environment(name, value)]
        for module in ("litellm", "openai"):
            loaded = list(vars(sys.modules.get(module, object)).items())
            found += [secret for name, value in loaded for secret in _of_global(name, value)]
        self._add(found)
        self._surroundings = now

    def _add(self, found: Iterable[str]) -> None:
        new = {secret for secret in found if secret not in self._secrets}
        if not new:
            return
        with self._lock:
            forms = {form for secret in new if _is_secret(secret) for form in _forms(secret)}
            self._known = tuple(sorted({*self._known, *forms}, key=lambda form: (-len(form), form)))
            self._secrets |= new


def _gives_secret(name: str, value: object) -> bool:
    """Whether a value in a key's place is called for the key."""
    return callable(value) and not inspect.isclass(value) and _names_secret(name)


def _asked_for(name: str, value: object) -> object:
    """Return an option's value, or what it gives if it is called for a key."""
    if not _gives_secret(name, value):
        return value
    if inspect.iscoroutinefunction(value):
        return None
    try:
        return cast(Callable[[], object], value)()
    except Exception:  # the call itself will say so
        return None


def _looks(owner: object) -> object:
    """Return what two models have in common that know the same secrets: all their texts, and their engine."""
    held = [*vars(owner).items()] if hasattr(owner, "__dict__") else []
    held += [each for _, inner in held if isinstance(inner, dict) for each in inner.items()]
    texts = frozenset((str(name), value) for name, value in held if isinstance(value, str))
    return type(owner), texts, tuple(id(getattr(owner, name, None)) for name in ("engine", "_engine_spec"))


@functools.cache
def _names_secret(name: str) -> bool:
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
    return bool(_SECRET_NAME.search(plain)) and not _PLAIN_NAME.search(plain)


def _is_secret(text: str) -> bool:
    """Whether a value that stands in a key's place is one: not what keyless servers are given, not a file's path."""
    words = [word for word in re.split(r"[^a-z]+", text.lower()) if word]
    if len(text) < 4 or len(set(text)) < 3 or (text.isdigit() and len(text) < 8):
        return False
    if not any(map(str.isdigit, text)) and words and all(map(_PLACEHOLDER.fullmatch, words)):
        return False
    if len(text) < _LONGEST_WORD and text.isalpha() and text.lower() in (text, text[0].lower() + text[1:]):
        return False  # a word, as it may stand in any reply
    return not (text.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(text)))


def _forms(secret: str) -> set[str]:
    """Return a secret as it may stand in a text: as it is, or in a URL, JSON, HTML or base64 (HTTP's Basic)."""
    forms = {secret, html.escape(secret), repr(secret)[1:-1]}
    forms |= {json.dumps(secret, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}
    data = secret.encode("utf-8", "surrogatepass")
    forms |= {urllib.parse.quote(data, safe=safe) for safe in ("", "/", "/:@!$'()*,;~")}
    forms |= {urllib.parse.quote_plus(data)}
    if len(data) >= 6:
        for before in range(3):  # a text's part has one of three forms, by what stands before it
            coded = base64.b64encode(b"\0" * before + data).decode()
            coded = coded[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
            forms |= {coded, coded.replace("+", "-").replace("/", "_")}
    return forms


def _secrets(name: str, value: object) -> Iterator[str]:
    """Yield the secrets in an option, by its name and by the names inside it."""
    if isinstance(value, pydantic.SecretStr):
        yield from _of_value(value.get_secret_value())
    elif isinstance(value, bytes):
        yield from _secrets(name, value.decode("utf-8", "replace"))
    elif isinstance(value, str):
        if "://" in value:
            yield from _of_url(value)
        elif _names_secret(name):
            yield from _of_value(value)
    elif isinstance(value, Mapping):
        inner = [(_as_text(n), v) for n, v in list(value.items())]
        for n, v in inner:
            if _holds_keys(name, n, v):
                yield from _of_value(_as_text(v))
            else:
                yield from _secrets(n, v)
    elif isinstance(value, list | tuple):
        if len(value) == 2 and _names_secret(name) and all(isinstance(v, str) for v in value):
            yield from _of_pair(*value)  # HTTP's (user, password)
        else:
            for v in value:
                yield from _secrets(name, v)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):  # lm15's credentials and router configuration
        for field in dataclasses.fields(value):
            yield from _secrets("key" if field.name == "value" else field.name, getattr(value, field.name, None))


def _holds_keys(outer: str, name: str, value: object) -> bool:
    """Whether a text in a mapping of that name is a key whatever its own name is."""
    if not isinstance(value, str | bytes):
        return False
    outer = outer.lower()
    if outer.endswith("headers"):
        return not _PLAIN_HEADERS.fullmatch(name)
    return outer.endswith("keys") or (outer.endswith(("query", "params")) and _is_random(_as_text(value)))


def _is_random(text: str) -> bool:
    return re.fullmatch(r"(?=.*\d)(?=.*[A-Za-z])[^\s.]{16,}", text) is not None


def _as_text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _of_value(text: str) -> Iterator[str]:
    """Yield what is secret in a key's, a header's or a credential's text."""
    text = text.strip()
    if text.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            yield from _secrets("", json.loads(text))
    scheme = _SCHEME.fullmatch(text)
    if scheme is not None:
        text = scheme[2].strip()
        try:
            user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if colon and scheme[1].lower() == "basic":
            yield from _of_pair(user, password)
    for part in text.split(";") if ";" in text else ():  # a cookie
        yield part.partition("=")[2].strip()
    yield text


def _of_pair(user: str, password: str) -> Iterator[str]:
    """Yield what is secret in a user's name and password; the name is, if it stands alone."""
    yield password or user
    if password and user:
        yield f"{user}:{password}"


def _of_url(text: str) -> Iterator[str]:
    if re.search(r"\s", text.strip()):
        return  # a sentence with an address in it
    try:
        url = urllib.parse.urlsplit(text.strip())
        query = urllib.parse.parse_qsl(url.query)
    except ValueError:
        return
    user, _, password = url.netloc.rpartition("@")[0].partition(":")
    if user or password:
        yield from _of_pair(user, password)
        yield from _of_pair(urllib.parse.unquote(user), urllib.parse.unquote(password))
    yield from (value for name, value in query if _names_secret(name) or _is_random(value))
    yield from (part for part in url.path.split("/") if _is_random(part))


def _of_environment(name: str, value: str) -> Iterator[str]:
    if _names_secret(name) or ("://" in value and "@" in value):
        yield from _secrets(name, value)


def _of_global(name: str, value: object) -> Iterator[str]:
    """Yield the secrets in a global of LiteLLM or openai: keys, headers, addresses and its list of credentials."""
    if name == "credential_list" and isinstance(value, list):
        for item in value:
            yield from _secrets(name, getattr(item, "credential_values", None))
    # By its type: asked for its class, a lazy global of openai's loads a thousand modules.
    elif (issubclass(type(value), str) and not name.isupper()) or (name == "headers" and isinstance(value, Mapping)):
        yield from _secrets(name, value)


def _held(owner: object, depth: int = 3) -> Iterator[str]:
    """Yield the secrets in an object's attributes, and in those of what it reaches the provider by."""
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        if name in ("history", "callbacks"):
            continue
        yield from _secrets(name, value)
        reaches = isinstance(value, dspy.BaseLM) or hasattr(value, "complete") or not callable(value)
        if depth and reaches and _REACHING.search(name):
            yield from _held(value, depth - 1)
    if isinstance(owner, dspy.BaseLM):
        for provider in getattr(owner, "_providers", ()):  # declared by dspy.lm15.register_provider
            yield from _secrets("headers", dict(provider.definition.access.headers))
            yield from _secrets("key", provider.definition.placeholder_key)
            for variable in provider.definition.access.env_keys:
                yield from _secrets("key", os.environ.get(variable))


def redacted(value: T, redact: Callable[[str], str]) -> T:
    """Redact every text in some data, each by itself: JSON's escapes would hide a key that stands after a line break.

    Args:
        value: Text, a mapping, a sequence, a dataclass, a pydantic model or a dspy example, nested as may be.
        redact: Applied to each text; names stay.

    Returns:
        The same object if nothing was changed, else a changed copy of its type.
    """
    if isinstance(value, str):
        text = redact(value)
        return value if text == value else cast(T, text)
    if isinstance(value, Mapping):
        changed = _changed(value.items(), redact)
        return cast(T, {**value, **changed}) if changed else value
    if isinstance(value, list | tuple):
        parts = [redacted(v, redact) for v in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return cast(T, type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts))
    if isinstance(value, dspy.Example):
        changed = _changed(value.items(include_dspy=True), redact)
        return cast(T, value.copy(**changed)) if changed else value
    if isinstance(value, pydantic.BaseModel):
        changed = _changed({**vars(value), **(value.model_extra or {})}.items(), redact)
        return cast(T, value.model_copy(update=changed)) if changed else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = _changed([(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)], redact)
        if not changed:
            return value
        copied = copy.copy(value)
        for name, new in changed.items():
            object.__setattr__(copied, name, new)
        return copied
    return value


def _changed(items: Iterable[tuple[str, object]], redact: Callable[[str], str]) -> dict[str, object]:
    return {name: new for name, old in items if (new := redacted(old, redact)) is not old}
