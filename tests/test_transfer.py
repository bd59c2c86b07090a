"""Fits that begin with the weights of another model: what is taken over, what it is worth, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import tabdiff
from tabdiff.codec import Codec
from tabdiff.codes import CategoryCode
from tabdiff.config import FitConfig
from tabdiff.errors import ConfigError
from tabdiff.nn.assemble import build_denoiser
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.transfer import begin_with, matching_slots
from tabdiff.schema import Schema
from tests.conftest import make_mixed_table

NETWORK = {"width": 32, "blocks": 1, "dropout": 0.0}


def config(**options: object) -> FitConfig:
    return FitConfig.model_validate({"network": NETWORK, **options})


def fresh(codec: Codec, frame: pl.DataFrame, options: FitConfig) -> Denoiser:
    torch.manual_seed(1)
    return build_denoiser(codec.layout, codec.encode(frame).x[:, None], options).eval()


def shaken(denoiser: Denoiser) -> Denoiser:
    """Weights as if learned: none of them zero."""
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return denoiser


@pytest.mark.parametrize("bins", [0, 64])
def test_the_same_rows_in_another_order_of_columns_and_categories_give_the_same_answers(bins: int) -> None:
    frame = make_mixed_table(400)
    options = config(data={"bins": bins})
    schema = Schema.infer(frame)
    rows = schema.conform(frame)
    codec = Codec.fit(rows, schema, options.data)
    turned = {
        name: replace(code, categories=code.categories[::-1]) if isinstance(code, CategoryCode) else code
        for name, code in reversed(codec.codes.items())
    }
    other = Codec(schema, turned)
    old, new = shaken(fresh(codec, rows, options)), fresh(other, rows, options)
    # Neither knows about the other: without the transfer the answers differ.
    assert begin_with(new, other, old, codec) == 1.0
    slots = torch.as_tensor(matching_slots(other, codec))
    x = torch.from_numpy(codec.encode(rows).x[:64, None, : codec.layout.model_width])
    units = torch.as_tensor([codec.layout.unit_of_slot[slot] for slot in slots])
    hidden = torch.rand((64, 1, len(codec.layout.units)), generator=torch.Generator().manual_seed(0)) < 0.5
    categories = torch.as_tensor([unit.kind == "category" for unit in codec.layout.units])
    x = x * ~(hidden & categories)[..., torch.as_tensor(codec.layout.unit_of_slot)]
    assert torch.equal(torch.unique(units), torch.arange(len(codec.layout.units)))
    t = torch.linspace(0.05, 0.95, 64)
    detail = torch.as_tensor([other.layout.units[u].start for u in other.layout.detail_units], dtype=torch.long)
    with torch.no_grad():
        expected, found = old(x, t)[..., slots], new(x[..., slots], t)
    keep = np.setdiff1d(np.arange(len(slots)), detail)
    torch.testing.assert_close(found[..., keep], expected[..., keep], rtol=1e-3, atol=1e-4)


def test_sharing_weights_out_between_neighbouring_states_keeps_the_function() -> None:
    frame = make_mixed_table(400)
    schema = Schema.infer(frame)
    rows = schema.conform(frame)
    codec = Codec.fit(rows, schema, config().data)
    denoiser = shaken(fresh(codec, rows, config()))
    before = denoiser.read.weight.clone(), denoiser.write.weight.clone()
    denoiser.unfold(keep=True)
    assert denoiser.smooth is not None
    assert sum(p.numel() for p in denoiser.smooth.parameters()) > 0
    denoiser.fold()
    torch.testing.assert_close(denoiser.read.weight, before[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(denoiser.write.weight, before[1], rtol=1e-4, atol=1e-5)


def test_states_are_matched_by_meaning_and_new_ones_begin_at_random() -> None:
    frame = make_mixed_table(400)
    later = frame.with_columns(
        channel=pl.when(pl.int_range(pl.len()) % 4 == 0).then(pl.lit("app")).otherwise("channel"),
        price=pl.col("price") * 2,
    )
    overrides = {"channel": {"kind": "categorical"}}
    codecs = []
    for rows in (frame, later):
        schema = Schema.infer(rows, overrides=overrides)
        codecs.append(Codec.fit(schema.conform(rows), schema, config().data))
    found = matching_slots(codecs[1], codecs[0])
    new, old = (codec.layout.units[codec.layout.units_of(codec.columns.index("channel"))[0]] for codec in codecs)
    names = [list(codec.codes["channel"].categories) for codec in codecs]  # type: ignore[union-attr]
    assert "app" in names[1]
    for state, name in enumerate(names[1]):
        expected = old.start + names[0].index(name) if name in names[0] else -1
        assert found[new.start + state] == expected, name
    # Prices have doubled and lie in the same order: the lowest bin is still the lowest.
    new, old = (codec.layout.units[codec.layout.units_of(codec.columns.index("price"))[0]] for codec in codecs)
    assert found[new.slots].tolist() == list(range(old.start, old.start + old.width))


def test_a_fit_that_begins_with_a_model_needs_fewer_steps() -> None:
    held: dict[str, list[float]] = {"fresh": [], "warm": []}
    training = {"batch_size": 128, "evaluate_every": 25, "seed": 3, "steps": 100}
    options = config(train=training, score={"kernel_rows": 50})
    earlier = tabdiff.fit(make_mixed_table(600, seed=0), config(train={**training, "steps": 300}))
    table = make_mixed_table(600, seed=1)
    tabdiff.fit(table, options, on_event=lambda event: held["fresh"].append(event.held_out))
    warm = tabdiff.fit(table, options, start_from=earlier, on_event=lambda event: held["warm"].append(event.held_out))
    assert held["warm"][0] < held["fresh"][2], held  # a third of the steps
    assert min(held["warm"]) < min(held["fresh"]), held
    assert warm.bundle.model["report"]["started_from"] == earlier.bundle.fingerprint
    assert warm.score(table.head(20)).score.shape == (20,)


def test_half_of_the_steps_are_planned() -> None:
    options = config(train={"time_limit": 1e-9, "evaluate_every": 1}, score={"kernel_rows": 50})
    table, steps = make_mixed_table(100), []
    earlier = tabdiff.fit(table, options, on_event=lambda event: steps.append(event.steps))
    tabdiff.fit(table, options, start_from=earlier, on_event=lambda event: steps.append(event.steps))
    assert steps == [2400, 1200]


def test_what_differs_is_said(small_model: tabdiff.Model) -> None:
    table = make_mixed_table(60)
    for frame, options, message in (
        (table.with_columns(weight_2=pl.col("weight") * 2), {}, "new: 'weight_2'"),
        (table.drop("price"), {}, "gone: 'price'"),
        (table.with_columns(price=pl.lit("text") + (pl.col("items") % 3).cast(pl.String)), {}, "column 'price' was"),
        (table, {"network": {"width": 16, "blocks": 2}}, "network.width was 32, is 16; network.blocks was 1, is 2"),
        (table, {"data": {"pca_components": 2}}, "data.pca_components"),
        (table, {"score": {"kernel_rows": 0}}, "may know the rows"),
    ):
        chosen = FitConfig.model_validate({"network": {"width": 32, "blocks": 1}, "train": {"steps": 1}, **options})
        with pytest.raises(ConfigError, match=message):
            tabdiff.fit(frame, chosen, start_from=small_model)
