"""A hundred alerts read as five stories: those that the same columns carry, in the same direction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_ALIKE = 0.8  # cosine from which two alerts tell the same story
_CARRIES = 0.25  # part of what the named columns explain from which a column is in the title
Signature = Mapping[tuple[str, str], float]  # (column, direction) to weight; of length 1


def direction(value: Any, expected: Any) -> str:
    """Where a value lies from what was expected: "high", "low", "missing", or for a category the value itself."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return f"= {value}"
    try:
        difference = float(value) - float(expected)
    except (TypeError, ValueError):
        return f"= {value}" if not _is_time(value) else "at an odd time"
    return "high" if difference > 0 else "low" if difference < 0 else "as expected"


def _is_time(value: Any) -> bool:
    try:
        datetime.fromisoformat(str(value))
    except ValueError:
        return False
    return True


def signature(alert: Mapping[str, Any]) -> Signature:
    """The columns that carry an alert with their directions, weighted by the square root of their parts."""
    weights: dict[tuple[str, str], float] = {}
    for reason in alert["reasons"]:
        if reason["part"] > 0:
            key = reason["column"], direction(alert["values"].get(reason["column"]), reason["expected"])
            weights[key] = math.sqrt(reason["part"])
    length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
    return {key: weight / length for key, weight in weights.items()}


def likeness(left: Signature, right: Signature) -> float:
    """Cosine of two signatures: 1 for the same columns in the same directions, 0 for none in common."""
    return sum(weight * right.get(key, 0.0) for key, weight in left.items())


@dataclass
class Story:
    """Alerts that are alike. `center` is the sum of their signatures, of length 1."""

    alerts: list[Mapping[str, Any]] = field(default_factory=list)
    center: dict[tuple[str, str], float] = field(default_factory=dict)
    _sum: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, alert: Mapping[str, Any], own: Signature) -> None:
        """Take in one more."""
        self.alerts.append(alert)
        for key, weight in own.items():
            self._sum[key] = self._sum.get(key, 0.0) + weight
        length = math.sqrt(sum(weight**2 for weight in self._sum.values())) or 1.0
        self.center = {key: weight / length for key, weight in self._sum.items()}

    @property
    def carried_by(self) -> list[tuple[str, str]]:
        """Columns and directions that make the story, most important first; at least one unless nothing is known."""
        order = sorted(self.center.items(), key=lambda item: (-item[1], item[0]))
        return [key for key, weight in order if weight**2 >= _CARRIES or key == order[0][0]]

    @property
    def entities(self) -> list[tuple[str, int]]:
        """What the alerts are about, most frequent first."""
        return Counter(str(a["entity"]) for a in self.alerts if a["entity"] is not None).most_common()

    @property
    def span(self) -> tuple[datetime, datetime]:
        """From the first to the last."""
        times = [alert["when"] for alert in self.alerts]
        return min(times), max(times)

    @property
    def numbers(self) -> list[int]:
        """Of its alerts."""
        return [int(alert["id"]) for alert in self.alerts]


def tell(alerts: Sequence[Mapping[str, Any]], *, alike: float = _ALIKE) -> list[Story]:
    """Group alerts, which come most severe first; the stories with most alerts come first.

    Leader clustering: each alert joins the story that it is most like, or begins one. Alerts of different models stay apart.
    """
    stories: list[tuple[str, Story]] = []
    for alert in alerts:
        own = signature(alert)
        near = max(
            (
                (likeness(own, story.center), index)
                for index, (model, story) in enumerate(stories)
                if model == alert["model"]
            ),
            default=(0.0, -1),
        )
        if near[0] < alike:
            stories.append((alert["model"], Story()))
            near = (1.0, len(stories) - 1)
        stories[near[1]][1].add(alert, own)
    return sorted((story for _, story in stories), key=lambda story: -len(story.alerts))


def similar(
    alert: Mapping[str, Any], others: Sequence[Mapping[str, Any]], count: int = 5
) -> list[tuple[float, Mapping[str, Any]]]:
    """The alerts most like one, with their likeness; those that have nothing in common with it are left out."""
    own = signature(alert)
    found = [(likeness(own, signature(other)), other) for other in others if other["id"] != alert["id"]]
    return sorted((pair for pair in found if pair[0] >= 0.5), key=lambda pair: -pair[0])[:count]
