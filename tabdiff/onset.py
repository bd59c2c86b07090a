"""When did it begin? Where the evidence against each sensor stayed above what is usual, told from the flags around it.

Flags come from windows, which are abnormal as a whole: they begin up to a window before what caused them, and after it where it begins weakly.
Evidence is sharper, a few steps around each place. Summed up from where it rises, and never below 0 or above what is certain (the cumulative
sums of Page 1954), it says of each sensor in which spells it was out of the ordinary; the sensors that carry the event say when that was.

Places come one by one or all at once with the same result; the state is plain values, a few for each sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

_AT_MOST = 4.0  # what one place can say
_CERTAIN = 50.0  # what the places of a spell say together, at most
_CLEAR = 1.0  # what a place must say to go on with a spell that is certain
_COUNTS = 0.5  # of the most that a spell says, what another must say to be part of it
_CARRIES = 0.25  # of the largest contribution, what a sensor must add to be asked
_SAYS = 0.5  # of the most that a sensor says, times its contribution, what another must say

_Spell = tuple[int, int, float]


@dataclass
class Onset:
    """Spells of each of C sensors from place `first` on.

    Attributes:
        first, next: places: the first that was taken in, and the one to come.
        sums, most: of the spell that goes on: what its places say together by now, and at most.
        begins, ends: where it began, and where it said the most.
        spells: of each sensor, (begin, end, what it says) of those before, as far as they can count.
    """

    first: int
    next: int
    sums: list[float]
    most: list[float]
    begins: list[int]
    ends: list[int]
    spells: list[list[_Spell]] = field(default_factory=list)

    @classmethod
    def at(cls, place: int, sensors: int) -> Onset:
        """Nothing was taken in."""
        nothing, nowhere = [0.0] * sensors, [place] * sensors
        return cls(place, place, nothing, [*nothing], nowhere, [*nowhere], [[] for _ in range(sensors)])

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Onset:
        """Rebuild from plain values."""
        spells = [[(int(a), int(b), float(says)) for a, b, says in mine] for mine in values["spells"]]
        return cls(**{**values, "spells": spells})

    def take(self, excess: Float64[np.ndarray, "k c"]) -> None:
        """The next K places: by how much the evidence against each sensor passes what is usual; negative where it does not."""
        sums, most = np.array(self.sums), np.array(self.most)
        begins, ends = np.array(self.begins, dtype=np.int64), np.array(self.ends, dtype=np.int64)
        for place, step in enumerate(np.minimum(excess, _AT_MOST), self.next):
            begins[sums <= 0] = place
            sums = np.minimum(sums + step, _CERTAIN)
            # What is certain cannot become more so: then a step must be clear, or a little that is left would go on as the fault.
            higher = (sums > most) | ((step >= _CLEAR) & (sums >= most))
            most[higher], ends[higher] = sums[higher], place
            over = sums <= 0
            for sensor in np.flatnonzero(over & (most > 0)).tolist():
                spell = (int(begins[sensor]), int(ends[sensor]), float(most[sensor]))
                self.spells[sensor] = _that_count([*self.spells[sensor], spell])
            sums[over], most[over] = 0.0, 0.0
        self.next += len(excess)
        self.sums, self.most, self.begins, self.ends = sums.tolist(), most.tolist(), begins.tolist(), ends.tolist()

    def interval(self, contributions: Sequence[float], before: int, after: int) -> tuple[int, int] | None:
        """First and last place of what was out of the ordinary; None if no sensor that carries the event was.

        Args:
            contributions: what each sensor adds to the event.
            before, after: how many places the evidence of a place looks back and ahead. It rises when the newest of them is reached,
                and falls when the oldest is left behind.
        """
        carried = np.maximum(np.asarray(contributions), 0.0)
        said = []
        for sensor in np.flatnonzero((carried > 0) & (carried >= _CARRIES * carried.max())).tolist():
            going_on = (self.begins[sensor], self.ends[sensor], self.most[sensor])
            spells = _that_count([*self.spells[sensor], *([going_on] if self.most[sensor] > 0 else [])])
            if spells:
                most = max(says for _, _, says in spells)
                said.append((carried[sensor] * most, spells[0][0], spells[-1][1]))
        if not said:
            return None
        enough = _SAYS * max(each[0] for each in said)
        begin = min(each[1] for each in said if each[0] >= enough)
        end = max(each[2] for each in said if each[0] >= enough)
        # What is out of the ordinary at the first place that is known, or still at the last, has no edge there.
        start = begin if begin == self.first else begin + after
        stop = end if end == self.next - 1 else end - before
        return (start, stop) if start <= stop else ((begin + end) // 2, (begin + end) // 2)


def _that_count(spells: list[_Spell]) -> list[_Spell]:
    """Those that say enough beside the most, and of them those that may be the first or the last that does when a later one says more."""
    enough = _COUNTS * max((says for _, _, says in spells), default=0.0)
    kept = [spell for spell in spells if spell[2] >= enough]
    return [
        spell
        for index, spell in enumerate(kept)
        if all(spell[2] > other[2] for other in kept[:index]) or all(spell[2] > other[2] for other in kept[index + 1 :])
    ]
