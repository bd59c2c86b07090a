"""Windows and events: compared with plain loops, and the same whether places come one by one or all at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabdiff.errors import ConfigError
from tabdiff.events import Event, EventRules, EventTracker
from tabdiff.windows import Span, Stitch, cut, spans_of, window_starts


@given(st.integers(4, 12), st.integers(1, 40), st.randoms(use_true_random=False))
def test_stitching_is_the_mean_over_windows(length: int, places: int, random: object) -> None:
    recorded = np.array([random.random() < 0.8 for _ in range(places)])  # type: ignore[attr-defined]
    starts = window_starts(recorded, length)
    spans = (Span(length - 3, 3, 1), Span(0, length, 1))
    errors = np.random.default_rng(places).random((len(starts), length, 2, 2)).astype(np.float32)
    stitch = Stitch(spans, 2)
    stitch.grow(places)
    stitch.add(starts, errors)
    found, judged = stitch.errors(places)
    for place in range(places):
        for view, span in enumerate(spans):
            held = [i for i, s in enumerate(starts) if s + span.start <= place < s + span.start + span.length]
            if not held:
                assert np.isnan(found[place, view]).all()
                continue
            total = np.exp(np.mean([np.log(errors[i, :, view].sum() + 1e-9) for i in held]))
            own = np.sum([errors[i, place - starts[i], view] for i in held], axis=0)
            assert found[place, view] == pytest.approx(total * own / own.sum(), rel=1e-5)
        assert judged[place] == any(s <= place < s + length for s in starts)


@given(st.integers(4, 512), st.integers(1, 200))
def test_spans_end_with_the_window_and_cover_it(window: int, slots: int) -> None:
    spans = spans_of(window, slots)
    assert all(span.start + span.length == window and span.length % span.pool == 0 for span in spans)
    assert spans[0].pool == 1
    assert spans[-1].length > window - spans[-1].pool
    assert max(span.length // span.pool for span in spans) <= 127


def test_windows_are_slices() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    starts = window_starts(np.ones(20, bool), 5)
    assert starts.tolist() == list(range(16))
    assert np.array_equal(cut(x, starts, 5), np.stack([x[s : s + 5] for s in starts]))


def test_a_window_needs_half_its_places() -> None:
    recorded = np.array([True, False, False, False, True, True, True, True])
    assert window_starts(recorded, 4).tolist() == [2, 3, 4]
    assert window_starts(recorded, 9).tolist() == []


def events(flags: str, rules: EventRules, pieces: int = 1) -> list[Event]:
    flagged = np.array([c == "x" for c in flags])
    scores = np.arange(len(flags), dtype=float) % 7
    parts = np.stack([scores, 2 * scores], axis=1)
    tracker, found, first = EventTracker(rules), [], 0
    for piece in np.array_split(np.arange(len(flags)), pieces):
        found += tracker.push(first, scores[piece], flagged[piece], parts[piece])
        first += len(piece)
        tracker = EventTracker.from_json(json.loads(json.dumps(tracker.to_json())))
    return found + tracker.finish()


@pytest.mark.parametrize(
    ("flags", "rules", "spans"),
    [
        ("..x..xx...", EventRules(), [(2, 2), (5, 6)]),
        ("..x..xx...", EventRules(count=2, within=2), [(5, 6)]),
        ("x.x.x.....", EventRules(count=3, within=5), [(0, 4)]),
        ("x.x.x.....", EventRules(count=3, within=4), []),
        ("xx....xx..", EventRules(count=2, within=3, cool_down=3), [(0, 7)]),
        ("xx.......xx", EventRules(count=2, within=3, cool_down=3), [(0, 1), (9, 10)]),
        ("xxxxxxxxxx", EventRules(count=2, within=3), [(0, 9)]),
        ("..........", EventRules(), []),
    ],
)
def test_flags_become_events(flags: str, rules: EventRules, spans: list[tuple[int, int]]) -> None:
    assert [(event.start, event.end) for event in events(flags, rules)] == spans


@given(
    st.text("x.", min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 3), st.integers(0, 5), st.integers(1, 60)
)
def test_the_same_piece_by_piece(flags: str, count: int, more: int, cool_down: int, pieces: int) -> None:
    rules = EventRules(count, count + more, cool_down)
    assert events(flags, rules, min(pieces, len(flags))) == events(flags, rules)


def test_an_event_names_its_peak_and_its_sensors() -> None:
    (event,) = events("xxxx", EventRules())
    assert (event.peak, event.severity, event.flagged, event.open) == (3, 3.0, 4, True)
    assert event.sensors(["a", "b"]) == [("b", pytest.approx(2 / 3)), ("a", pytest.approx(1 / 3))]
    assert event.sensors(["a", "b"], share=0.5) == [("b", pytest.approx(2 / 3))]


def test_the_core_of_an_event_is_where_something_unexpected_was() -> None:
    flagged, unexpected = np.array([c == "1" for c in "0111110"]), np.array([c == "1" for c in "1011000"])
    tracker = EventTracker(EventRules())
    tracker.push(0, np.ones(4), flagged[:4], np.ones((4, 1)), unexpected[:4])
    tracker = EventTracker.from_json(json.loads(json.dumps(tracker.to_json())))
    (event,) = tracker.push(4, np.ones(3), flagged[4:], np.ones((3, 1)), unexpected[4:])
    assert (event.start, event.end, event.core) == (1, 5, (2, 3))


@pytest.mark.parametrize("values", [(0, 1, 0), (3, 2, 0), (1, 1, -1)])
def test_impossible_rules(values: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="1 <= count <= within"):
        EventRules(*values)
