"""Names of files as Linux has them: bytes, of which Python keeps those that are not UTF-8 as lone surrogates."""

from __future__ import annotations


def is_encodable(name: str) -> bool:
    """Return True for a name in UTF-8. No other name can be stored in a shard, or opened through pyarrow."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(name: str) -> str:
    r"""Return a name that can be printed and stored: its bytes that are not UTF-8 as `\xe9`."""
    try:
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return name.encode(errors="backslashreplace").decode()
