"""Draw the categories of a table's rows, and compute of the network only what the draw needs.

The step program computes the states of all categories in every step. Where a table has no Gaussian numbers, a step draws one category
of a row and leaves the others, so three things can be left out without changing what is drawn:

- the first layer is a sum of one row of weights for each state that is shown: each draw adds one;
- of the last layer only the states of the category that is drawn are needed;
- rows that show the same states so far have the same activations: in the first steps most do.

What remains is the middle of the network, the residual blocks, once for each category of a row. Everything is numpy, so it runs
beside any engine; `tabdiff.nn` holds the same network, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int64

from tabdiff.layout import Layout

_CHUNK_ROWS = 512  # what lies between two products should fit into a core's cache
_WORTHWHILE = 0.9  # share of rows that differ from all others, above which looking for equal ones does not pay
_LARGEST_LOGIT = np.float32(30.0)  # as in tabdiff.nn.blocks
_EPSILON = np.float32(1e-5)  # of torch's LayerNorm
_ALMOST_ONE = np.float32(1 - 2.0**-23)

Weights = Float32[np.ndarray, "..."]


class Revealer:
    """The network of a table without Gaussian numbers.

    Args:
        layout: of the table.
        tensors: of the model, as a bundle holds them.
        blocks: how many residual blocks the network has.
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, np.ndarray], blocks: int) -> None:
        def tensor(name: str) -> Weights:
            return np.asarray(tensors[f"score.denoiser.{name}"], np.float32)

        self.layout = layout
        self._units = [layout.units[index] for index in layout.category_units]
        visible = np.isin(np.arange(layout.model_width), layout.category_slots)
        read = tensor("read.weight")[:, : layout.model_width].T
        # Activations have a mean of 0 from the first layer on, which a norm need not take away then.
        self._read = _centred(np.where(visible[:, None], read, np.float32(0)))
        self._start = _centred(tensor("read.bias"))
        self._blocks = []
        for index in range(blocks):
            names = ("norm.weight", "norm.bias", "expand.weight", "expand.bias", "contract.weight", "contract.bias")
            scale, shift, expand, expand_bias, contract, bias = (tensor(f"blocks.{index}.{name}") for name in names)
            # Scale and shift of a norm are part of the product that follows it, and so is the half that SiLU takes.
            expand_bias = (expand_bias + expand @ shift) / 2
            expand = np.ascontiguousarray((expand * scale).T) / 2
            self._blocks.append((expand, expand_bias, _centred(contract.T), _centred(bias)))
        self._norm = tensor("norm.weight") / 2, tensor("norm.bias") / 2
        write, bias = tensor("write.weight"), tensor("write.bias")
        self._write = [(write[unit.slots].T.copy(), bias[unit.slots]) for unit in self._units]
        # A random number for each slot: rows that show the same states have the same sum (Zobrist 1970).
        self._names = np.random.default_rng(0).integers(2**63, size=layout.model_width, dtype=np.int64)

    def reveal(
        self,
        x: Float32[np.ndarray, "b w"],
        when: Int[np.ndarray, "b k"],
        uniform: Float32[np.ndarray, "b k"],
        allowed: Float32[np.ndarray, "#b w"],
    ) -> Float32[np.ndarray, "b w"]:
        """The rows with their categories drawn.

        Args:
            x: model view of the rows; the blocks of categories that are drawn are zero.
            when: in which step each category is drawn, -1 for never. Those of one step are drawn independently of each other.
            uniform: U(0, 1), one number for each draw.
            allowed: 1 for states that may be drawn. A category without any stays as it is.
        """
        known = x[:1] if not x.strides[0] else x  # one row that stands for all is looked at once
        shown = known[:, self.layout.category_slots] != 0
        hidden = np.broadcast_to(self._start + known @ self._read, (len(x), len(self._start))).copy()
        names = np.broadcast_to(shown @ self._names[self.layout.category_slots], len(x)).copy()
        x, repeating = x.copy(), True
        flat, starts = x.reshape(-1), np.arange(len(x)) * x.shape[1]  # to pick from one axis is faster than from two
        last = int(when.max(initial=-1))
        for step in range(last + 1):
            drawn = when == step
            rows = np.flatnonzero(drawn.any(axis=1))
            if not len(rows):
                continue
            features, repeating = self._features(hidden, names, rows, repeating)
            place = np.empty(len(x), np.int64)
            place[rows] = np.arange(len(rows))
            for category in np.flatnonzero(drawn.any(axis=0)).tolist():
                own = np.flatnonzero(drawn[:, category])
                unit = self._units[category]
                every = len(own) == len(x)  # nothing to pick then
                among = allowed[:, unit.slots] if len(allowed) == 1 or every else allowed[own, unit.slots]
                state = self._draw(category, features if every else features[place[own]], uniform[own, category], among)
                found = state < unit.width
                if not found.all():
                    own, state, every = own[found], state[found], False
                slot = unit.start + state
                flat[(starts if every else starts[own]) + slot] = 1.0
                if step == last:
                    continue
                if repeating:
                    names[own] += self._names[slot]
                if every:
                    hidden += self._read.take(slot, axis=0)
                else:
                    hidden[own] += self._read[slot]
        return x

    def _draw(self, category: int, features: Weights, uniform: Weights, allowed: Weights) -> Int64[np.ndarray, " n"]:
        """A state of each row by inverse CDF; one past the last where none is allowed."""
        weights, bias = self._write[category]
        cumulated = features @ weights
        cumulated += bias
        np.clip(cumulated, -_LARGEST_LOGIT, _LARGEST_LOGIT, out=cumulated)
        np.exp(cumulated, out=cumulated)
        cumulated *= allowed
        np.cumsum(cumulated, axis=1, out=cumulated)
        end = cumulated[:, -1]
        threshold = np.minimum(uniform * end, end * _ALMOST_ONE)
        state: Int64[np.ndarray, " n"] = np.count_nonzero(cumulated <= threshold[:, None], axis=1)
        return state

    def _features(
        self, hidden: Weights, names: Int64[np.ndarray, " b"], rows: Int64[np.ndarray, " n"], repeating: bool
    ) -> tuple[Weights, bool]:
        """What the last layer reads, of some rows; and whether many of them are equal."""
        inverse: Any = slice(None)
        if repeating:
            _, first, inverse = np.unique(names[rows], return_index=True, return_inverse=True)
            repeating = len(first) < _WORTHWHILE * len(rows)
            rows, inverse = (rows[first], inverse) if repeating else (rows, slice(None))
        features = np.empty((len(rows), hidden.shape[1]), np.float32)
        for chunk in _chunks(len(rows)):
            features[chunk] = self._middle(hidden[rows[chunk]])
        return features[inverse], repeating

    def _middle(self, hidden: Weights) -> Weights:
        """The residual blocks and what follows them; `hidden` is written to."""
        normed, change = np.empty_like(hidden), np.empty_like(hidden)
        for expand, expand_bias, contract, bias in self._blocks:
            _normalise(hidden, normed)
            np.matmul(normed, expand, out=change)
            change += expand_bias
            _silu_of_twice(change, normed)
            np.matmul(normed, contract, out=change)
            change += bias
            hidden += change
        _normalise(hidden, normed)
        normed *= self._norm[0]
        normed += self._norm[1]
        _silu_of_twice(normed, change)
        return change


def _chunks(rows: int) -> Iterator[slice]:
    yield from (slice(start, start + _CHUNK_ROWS) for start in range(0, rows, _CHUNK_ROWS))


def _centred(weights: Weights) -> Weights:
    """With a mean of 0 over the last axis."""
    return np.ascontiguousarray(weights - weights.mean(axis=-1, keepdims=True, dtype=np.float64), np.float32)


def _normalise(x: Weights, out: Weights) -> None:
    """Rows of mean 0 scaled to variance 1."""
    variance = np.einsum("ij,ij->i", x, x)
    variance /= np.float32(x.shape[1])
    variance += _EPSILON
    np.multiply(x, (1 / np.sqrt(variance))[:, None], out=out)


def _silu_of_twice(x: Weights, out: Weights) -> None:
    """2x sigmoid(2x) = x (1 + tanh(x))."""
    np.tanh(x, out=out)
    out += np.float32(1)
    out *= x
