"""Streaming video analytics: reads many cameras, detects, tracks and counts objects, and publishes the results.

A frame passes these folders in this order::

    capture -> runtime -> detect -> stages -> messaging
    frame      batch      detections  tracks, events, counts  message

* `capture` reads a frame from a camera into the camera's `LatestSlot`.
* `runtime` forms a batch of the newest frames and submits it to the detector.
* `detect` returns the detections of each frame.
* `stages` turn detections into tracks, attributes, events and counts, with the algorithms of `analytics`.
* `messaging` encodes each result as a message and publishes it over ZeroMQ.

Where to add something:

* a camera library: a folder in `capture`, and a branch in `capture/open.py`
* a model head: `detect/reference/heads.py` and `detect/tensorrt/cuda/heads.cuh`
* a kind of rule: `config/rules.py` and `stages/rules.py`
* a stage: `stages/stage.py` has the protocol, `pipelines/` says which stages run
* a sink: `runtime/status.py`

`vision.runtime.runtime` starts and joins the threads:

=================  ============  =====================================================================
thread             count         work
=================  ============  =====================================================================
camera-<id>        1 per camera  opens the source, reads frames into the newest buffer of its `LatestSlot`
inference          1             forms batches of the newest frames, submits them, waits for the oldest
detector-<n>       0 or more     works for a CPU detector; a GPU detector has none
results            1             runs the stages of a pipeline, publishes, records
publisher          1             sends the last status of every camera to new subscribers
replay, journal    0 or 1        resend missed events on request; write new events to disk
cascade            0 or 1        runs a second model on parts of frames
snapshots          0 or 1        writes frames of events
watchdog           0 or 1        ends the process when no thread can run Python
main               1             handles signals, reports the status, checks that the inference thread makes progress
=================  ============  =====================================================================

docs/architecture.md describes every folder.
"""
