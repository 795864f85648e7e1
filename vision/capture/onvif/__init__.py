"""Search for ONVIF cameras and for the addresses of their streams."""
