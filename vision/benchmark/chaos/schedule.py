"""Kinds of faults, and schedules of faults. Equal arguments give equal schedules."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal[
    "camera-down",
    "camera-stall",
    "freeze",
    "corrupt",
    "loss",
    "jitter",
    "clock-jump",
    "resize",
    "stuck-call",
    "subscriber-stop",
    "subscriber-flood",
    "disk-full",
    "disk-slow",
    "process-stop",
    "worker-kill",
    "program-kill",
    "detector-hang",
]

HANG_S: Final = 6.0
"""`hang_s` of the program during a run."""

ROUND_S: Final = 24.0
"""Minimum duration of a round in seconds. A shorter run consists of one shorter round.

In the first part of a round, no fault starts. In the next part, faults start at random times.
"""

_QUIET: Final = 1 / 3  # first part of a round, in which no fault starts
_STARTS: Final = 1 / 4  # next part of a round, in which faults start
_FAULTS: Final = 3  # number of faults per round


@dataclass(frozen=True, slots=True)
class KindSpec:
    """Properties of a kind of fault, such as its duration and frequency."""

    text: str  # description for the user
    has_camera: bool  # True if the fault affects one camera
    shortest_s: float  # minimum duration; 0 for a fault that ends by itself
    longest_s: float  # maximum duration; 0 for a fault that ends by itself
    weight: int  # relative frequency


KINDS: Final[Mapping[Kind, KindSpec]] = MappingProxyType(
    {
        "camera-down": KindSpec("the camera resets all connections, and refuses new ones", True, 1, 8, 6),
        "camera-stall": KindSpec("the camera sends nothing, and keeps its connections open", True, 1, 8, 6),
        "freeze": KindSpec("the camera repeats one frame", True, 2, 14, 5),
        "corrupt": KindSpec("the camera changes bytes in 5 % of its packets", True, 1, 6, 5),
        "loss": KindSpec("the camera leaves out 5 % of its packets", True, 1, 6, 5),
        "jitter": KindSpec("the camera sends frames up to 0.4 s late", True, 2, 6, 5),
        "clock-jump": KindSpec("the camera's clock is an hour ahead", True, 2, 8, 5),
        "resize": KindSpec("the camera sends larger frames", True, 2, 8, 5),
        "stuck-call": KindSpec("a call to the library that reads the camera does not return", True, 1, 10, 5),
        "subscriber-stop": KindSpec("a subscriber stays connected, but reads nothing", False, 2, 8, 3),
        "subscriber-flood": KindSpec("subscribers connect, subscribe, send invalid data, and leave", False, 2, 6, 3),
        "disk-full": KindSpec("writing to the disk of `state_dir` fails", False, 1, 6, 3),
        "disk-slow": KindSpec("forcing data to disk takes 2 s", False, 2, 6, 3),
        "process-stop": KindSpec("one process of the program is suspended", False, 0.5, 4, 2),
        "worker-kill": KindSpec("one process that the program has started is killed", False, 0, 0, 3),
        "program-kill": KindSpec("the program is killed, and started again", False, 0, 0, 1),
        "detector-hang": KindSpec("a call to the detector does not return, until the program ends", False, 0, 0, 1),
    }
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a schedule: its kind, its start, its duration, and its target."""

    number: int  # from 1
    at_s: float  # time after the start of the schedule
    kind: Kind
    camera: int | None  # index of the camera; None if the fault does not belong to a camera
    duration_s: float  # 0 if the fault ends by itself
    choice: float  # from 0 to 1; selects the process of a fault that affects one of several

    def __str__(self) -> str:
        """Return the fault as one line, such as ``#3 at 41.2 s: freeze of camera 2 for 8.1 s``."""
        camera = "" if self.camera is None else f" of camera {self.camera}"
        duration = f" for {self.duration_s:.1f} s" if self.duration_s else ""
        return f"#{self.number} at {self.at_s:.1f} s: {self.kind}{camera}{duration}"


def make_schedule(seed: int, seconds: float, cameras: int, kinds: Sequence[Kind]) -> tuple[Fault, ...]:
    """Return the faults of a run of `seconds` seconds, in the order of their start.

    Equal arguments give equal schedules. A run consists of equal rounds of at least 24 s with three faults each. A run
    of less than 24 s has one round, with shorter faults. Each of `kinds` is chosen once before any kind is repeated. No
    camera has two faults in one round. If a round has no camera left for a fault, the fault is omitted.

    Args:
        seed: seed of the random choices.
        seconds: duration of the run.
        cameras: number of cameras.
        kinds: kinds of faults to choose from.
    """
    choose = random.Random(f"{seed} {seconds} {cameras} {' '.join(kinds)}")
    rounds = max(1, int(seconds // ROUND_S))
    round_s = seconds / rounds
    queue: list[Kind] = []
    faults: list[Fault] = []
    for index in range(rounds):
        starts_s = sorted(index * round_s + round_s * (_QUIET + _STARTS * choose.random()) for _ in range(_FAULTS))
        free = list(range(cameras))
        choose.shuffle(free)
        for at_s in starts_s:
            if not queue:
                queue = _shuffled(kinds, choose, once=not faults)
            kind = queue.pop()
            spec = KINDS[kind]
            if spec.has_camera and not free:
                continue
            camera = free.pop() if spec.has_camera else None
            scale = min(1.0, round_s / ROUND_S)
            duration_s = round(choose.uniform(spec.shortest_s, max(spec.shortest_s, spec.longest_s * scale)), 2)
            faults.append(Fault(len(faults) + 1, round(at_s, 2), kind, camera, duration_s, choose.random()))
    return tuple(faults)


def _shuffled(kinds: Sequence[Kind], choose: random.Random, *, once: bool) -> list[Kind]:
    """Return the kinds in random order: once each if `once` is True, otherwise as often as `KindSpec.weight` says."""
    queue = [kind for kind in kinds for _ in range(1 if once else KINDS[kind].weight)]
    choose.shuffle(queue)
    return queue
