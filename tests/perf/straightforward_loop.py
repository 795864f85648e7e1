"""Simple loop in one thread, for comparison: VideoCapture -> resize -> ONNX Runtime -> NMSBoxes -> JSON -> ZeroMQ.

    python -m tests.perf.straightforward_loop MODEL.onnx VIDEO

The command prints one line of JSON: the number of frames and the duration in seconds, both without the first five
frames. It supports only NanoDet (models/nanodet-g-416).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import cv2
import numpy as np
import onnxruntime
import zmq

SIDE, BINS, SCORE, IOU = 416, 11, 0.35, 0.6
MEAN = np.array([103.53, 116.28, 123.675], np.float32)
STD = np.array([57.375, 57.12, 58.395], np.float32)


def cells() -> tuple[np.ndarray, np.ndarray]:
    centers, strides = [], []
    for stride in (8, 16, 32):
        axis = np.arange(SIDE // stride) * stride + (stride - 1) / 2
        y, x = np.meshgrid(axis, axis, indexing="ij")
        centers.append(np.stack([x.ravel(), y.ravel()], 1))
        strides.append(np.full(x.size, stride))
    return np.concatenate(centers).astype(np.float32), np.concatenate(strides).astype(np.float32)


def detect(session: Any, frame: np.ndarray, centers: np.ndarray, strides: np.ndarray) -> list[dict[str, Any]]:
    height, width = frame.shape[:2]
    scale = min(SIDE / width, SIDE / height)
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    resized = cv2.resize(frame, (round(width * scale), round(height * scale)))
    canvas[: resized.shape[0], : resized.shape[1]] = resized
    tensor = ((canvas - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]
    scores, distances = (output[0] for output in session.run(["scores", "distances"], {"images": tensor}))
    class_ids, best = scores.argmax(1), scores.max(1)
    keep = np.flatnonzero(best > SCORE)
    bins = distances[keep].reshape(-1, 4, BINS)
    weights = np.exp(bins - bins.max(2, keepdims=True))
    sides = (weights / weights.sum(2, keepdims=True) * np.arange(BINS)).sum(2) * strides[keep, None]
    boxes = np.concatenate([centers[keep] - sides[:, :2], centers[keep] + sides[:, 2:]], 1) / scale
    objects = []
    for class_id in set(class_ids[keep].tolist()):
        of_class = np.flatnonzero(class_ids[keep] == class_id)
        rectangles = [[float(x1), float(y1), float(x2 - x1), float(y2 - y1)] for x1, y1, x2, y2 in boxes[of_class]]
        for index in cv2.dnn.NMSBoxes(rectangles, best[keep][of_class].tolist(), SCORE, IOU):
            row = of_class[index]
            objects.append({"class_id": class_id, "score": float(best[keep][row]), "box": boxes[row].tolist()})
    return objects


def main(model: str, video: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.bind_to_random_port("tcp://127.0.0.1")
    centers, strides = cells()
    capture = cv2.VideoCapture(video)
    frames, began = 0, 0.0
    while True:
        found, frame = capture.read()
        if not found:
            break
        objects = detect(session, frame, centers, strides)
        socket.send_multipart([b"detections", json.dumps({"frame": frames, "objects": objects}).encode()])
        frames += 1
        if frames == 5:  # ONNX Runtime allocates its buffers in the first runs
            began = time.perf_counter()
    print(json.dumps({"frames": frames - 5, "seconds": time.perf_counter() - began}))
    socket.close(0)
    context.term()


if __name__ == "__main__":
    main(*sys.argv[1:])
