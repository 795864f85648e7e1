"""Search for ONVIF cameras, and the addresses of their streams."""
