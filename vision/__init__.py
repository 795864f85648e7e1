"""Streaming video analytics: reads many cameras, detects, tracks, and counts objects, and publishes the results.

A frame passes these folders in this order::

    capture -> runtime -> detect -> stages -> messaging
    frame      batch      detections  tracks, events, counts  message

* `capture` reads a frame from a camera into the camera's `LatestSlot`.
* `runtime` forms a batch of the newest frames and submits it to the detector.
* `detect` returns the detections of each frame.
* `stages` turns detections into tracks, attributes, events, and counts, with the algorithms of `analytics`.
* `messaging` encodes each result as a message and publishes it over ZeroMQ.

docs/architecture.md describes every folder and thread, and where to add a camera library, a model head, a stage, or a
sink.
"""
