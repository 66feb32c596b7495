"""Frozen dataclasses to and from plain data and YAML. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import reprlib
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from bridle.errors import ConfigError

T = typing.TypeVar("T")
LATER = types.MappingProxyType({"later": True})
"""Metadata of a field that was added after models were made with its dataclass: at its default it is not :func:`told`."""

_INTEGERS = range(-(2**63), 2**63)
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 100


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain data (dict, list, str, int, float, bool, None) of a dataclass."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


def from_dict(cls: type[T], data: dict[str, Any], where: str = "") -> T:
    """The dataclass ``cls`` from plain data; missing keys take their defaults.

    Raises:
        ConfigError: an unknown key (with the nearest name), a missing one without default, or a value of the wrong type or
            out of range.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'config'} must be a mapping of {cls.__name__} settings, not {_shown(data)}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
            raise ConfigError(f"unknown setting '{where}{_shown(str(key))[1:-1]}'; {hint}")
    values = {key: _convert(hints[key], value, f"{where}{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:  # the class computes with a value that makes no sense
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def to_yaml(config: Any) -> str:
    """The dataclass as YAML, fields in their order of declaration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def load_yaml(cls: type[T], path: Path) -> T:
    """Read a dataclass from YAML with the safe loader: tags that construct objects are refused.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or its content does not fit ``cls``.
    """
    data = read_yaml(path)
    return from_dict(cls, data if data is not None else {})


def read_yaml(path: Path) -> Any:
    """Plain data of a YAML file, by the safe loader.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; make it readable for this user") from error
    # Values that are not what their tag or form says, such as a 13th month, raise what their constructors raise.
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} is not readable YAML: {reason}") from error


def told(config: Any) -> dict[str, Any]:
    """Like :func:`to_dict`, without the ``LATER`` fields that have their default: what fingerprints are made of."""
    found = to_dict(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("later") and value == field.default:
            del found[field.name]
        elif dataclasses.is_dataclass(value):
            found[field.name] = told(value)
    return found


def fingerprint(config: Any) -> str:
    """16 hexadecimal digits that change when any setting changes."""
    text = json.dumps(told(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {_shown(value)}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {_shown(value)}; it must be a mapping")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, f"{where}.")
    return _convert_scalar(hint, value, where)


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for argument in (a for a in arguments if a is not type(None)):
        try:
            return _convert(argument, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0])


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is {_shown(value)}; it must be a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise ConfigError(f"{where} has {len(value)} values; it must have {len(arguments)}")
    return tuple(_convert(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value, strict=True)))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and value not in _INTEGERS:
            raise ConfigError(f"{where} is {_shown(value)}; whole numbers must fit in 64 bits")
        if math.isnan(value):
            raise ConfigError(f"{where} is not a number; give one")
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        if hint is int and value not in _INTEGERS:
            raise ConfigError(f"{where} is {_shown(value)}; whole numbers must fit in 64 bits")
        return value
    raise ConfigError(f"{where} is {_shown(value)}; it must be of type {getattr(hint, '__name__', hint)}")


def _shown(value: Any) -> str:
    """A value for a message: in one line, and short whatever it is."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
