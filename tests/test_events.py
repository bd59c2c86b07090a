"""Windows and events: compared with plain loops, and the same whether places come one by one or all at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabdiff.errors import ConfigError
from tabdiff.events import Event, EventRules, EventTracker, Evidence
from tabdiff.onset import Onset
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


BEFORE, AFTER = 2, 1  # places that the evidence of a place looks back and ahead


def evidence_of(excess: np.ndarray) -> Evidence:
    return Evidence(lambda begin, end: excess[begin:end], 0, 30, 10, BEFORE, AFTER)


def with_evidence(flags: np.ndarray, excess: np.ndarray, rules: EventRules, pieces: int = 1) -> list[Event]:
    tracker, found = EventTracker(rules), []
    parts = np.where(flags[:, None], np.array([[3.0, 1.0, 0.1]]), 0.0)
    for piece in np.array_split(np.arange(len(flags)), pieces):
        found += tracker.push(int(piece[0]), np.ones(len(piece)), flags[piece], parts[piece], evidence_of(excess))
        tracker = EventTracker.from_json(json.loads(json.dumps(tracker.to_json())))
    return found + tracker.finish()


def test_an_event_begins_and_ends_with_the_evidence_not_with_its_flags() -> None:
    flags, excess = np.zeros(80, dtype=bool), np.full((80, 3), -1.0)
    flags[30:51] = True  # half a window to either side of a fault in places 37 to 43
    excess[37 - AFTER : 43 + BEFORE + 1, 0] = 3
    (event,) = with_evidence(flags, excess, EventRules())
    assert (event.start, event.end, event.span) == (30, 50, (37, 43))
    excess[37 - AFTER : 43 + BEFORE + 1] = -1
    excess[26 - AFTER : 57, 1] = (
        3  # of a sensor that carries less, before the flags and beyond them, as windows begin weakly
    )
    (event,) = with_evidence(flags, excess, EventRules(within=4))
    assert event.span == (
        26,
        54,
    )  # evidence of places that were not asked for any more when it ended counts for nothing
    excess[:, 1] = -1
    assert with_evidence(flags, excess, EventRules())[0].span is None
    excess[:, 2] = 3  # a sensor that adds next to nothing is not asked
    assert with_evidence(flags, excess, EventRules())[0].span is None


def test_an_event_begins_after_the_one_before_it() -> None:
    flags, excess = np.zeros(80, dtype=bool), np.full((80, 3), -1.0)
    flags[[20, 21, 26, 27]] = True
    excess[10:40, 0] = 3
    one, other = with_evidence(flags, excess, EventRules(within=2))
    assert one.span is not None
    assert other.span is not None
    assert one.span[1] < other.span[0]


def test_the_beginning_stays_when_the_event_grows() -> None:
    excess = np.full((400, 3), -1.0)
    excess[50:70, 0] = 4
    excess[200:300, 0] = 4
    flags = np.zeros(400, dtype=bool)
    starts = []
    for end in range(60, 340, 20):
        flags[52:end] = True
        (event,) = with_evidence(flags[:end], excess[:end], EventRules(), pieces=3)
        assert event.span is not None
        starts.append(event.span[0])
    assert set(starts) == {50 + AFTER}
    assert event.span[1] == 299 - BEFORE


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_beginnings_piece_by_piece(seed: int, pieces: int) -> None:
    rng = np.random.default_rng(seed)
    flags = np.repeat(rng.random(20) < 0.3, 6)
    excess = 2 * np.cumsum(rng.normal(size=(120, 3)), axis=0) / np.sqrt(1 + np.arange(120))[:, None] - 0.5
    rules = EventRules(int(rng.integers(1, 3)), 4, int(rng.integers(0, 6)))
    assert with_evidence(flags, excess, rules, pieces) == with_evidence(flags, excess, rules)


@given(st.integers(0, 10_000))
def test_spells_are_the_cumulative_sums_written_out(seed: int) -> None:
    excess = np.round(np.random.default_rng(seed).normal(0.2, 3, 60), 3)
    onset = Onset.at(100, 1)
    onset.take(excess[:, None])
    spells, total = [], 0.0
    for place, step in enumerate(excess, 100):
        if total <= 0:
            begin, most, end = place, 0.0, place
        total = min(max(total, 0) + min(step, 4), 50)
        if total > most or (step >= 1 and total >= most):
            most, end = total, place
        if most > 0 and (total <= 0 or place == 159):
            spells.append((begin, end, most))
    counting = [spell for spell in spells if spell[2] >= max(each[2] for each in spells) / 2]
    found = onset.interval([1.0], 0, 0)
    assert found == ((counting[0][0], counting[-1][1]) if counting else None)


def test_a_little_that_is_left_does_not_go_on_as_the_fault() -> None:
    excess = np.full((80, 3), -1.0)
    excess[20:60, 0] = 3
    excess[60:, 0] = 0.5
    flags = np.zeros(80, dtype=bool)
    flags[20:80] = True
    (event,) = with_evidence(flags, excess, EventRules())
    assert event.span == (20 + AFTER, 59 - BEFORE)


def test_states_of_earlier_versions_are_read() -> None:
    current = {"start": 3, "end": 9, "peak": 4, "severity": 2.0, "flagged": 5, "contributions": [1.0], "core": [4, 8]}
    rules = {"count": 1, "within": 2, "cool_down": 0}
    tracker = EventTracker.from_json(
        {"rules": rules, "waiting": [[11, 1.0, [0.5], True]], "current": {**current, "open": True}}
    )
    assert tracker.waiting == [(11, 1.0, (0.5,))]
    (event,) = tracker.push(12, np.ones(5), np.zeros(5, bool), np.ones((5, 1)), evidence_of(np.ones((40, 1))))
    assert (event.start, event.end, event.span, event.open) == (3, 9, None, False)


@pytest.mark.parametrize("values", [(0, 1, 0), (3, 2, 0), (1, 1, -1)])
def test_impossible_rules(values: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="1 <= count <= within"):
        EventRules(*values)
