"""`CountModel` computes an interval for the true total from a counted total.

`vision eval` writes the data of the model: the errors of counts in blocks of a labeled video. The model treats missed
and false counts as overdispersed Poisson variables whose means are proportional to the count. The width of the interval
includes the uncertainty of the fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final, NamedTuple, TypeAlias

from vision.config.user_files import read_input
from vision.errors import ConfigError, from_os_error

SCHEMA: Final = "vision.accuracy/1"
BLOCK_S: Final = 20.0
"""Duration of a block in seconds. Most crossings are shorter, so the errors of blocks are independent."""

_LEAST_BLOCKS: Final = 4  # with fewer blocks, the dispersion is unknown
_PRIOR: Final = 0.5  # errors that are added, as in Jeffreys' prior: even a perfect sample leaves some uncertainty
_COVERED: Final = 0.95  # probability that an interval contains the true value


class CountBlock(NamedTuple):
    """True, missed, and false counts of crossings, entries, or exits in one block of a labeled video."""

    true: int  # number of labeled passages
    missed: int  # number of labeled passages that were not counted
    false: int  # number of counted passages that are not labeled

    @property
    def counted(self) -> int:
        return self.true - self.missed + self.false


Clip: TypeAlias = Mapping[str, Mapping[str, Sequence[CountBlock]]]
"""Blocks of one labeled video, by line or zone, and by the key of the count, such as ``in``."""


@dataclass(frozen=True, slots=True)
class CountModel:
    """Model of the errors of one count, such as the ``in`` count of a line. Rates are errors per counted object."""

    missed_rate: float
    false_rate: float
    dispersion: float  # variance of the errors divided by the variance of Poisson variables, at least 1
    counted: int  # number of counted objects in the data
    blocks: int  # number of blocks in the data

    @classmethod
    def fit(cls, blocks: Sequence[CountBlock]) -> CountModel | None:
        """Fit the model to blocks. Return None if there are fewer than four blocks, or if nothing was counted."""
        counted = sum(block.counted for block in blocks)
        if len(blocks) < _LEAST_BLOCKS or not counted:
            return None
        missed = (sum(block.missed for block in blocks) + _PRIOR) / (counted + 1)
        false = (sum(block.false for block in blocks) + _PRIOR) / (counted + 1)
        residuals = (block.missed - block.false - (missed - false) * block.counted for block in blocks)
        freedom = 1 - 1 / len(blocks)
        dispersion = sum(residual**2 for residual in residuals) / ((missed + false) * counted * freedom)
        return cls(missed, false, max(1.0, dispersion), counted, len(blocks))

    def interval(self, count: int) -> tuple[int, int]:
        """Return the lower and the upper limit of the 95 % interval of the true number, given the counted number.

        The limits are Cornish-Fisher approximations of quantiles, with Student's t instead of the normal distribution.
        """
        missed, false = self.missed_rate * (count + 1), self.false_rate * count
        fit = (self.missed_rate + self.false_rate) * count**2 / (self.counted + 1)
        deviation = math.sqrt(self.dispersion * (missed + false + fit))
        skewness = self.dispersion**2 * (missed - false) / deviation**3
        quantile = _student(self.blocks - 1)
        middle = count + missed - false + deviation * (quantile**2 - 1) * max(-1.0, min(1.0, skewness)) / 6
        low, high = middle - quantile * deviation, middle + quantile * deviation
        return max(0, round(low)), max(0, round(high))


@dataclass(frozen=True, slots=True)
class CountAccuracy:
    """`CountModel` of each count of one camera, by name of the line or zone, and by key of the count."""

    models: Mapping[str, Mapping[str, CountModel]]

    @classmethod
    def of_clips(cls, clips: Iterable[Clip]) -> CountAccuracy:
        """Fit a model to each count that occurs in the clips. Omit counts for which `CountModel.fit` returns None."""
        blocks: dict[str, dict[str, list[CountBlock]]] = {}
        for clip in clips:
            for name, counts in clip.items():
                for key, added in counts.items():
                    blocks.setdefault(name, {}).setdefault(key, []).extend(added)
        fitted = {name: {key: CountModel.fit(data) for key, data in counts.items()} for name, counts in blocks.items()}
        return cls(
            {
                name: {key: model for key, model in models.items() if model is not None}
                for name, models in fitted.items()
            }
        )

    def intervals(self, counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the 95 % interval of each of `counts` that has a model, by line or zone, and by key."""
        return {
            name: {key: model.interval(counts[name][key]) for key, model in models.items() if key in counts[name]}
            for name, models in self.models.items()
            if name in counts
        }


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t for `freedom` degrees of freedom (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf((1 + _COVERED) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / float(freedom**power) for power, term in enumerate(terms))


# --- files ------------------------------------------------------------------------------------------------------------


def load_clips(path: Path) -> dict[str, Clip]:
    """Return the clips of an accuracy file, by name.

    Raises:
        ConfigError: the file cannot be read, or is not a valid file from `vision eval --accuracy`.
        Unavailable: the file cannot currently be read, for example because the disk fails.
    """
    hint = "write it with `vision eval CONFIG --truth GT.txt --accuracy FILE`"
    try:
        document = json.loads(read_input(path))
    except OSError as error:
        raise from_os_error(f"accuracy: cannot read {path}", error, hint=hint, code="not-readable") from error
    except ValueError as error:
        raise ConfigError(f"accuracy: {path} is not JSON: {error}", hint=hint, code="invalid-accuracy") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        fault = f"accuracy: expected a file with the schema {SCHEMA}, got {path}"
        raise ConfigError(fault, hint=hint, code="invalid-accuracy")
    try:
        return {str(name): _read_clip(clip) for name, clip in document["clips"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"accuracy: {path}: expected blocks [true, missed, false] by clip, line or zone, and count"
        raise ConfigError(fault, hint=hint, code="invalid-accuracy") from error


def _read_clip(clip: Mapping[str, Any]) -> Clip:
    return {
        str(name): {str(key): [_read_block(block) for block in blocks] for key, blocks in counts.items()}
        for name, counts in clip.items()
    }


def _read_block(values: Sequence[Any]) -> CountBlock:
    block = CountBlock(*values)
    if not all(type(value) is int and value >= 0 for value in block) or block.missed > block.true:
        raise ValueError(f"invalid block {values}")
    return block


def dump_clips(clips: Mapping[str, Clip]) -> str:
    """Return the contents of an accuracy file with these clips. The keys of `clips` are the names of the clips."""
    return json.dumps({"schema": SCHEMA, "block_s": BLOCK_S, "clips": clips}, indent=1) + "\n"
