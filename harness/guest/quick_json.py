"""JSON without importing `json`: the same C scanner and encoder, without the regular expressions its package compiles
on import.

In an emulated guest `import json` costs more than the whole BTF probe. `_json` is CPython's own; should it be missing
or have changed its signature, the `json` package stands in.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _ScannerContext:
    """What `_json.make_scanner` reads from its argument: the options of json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> Any:
        raise ValueError("%s is not JSON" % name)


def _not_serialisable(value: object) -> Any:
    raise TypeError("%s is not JSON serialisable" % type(value).__name__)


def _quick() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    import _json

    context: Any = _ScannerContext()
    scan = _json.make_scanner(context)
    encode = _json.make_encoder(
        None, _not_serialisable, _json.encode_basestring_ascii, None, ":", ",", False, False, False
    )

    def loads(text: str) -> Any:
        """The value of one JSON text. Raises ValueError."""
        try:
            value, end = scan(text, 0)
        except StopIteration as error:
            raise ValueError("no JSON value at character %s" % error.value) from None
        if text[end:].strip(" \t\r\n"):
            raise ValueError("more after the JSON value, from character %d" % end)
        return value

    def dumps(value: Any) -> str:
        """The JSON text of a value, ASCII only. Raises TypeError or ValueError for what JSON cannot say."""
        return "".join(encode(value, 0))

    if loads(dumps({"a": [1, None, "\u00e9"]})) != {"a": [1, None, "\u00e9"]}:
        raise ImportError("_json does not do what json does")
    return loads, dumps


def _plain() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    import json

    return json.loads, json.dumps


try:
    loads, dumps = _quick()
except (ImportError, AttributeError, TypeError):
    loads, dumps = _plain()
