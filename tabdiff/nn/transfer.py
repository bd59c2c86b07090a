"""Begin a fit with the weights of another: what two encodings of the same columns have in common.

Slots are matched by what they mean, never by where they lie: a category by its name, an atom by its value, a bin by its place
among the values, a number by its column. The parts that numbers are seen along turn with the eigenvectors of the new rows.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

from tabdiff.codec import Codec
from tabdiff.codes import OTHER, CategoryCode, NumberCode
from tabdiff.errors import ConfigError
from tabdiff.nn.denoiser import Denoiser


def begin_with(denoiser: Denoiser, codec: Codec, old: Denoiser, old_codec: Codec) -> float:
    """Give a fresh `denoiser` the weights of a fitted one, as far as they are about the same things; returns the share of slots.

    What is new (a category, say) keeps its random weights. The denoiser is then as good on the new rows as the old one was, if
    they are alike.

    Raises:
        ConfigError: the two are not about the same columns, or not of the same size. Says what differs.
    """
    differences = _differences(denoiser, codec, old, old_codec)
    if differences:
        raise ConfigError(
            f"a fit can begin with the weights of a model of the same columns and network; {'; '.join(differences)}. "
            "Begin with random weights, or with the options of that model."
        )
    layout, old_layout = codec.layout, old_codec.layout
    source = matching_slots(codec, old_codec)
    known = np.flatnonzero(source >= 0)
    numbers, old_numbers = layout.number_slots, old_layout.number_slots
    slots, old_slots = denoiser.write.out_features, old.write.out_features
    count = len(numbers)
    # (n, n): place of each old number among the new ones, for both halves of the inputs that are about numbers.
    place = torch.zeros(count, count)
    for new, slot in enumerate(numbers):
        place[int(np.flatnonzero(old_numbers == source[slot])[0]), new] = 1.0
    turn = old.basis.cpu().T @ place @ denoiser.basis.cpu()  # old directions seen along the new ones
    with torch.no_grad():
        read, write, bias = (t.detach().cpu() for t in (old.read.weight, old.write.weight, old.write.bias))
        denoiser.read.weight[:, known] = read[:, source[known]].to(denoiser.mean.device)
        denoiser.write.weight[known] = write[source[known]].to(denoiser.mean.device)
        denoiser.write.bias[known] = bias[source[known]].to(denoiser.mean.device)
        if count:
            denoiser.read.weight[:, numbers] = (read[:, old_numbers] @ turn).to(denoiser.mean.device)
            denoiser.write.weight[numbers] = (turn.T @ write[old_numbers]).to(denoiser.mean.device)
            denoiser.write.bias[numbers] = (turn.T @ bias[old_numbers]).to(denoiser.mean.device)
            shown = read[:, old_slots:].reshape(-1, 2, count) @ place
            denoiser.read.weight[:, slots:] = shown.flatten(1).to(denoiser.mean.device)
        denoiser.read.bias.copy_(old.read.bias)
        denoiser.blocks.load_state_dict(old.blocks.state_dict())
        denoiser.norm.load_state_dict(old.norm.state_dict())
        if denoiser.level is not None and old.level is not None:
            denoiser.level.load_state_dict(old.level.state_dict())
    detail = {layout.units[index].start for index in layout.detail_units}
    compared = [slot for slot in range(slots) if slot not in detail]
    return float(np.mean(source[compared] >= 0)) if compared else 1.0


def _differences(denoiser: Denoiser, codec: Codec, old: Denoiser, old_codec: Codec) -> list[str]:
    """Why weights cannot be taken over, in words."""
    found = []
    new_codes, old_codes = codec.codes, old_codec.codes
    if codec.projection is not None or old_codec.projection is not None:
        found.append("data.pca_components is set, and components of other rows are other things")
    for names, verb in ((set(new_codes) - set(old_codes), "new"), (set(old_codes) - set(new_codes), "gone")):
        if names:
            found.append(f"{verb}: {', '.join(map(repr, sorted(names)))}")
    for name in sorted(set(new_codes) & set(old_codes)):
        kinds = [
            tuple(unit.kind for unit in one.layout.units if one.layout.columns[unit.column] == name)
            for one in (codec, old_codec)
        ]
        texts = [isinstance(codes[name], CategoryCode) for codes in (new_codes, old_codes)]
        # A number that has got its first atom or gap has a block more, whose weights are simply fresh.
        if ("number" in kinds[0]) != ("number" in kinds[1]) or texts[0] != texts[1]:
            found.append(f"column {name!r} was {' and '.join(kinds[1])}, is {' and '.join(kinds[0])}")
    sizes = [(one.read.out_features, len(one.blocks), one.length) for one in (denoiser, old)]
    found += [
        f"network.{name} was {before}, is {now}"
        for name, now, before in zip(("width", "blocks", "length"), *sizes, strict=True)
        if now != before
    ]
    return found


def matching_slots(codec: Codec, old_codec: Codec) -> Int[np.ndarray, " slots"]:
    """For each model slot of an encoding, the slot of another that means the same; -1 if there is none."""
    found = np.full(codec.layout.model_width, -1)
    names = {name: index for index, name in enumerate(old_codec.layout.columns)}
    for index, (name, code) in enumerate(codec.codes.items()):
        if name not in names:
            continue
        old_code = old_codec.codes[name]
        old_units = {
            old_codec.layout.units[u].kind: old_codec.layout.units[u] for u in old_codec.layout.units_of(names[name])
        }
        for number in codec.layout.units_of(index):
            unit = codec.layout.units[number]
            if unit.kind not in old_units:
                continue
            start = old_units[unit.kind].start
            if unit.kind != "category":
                found[unit.start] = start
                continue
            for state, old_state in enumerate(_matching_states(code, old_code)):
                if old_state >= 0:
                    found[unit.start + state] = start + old_state
    return found


def _matching_states(code: NumberCode | CategoryCode, old: NumberCode | CategoryCode) -> list[int]:
    """For each state of a column, the old state that means the same, or -1."""
    if isinstance(code, CategoryCode) and isinstance(old, CategoryCode):
        order = {name: state for state, name in enumerate(_states(old))}
        return [order.get(name, -1) for name in _states(code)]
    if not isinstance(code, NumberCode) or not isinstance(old, NumberCode):
        return [-1] * code.states
    missing = old.states - 1 if old.has_missing else -1
    atoms = {value: state for state, value in enumerate(old.atoms)}
    bins = np.array(old.places[len(old.atoms) :])  # of atoms no neighbours: what repeats is a matter of its own
    result = [atoms.get(value, -1) for value in code.atoms]
    if code.bins:
        own = np.array(code.places[len(code.atoms) :])
        nearest = np.abs(own[:, None] - bins).argmin(axis=1) if len(bins) else np.full(len(own), -1)
        result += [int(state) + len(old.atoms) if state >= 0 else -1 for state in nearest]
    elif code.has_value:
        result.append(len(old.atoms) if old.has_value and not old.bins else -1)
    return [*result, missing] if code.has_missing else result


def _states(code: CategoryCode) -> list[str | None]:
    """What each state of a category column stands for."""
    return [*code.categories, *([OTHER] if code.has_other else []), *([None] if code.has_missing else [])]
