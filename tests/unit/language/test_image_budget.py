"""Tests of the limit for waiting images, and of the share of each camera."""

from __future__ import annotations

import random

import pytest

from vision.language.image_budget import ImageBudget

pytestmark = pytest.mark.unit


def test_the_camera_with_the_most_bytes_loses_its_oldest_question() -> None:
    budget = ImageBudget[str](100)
    assert budget.add("a", "a1", 40) == []
    assert budget.add("b", "b1", 20) == []
    assert budget.add("a", "a2", 30) == []
    assert budget.add("b", "b2", 20) == ["a1"]
    assert budget.nbytes == 70


def test_a_question_that_is_too_large_displaces_only_its_camera() -> None:
    budget = ImageBudget[str](100)
    budget.add("a", "a1", 60)
    assert budget.add("b", "b1", 200) == ["b1"]
    assert budget.nbytes == 60


def test_images_of_one_question_are_added_up() -> None:
    budget = ImageBudget[str](100)
    assert budget.add("a", "a1", 60) == []
    assert budget.add("a", "a1", 60) == ["a1"]
    budget.remove("a", "a1")
    assert budget.nbytes == 0


@pytest.mark.parametrize("seed", range(50))
def test_the_limit_holds_and_small_shares_are_kept(seed: int) -> None:
    chance, budget = random.Random(seed), ImageBudget[int](1000)
    held: dict[int, tuple[str, int]] = {}
    for question in range(400):
        camera, nbytes = chance.choice("aaaaaabc"), chance.randint(1, 300)
        held[question] = camera, nbytes
        for lost in budget.add(camera, question, nbytes):
            used = {name: sum(size for each, size in held.values() if each == name) for name in "abc"}
            assert used[held[lost][0]] == max(used.values())
            assert lost == min(number for number, (name, _) in held.items() if name == held[lost][0])
            del held[lost]
        if held and chance.random() < 0.2:
            gone = chance.choice(list(held))
            budget.remove(held.pop(gone)[0], gone)
        assert budget.nbytes == sum(size for _, size in held.values()) <= 1000
