"""Scenes of the simulator: cameras, moving objects, obstacles, lines, and zones.

A function builds each scene from a random generator, so the same seed always gives the same scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from vision.evaluation.simulation.actors import Actor, rest, travel
from vision.evaluation.simulation.projection import CameraView

Place: TypeAlias = tuple[float, float]
"""A position x, y on the ground in meters."""
Rng: TypeAlias = np.random.Generator

ARRIVALS_S: Final = 50.0  # approximate time at which the last object appears
_TAIL_S: Final = 3.0  # duration of the scene after the last object has left
_LONGEST_S: Final = 150.0  # maximum duration of a scene


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Solid object that hides objects behind it, and is never detected."""

    place_m: Place  # center of the base
    size_m: tuple[float, float, float]  # length, width, height


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects, obstacles, lines, and zones. Places are on the ground, in meters."""

    name: str
    view: CameraView
    actors: tuple[Actor, ...]
    lines_m: Mapping[str, tuple[Place, Place]] = field(default_factory=dict)
    zones_m: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    obstacles: tuple[Obstacle, ...] = ()

    @property
    def duration_s(self) -> float:
        """Duration in seconds: until 3 s after the last moving object has left, but at most 150 s."""
        ends = [float(actor.times_s[-1]) for actor in self.actors]
        return min(max((end for end in ends if end < _LONGEST_S), default=0.0) + _TAIL_S, _LONGEST_S)


def _person_speed(rng: Rng) -> float:
    """Return a random walking speed from 0.7 to 2.2 m/s.

    The mean is 1.34 m/s, and the standard deviation is 0.26 m/s (Weidmann, "Transporttechnik der Fussgänger", 1993).
    """
    return float(np.clip(rng.normal(1.34, 0.26), 0.7, 2.2))


def _starts(rng: Rng, count: int, last_s: float = ARRIVALS_S) -> list[float]:
    return sorted(rng.uniform(0.0, last_s, count).tolist())


def plaza(rng: Rng) -> Scene:
    """Return a scene in which people walk over a square in all directions."""
    view = CameraView(height_m=6.0, tilt_deg=25.0)
    actors = []
    for start_s in _starts(rng, 26):
        angle = rng.uniform(0, 2 * math.pi)
        way = np.array([math.cos(angle), math.sin(angle)]) * 14.0
        center = np.array([rng.uniform(-4, 4), 14.0 + rng.uniform(-4, 4)])
        bend = center + rng.normal(0, 1.0, 2)
        points = [tuple(center - way), tuple(bend), tuple(center + way)]
        actors.append(travel("person", points, _person_speed(rng), start_s))
    lines = {"across": ((-6.0, 13.0), (6.0, 13.0)), "along": ((0.0, 8.0), (0.0, 22.0))}
    zones = {"middle": ((-3.0, 11.0), (3.0, 11.0), (3.0, 17.0), (-3.0, 17.0))}
    return Scene("plaza", view, tuple(actors), lines, zones)


def _lane(
    rng: Rng, kinds: Sequence[str], speeds: tuple[float, float], offsets: Sequence[float], *, towards: bool, count: int
) -> list[Actor]:
    """Return `count` actors that move along lanes in the direction of view, one after the other, without collisions.

    Args:
        rng: generator of the kinds, lanes, speeds, and start times.
        kinds: names in `KINDS` to choose from.
        speeds: lowest and highest speed in m/s of actors that are not persons.
        offsets: distance of each lane from the middle of the view, in m.
        towards: True if the actors approach the camera, and False if they move away from it.
        count: number of actors.
    """
    actors = []
    free_s = dict.fromkeys(offsets, 0.0)
    for earliest_s in _starts(rng, count):
        kind = str(rng.choice(list(kinds)))
        offset = float(rng.choice(list(offsets)))
        speed = _person_speed(rng) if kind == "person" else float(rng.uniform(*speeds))
        start_s = max(earliest_s, free_s[offset])
        far = 45.0 if kind != "person" else 24.0
        points = [(offset, far), (offset, -6.0)] if towards else [(offset, -6.0), (offset, far)]
        actors.append(travel(kind, points, speed, start_s))
        free_s[offset] = start_s + (2.5 if kind != "person" else 1.2) + 2.0 / speed
    return actors


def approach(rng: Rng) -> Scene:
    """Return a scene in which cars and people approach a low camera and pass it."""
    view = CameraView(height_m=2.2, tilt_deg=8.0)
    cars = _lane(rng, ("car", "car", "truck"), (4.0, 10.0), (-2.5, 2.5), towards=True, count=14)
    people = _lane(rng, ("person",), (0, 0), (-5.5, 5.5), towards=True, count=8)
    lines = {"gate": ((-9.0, 10.0), (9.0, 10.0))}
    return Scene(
        "approach", view, (*cars, *people), lines, {"lane": ((-6.5, 8.0), (6.5, 8.0), (6.5, 16.0), (-6.5, 16.0))}
    )


def leaving(rng: Rng) -> Scene:
    """Return a scene in which cars, trucks, and people pass a low camera and move away from it."""
    view = CameraView(height_m=2.5, tilt_deg=10.0)
    cars = _lane(rng, ("car", "car", "truck"), (4.0, 10.0), (-2.5, 2.5), towards=False, count=14)
    people = _lane(rng, ("person",), (0, 0), (-5.5, 5.5), towards=False, count=8)
    lines = {"gate": ((-9.0, 10.0), (9.0, 10.0))}
    return Scene(
        "leaving", view, (*cars, *people), lines, {"lane": ((-6.5, 8.0), (6.5, 8.0), (6.5, 16.0), (-6.5, 16.0))}
    )


def turning(rng: Rng) -> Scene:
    """Return a scene in which cars turn at a junction, and people turn around."""
    view = CameraView(height_m=7.0, tilt_deg=22.0, field_of_view_deg=80.0)
    actors = []
    free_s = 0.0
    for earliest_s in _starts(rng, 12):
        start_s = max(earliest_s, free_s)
        side = float(rng.choice([-1.0, 1.0]))
        arms = [
            [(side * 26.0, 18.0), (side * 1.8, 18.0), (side * 1.8, -4.0)],
            [(-side * 1.8, -4.0), (-side * 1.8, 20.0), (side * 26.0, 20.0)],
        ]
        actors.append(travel("car", arms[int(rng.integers(2))], float(rng.uniform(4.0, 7.0)), start_s))
        free_s = start_s + 4.0
    for start_s in _starts(rng, 10):
        side = float(rng.choice([-1.0, 1.0]))
        far = (side * rng.uniform(4.0, 6.0), rng.uniform(15.0, 22.0))
        points = [(side * 12.0, rng.uniform(9.0, 11.0)), far, (side * 12.0, rng.uniform(11.5, 13.0))]
        actors.append(travel("person", points, _person_speed(rng), start_s))
    lines = {"stem": ((-6.0, 12.0), (6.0, 12.0)), "arm": ((9.0, 15.0), (9.0, 24.0))}
    return Scene(
        "turning", view, tuple(actors), lines, {"junction": ((-7.0, 14.0), (7.0, 14.0), (7.0, 23.0), (-7.0, 23.0))}
    )


def stops(rng: Rng) -> Scene:
    """Return a scene in which people and cars stop before, on, and behind a line, and then continue or turn back."""
    view = CameraView(height_m=5.0, tilt_deg=22.0)
    actors = []
    for start_s in _starts(rng, 16):
        x = rng.uniform(-7.0, 3.0)
        direction = float(rng.choice([-1.0, 1.0]))
        points: list[Place] = [(x, 14.0 - direction * 6.0), (x + rng.uniform(-1, 1), 14.0 + direction * 6.0)]
        pause = {float(rng.uniform(0.35, 0.65)): float(rng.uniform(2.0, 12.0))}
        if rng.random() < 0.3:
            points.append((points[0][0] + 2.0, points[0][1]))
            pause = {float(rng.uniform(0.2, 0.8)): float(rng.uniform(2.0, 8.0))}
        actors.append(travel("person", points, _person_speed(rng), start_s, stops=pause))
    free_s = 0.0
    for earliest_s in _starts(rng, 5):
        start_s = max(earliest_s, free_s)
        stop = {float(rng.uniform(0.4, 0.6)): float(rng.uniform(2.0, 6.0))}
        actors.append(travel("car", [(7.0, 40.0), (7.0, -4.0)], 6.0, start_s, stops=stop))
        free_s = start_s + 14.0
    lines = {"stop": ((-11.0, 14.0), (11.0, 14.0))}
    return Scene("stops", view, tuple(actors), lines, {"front": ((-10.0, 9.0), (4.0, 9.0), (4.0, 14.0), (-10.0, 14.0))})


def parking(rng: Rng) -> Scene:
    """Return a scene in which cars park in a row of parked cars and then leave, while people walk past."""
    view = CameraView(height_m=6.0, tilt_deg=22.0, field_of_view_deg=80.0)
    spaces = rng.permutation(6)
    actors = [rest("car", (-8.0 + 3.2 * float(space), 19.0), math.pi / 2, _LONGEST_S) for space in spaces[:2]]
    free_s = 0.0
    for space in spaces[2:]:
        x = -8.0 + 3.2 * float(space)
        start_s = free_s + float(rng.uniform(0.5, 3.0))
        points = [(-24.0, 12.0), (x, 12.0), (x, 19.0), (x, 12.0), (24.0, 12.0)]
        first = math.hypot(x + 24.0, 0.0) + 7.0
        whole = first + 7.0 + abs(24.0 - x)
        actors.append(travel("car", points, 3.5, start_s, stops={first / whole: float(rng.uniform(12.0, 20.0))}))
        free_s = start_s + 7.0
    for start_s in _starts(rng, 8):
        direction = float(rng.choice([-1.0, 1.0]))
        y = rng.uniform(14.0, 15.5)
        actors.append(travel("person", [(-direction * 14.0, y), (direction * 14.0, y)], _person_speed(rng), start_s))
    lines = {"entry": ((-11.0, 9.0), (-11.0, 16.0))}
    return Scene(
        "parking", view, tuple(actors), lines, {"spaces": ((-10.0, 16.5), (10.5, 16.5), (10.5, 22.0), (-10.0, 22.0))}
    )


def groups(rng: Rng) -> Scene:
    """Return a scene in which groups of people walk side by side, meet, and pass through each other."""
    view = CameraView(height_m=5.0, tilt_deg=20.0)
    actors = []
    for start_s in _starts(rng, 9):
        direction = float(rng.choice([-1.0, 1.0]))
        y, speed = rng.uniform(10.0, 18.0), _person_speed(rng)
        for _ in range(int(rng.integers(2, 6))):
            own = y + rng.uniform(-1.2, 1.2)
            delay_s = float(rng.uniform(0.0, 1.2))
            points = [(-direction * 14.0, own), (0.0, own + rng.uniform(-0.8, 0.8)), (direction * 14.0, own)]
            actors.append(travel("person", points, speed * float(rng.uniform(0.97, 1.03)), start_s + delay_s))
    lines = {"middle": ((0.0, 7.0), (0.0, 22.0))}
    return Scene("groups", view, tuple(actors), lines, {"right": ((1.0, 9.0), (6.0, 9.0), (6.0, 19.0), (1.0, 19.0))})


def waiting(rng: Rng) -> Scene:
    """Return a scene in which groups of people arrive, stand together, and leave, while other people pass by."""
    view = CameraView(height_m=4.5, tilt_deg=20.0)
    actors = []
    for start_s, spot in zip(_starts(rng, 6, 35.0), rng.permutation(6).tolist(), strict=True):
        middle = (-5.0 + 3.6 * (spot % 3), 11.0 + 4.5 * (spot // 3))
        direction, size = float(rng.choice([-1.0, 1.0])), int(rng.integers(2, 5))
        for member in range(size):
            angle = 2.0 * math.pi * (member + float(rng.uniform(-0.15, 0.15))) / size
            place = (middle[0] + 0.75 * math.cos(angle), middle[1] + 0.75 * math.sin(angle))
            points = [(-direction * 14.0, place[1]), place, (direction * 14.0, place[1] + rng.uniform(-1, 1))]
            arrival = abs(points[1][0] - points[0][0]) / 28.0
            stay = {arrival: float(rng.uniform(6.0, 25.0))}
            actors.append(travel("person", points, _person_speed(rng), start_s + rng.uniform(0.0, 1.5), stops=stay))
    for start_s in _starts(rng, 6):
        direction, y = float(rng.choice([-1.0, 1.0])), float(rng.uniform(8.0, 9.0))
        actors.append(travel("person", [(-direction * 14.0, y), (direction * 14.0, y)], _person_speed(rng), start_s))
    lines = {"left": ((-7.5, 7.0), (-7.5, 20.0)), "right": ((5.0, 7.0), (5.0, 20.0))}
    return Scene("waiting", view, tuple(actors), lines, {"place": ((-7.0, 9.5), (4.5, 9.5), (4.5, 18.0), (-7.0, 18.0))})


def gate(rng: Rng) -> Scene:
    """Return a scene in which cars and trucks stop at a gate. Each vehicle fills almost half of the frame."""
    view = CameraView(height_m=2.5, tilt_deg=18.0)
    actors = []
    free_s = 0.0
    for _ in range(6):
        start_s, stop_s = free_s + float(rng.uniform(0.5, 3.0)), float(rng.uniform(2.0, 7.0))
        kind, speed = str(rng.choice(["car", "car", "truck"])), float(rng.uniform(4.0, 6.0))
        x, at = float(rng.uniform(1.6, 2.2)), 4.6 if kind == "car" else 7.0
        points = [(x, 45.0), (x, -8.0)]
        actors.append(travel(kind, points, speed, start_s, stops={(45.0 - at) / 53.0: stop_s}))
        free_s = start_s + stop_s + 6.0
    for start_s in _starts(rng, 6):
        x = float(rng.uniform(-3.5, -1.0))
        points = [(x, 24.0), (x, -2.0)]
        points = points if rng.random() < 0.5 else points[::-1]
        actors.append(travel("person", points, _person_speed(rng), start_s))
    lines = {"gate": ((-5.0, 10.0), (5.0, 10.0))}
    return Scene("gate", view, tuple(actors), lines, {"front": ((0.2, 1.5), (3.6, 1.5), (3.6, 8.0), (0.2, 8.0))})


def edges(rng: Rng) -> Scene:
    """Return a scene in which people near the camera cross every edge of the frame, which cuts off their boxes."""
    view = CameraView(height_m=3.0, tilt_deg=30.0, field_of_view_deg=60.0)
    actors = []
    for start_s in _starts(rng, 24):
        way = int(rng.integers(4))
        if way < 2:
            direction, y = (-1.0, 1.0)[way], rng.uniform(3.0, 8.0)
            points = [(-direction * 9.0, y), (direction * 9.0, y + rng.uniform(-1, 1))]
        else:
            x = rng.uniform(-2.0, 2.0)
            points = [(x, 16.0), (x + rng.uniform(-1, 1), -2.0)]
            points = points if way == 2 else points[::-1]
        actors.append(travel("person", points, _person_speed(rng), start_s))
    lines = {"across": ((-4.0, 5.0), (4.0, 5.0)), "side": ((1.0, 3.2), (1.0, 12.0))}
    return Scene("edges", view, tuple(actors), lines, {"near": ((-1.5, 3.0), (1.5, 3.0), (2.5, 6.0), (-2.5, 6.0))})


def occlusion(rng: Rng) -> Scene:
    """Return a scene in which people walk behind pillars, a kiosk, and a parked truck."""
    view = CameraView(height_m=4.0, tilt_deg=18.0)
    pillars = [Obstacle((float(x), 9.0), (0.5, 0.5, 4.0)) for x in (-5.0, -1.5, 2.0, 5.5)]
    obstacles = (*pillars, Obstacle((-3.3, 12.0), (1.6, 1.6, 2.6)))
    actors = [rest("truck", (5.0, 13.0), 0.0, _LONGEST_S)]
    for start_s in _starts(rng, 20):
        direction = float(rng.choice([-1.0, 1.0]))
        y = float(rng.uniform(10.0, 17.0))
        if 11.0 < y < 15.0:
            y += 4.0  # around the kiosk and the truck
        points = [(-direction * 14.0, y), (direction * 14.0, y + rng.uniform(-0.5, 0.5))]
        actors.append(travel("person", points, _person_speed(rng), start_s))
    lines = {"middle": ((0.0, 7.5), (0.0, 22.0)), "hidden": ((-3.3, 7.5), (-3.3, 22.0))}
    return Scene(
        "occlusion",
        view,
        tuple(actors),
        lines,
        {"left": ((-9.0, 9.5), (-4.5, 9.5), (-4.5, 19.0), (-9.0, 19.0))},
        obstacles,
    )


def street(rng: Rng) -> Scene:
    """Return a scene in which cars, trucks, cyclists, and people move in both directions below a wide-angle camera."""
    view = CameraView(height_m=8.0, tilt_deg=24.0, field_of_view_deg=85.0, distortion=-0.08)
    actors: list[Actor] = []
    for y, direction in ((14.0, 1.0), (18.0, -1.0)):
        free_s = 0.0
        for earliest_s in _starts(rng, 9):
            start_s = max(earliest_s, free_s)
            kind = str(rng.choice(["car", "car", "truck", "bicycle"]))
            speed = float(rng.uniform(3.5, 6.0) if kind == "bicycle" else rng.uniform(6.0, 9.0))
            actors.append(travel(kind, [(-direction * 32.0, y), (direction * 32.0, y)], speed, start_s))
            free_s = start_s + 7.0 + 20.0 / speed
    for start_s in _starts(rng, 12):
        direction, y = float(rng.choice([-1.0, 1.0])), float(rng.choice([10.0, 22.5])) + rng.uniform(-0.6, 0.6)
        actors.append(travel("person", [(-direction * 22.0, y), (direction * 22.0, y)], _person_speed(rng), start_s))
    lines = {"section": ((0.0, 8.5), (0.0, 24.0))}
    return Scene(
        "street", view, tuple(actors), lines, {"crossing": ((3.0, 12.0), (7.0, 12.0), (7.0, 20.0), (3.0, 20.0))}
    )


def doorway(rng: Rng) -> Scene:
    """Return a scene in which people pass a door in both directions, below a camera that looks down steeply."""
    view = CameraView(height_m=3.4, tilt_deg=52.0, field_of_view_deg=75.0)
    actors = []
    for start_s in _starts(rng, 24):
        x = float(rng.uniform(-1.4, 1.4))
        points = [(x, 10.0), (x * 0.7, 2.5), (x * 0.7, -3.0)]
        points = points if rng.random() < 0.5 else points[::-1]
        actors.append(travel("person", points, _person_speed(rng), start_s))
    lines = {"door": ((-2.2, 2.6), (2.2, 2.6))}
    return Scene("doorway", view, tuple(actors), lines, {"mat": ((-1.5, 2.0), (1.5, 2.0), (1.5, 3.6), (-1.5, 3.6))})


SCENES: Final[Mapping[str, Callable[[Rng], Scene]]] = {
    build.__name__: build
    for build in (
        *(plaza, approach, leaving, turning, stops, parking, groups),
        *(waiting, gate, edges, occlusion, street, doorway),
    )
}


def build_scene(name: str, seed: int) -> Scene:
    """Build a scene of the simulator.

    Args:
        name: a name in `SCENES`.
        seed: an integer of at least 0. The same seed always gives the same scene.
    """
    return SCENES[name](np.random.default_rng((seed, sum(name.encode()))))
