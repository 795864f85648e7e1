"""Parsing of XML documents and addresses that devices send. Both can be malformed or hostile."""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, urlsplit
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from vision.errors import SourceError

NAMESPACES: Final = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "d": "http://schemas.xmlsoap.org/ws/2005/04/discovery",
    "tds": "http://www.onvif.org/ver10/device/wsdl",
    "trt": "http://www.onvif.org/ver10/media/wsdl",
    "tr2": "http://www.onvif.org/ver20/media/wsdl",
    "tt": "http://www.onvif.org/ver10/schema",
}
MAX_BYTES: Final = 1 << 20
"""Maximum size of a document. The profiles of a recorder with 64 cameras have about 400 kB."""

_MAX_DEPTH: Final = 64
_LONGEST_TEXT: Final = 200
_LONGEST_ADDRESS: Final = 1024


def parse_document(data: bytes) -> Element:
    """Parse an XML document, and return its root element.

    Raises:
        SourceError: the document is not well-formed, declares a document type, or is nested too deeply.
    """
    try:
        root: Element = ElementTree.fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        text = "expected XML without a document type, got one, which can contain entities"
        raise SourceError(text, code="onvif-hostile-xml") from error
    except (ParseError, ValueError, LookupError) as error:  # also an unknown encoding
        raise SourceError(f"expected an XML document, got {len(data)} bytes: {error}", code="onvif-xml") from error
    if _is_deep(root):
        text = f"expected XML with at most {_MAX_DEPTH} levels, got more"
        raise SourceError(text, code="onvif-hostile-xml")
    return root


def _is_deep(root: Element) -> bool:
    level = [root]
    for _ in range(_MAX_DEPTH):
        level = [child for element in level for child in element]
    return bool(level)


def find_text(element: Element, path: str) -> str:
    """Return the text of the first element at `path`, as `printable` returns it, or "" if there is no such element."""
    return printable(element.findtext(path, "", NAMESPACES))


def printable(text: str) -> str:
    """Return the first 200 characters of a text, with single spaces, and with `?` for unprintable characters."""
    text = " ".join(text[:_LONGEST_TEXT].split())
    return "".join(character if character.isprintable() else "?" for character in text)


def split_address(address: str) -> SplitResult | None:
    """Return the parts of a URL, or None if the URL must not be used.

    A URL must not be used if it has no scheme or no host, is invalid, has more than 1024 characters, or contains spaces
    or unprintable characters.
    """
    if len(address) > _LONGEST_ADDRESS or not address.isprintable() or " " in address:
        return None
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises an error if the port is invalid
    except ValueError:
        return None
    return parts if parts.scheme and parts.hostname else None
