"""Expected texts of general errors and of redacted addresses."""

from vision.errors import SizeChanged, VisionError, redact

ROWS = [
    ("an error with a hint", lambda: str(VisionError("it broke", hint="fix it")), "it broke\n  hint: fix it"),
    ("a new frame size", lambda: str(SizeChanged(480, 640)), "the frame is now 640x480"),
    ("a redacted URL", lambda: redact("rtsp://me:secret@192.0.2.1/a?token=1"), "rtsp://***@192.0.2.1/a?token=***"),
]
