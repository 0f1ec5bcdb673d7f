"""Where the references of a JSON Schema lead. Pure."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote


def target(root: Any, reference: str) -> Any:
    """What `reference`, "#" or "#/…", leads to in `root`: RFC 6901, as a part of a URI.

    Raises LookupError where it leads nowhere, or out of the document.
    """
    if reference != "#" and not reference.startswith("#/"):
        raise LookupError(reference)
    found = root
    for step in reference.split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and len(key) < 9 and int(key) < len(found):
            found = found[int(key)]
        else:
            raise LookupError(reference)
    return found
