"""A server that sends the results of each camera as ONVIF metadata over RTSP."""
