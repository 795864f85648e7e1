"""Streaming video analytics: many cameras, one small computer, detections over ZeroMQ.

The tree is the data's way::

    capture -> batching -> detect -> (track -> cascade -> analytics -> rules -> snapshots ->) publish

Who runs what (`vision.runtime.runtime` starts and joins them all):

=================  =====  =====================================================================
thread             count  does
=================  =====  =====================================================================
camera-<id>        1 each opens the source, reads into the newest buffer of its `LatestSlot`
inference          1      binds the freshest frames to a batch, submits it, waits for the oldest
detector-<slot>    0..n   a CPU detector's workers; a GPU detector has none
results            1      pipeline stages, messages, recording
publisher          1      answers subscribers that join with the last status of every camera
replay, journal    0..1   send missed events to who asks; force new ones to disk
cascade            0..1   a second model on parts of frames
snapshots          0..1   writes frames of events
watchdog           0..1   ends the process when a call keeps the interpreter for ever
main               1      signals, status line; whether the inference thread still moves
=================  =====  =====================================================================
"""
