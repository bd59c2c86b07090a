"""Refuse compiled programs that reach outside the model folder, before anything runs them.

An ONNX file may name files whose content it wants read as weights, carry session options, or ask for operators that load
what they like. Checksums do not help against a file that was made that way, so its protobuf is walked field by field
(https://protobuf.dev/programming-guides/encoding, field numbers of onnx.proto) without the `onnx` package, which serving
does not need.
"""

from __future__ import annotations

from collections.abc import Iterator

_Message = memoryview
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 14, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14


class UnsafeProgramError(ValueError):
    """What is wrong with a program, to be completed with the name of its file."""


def check(content: bytes) -> None:
    """Walk a serialized ModelProto.

    Raises:
        UnsafeProgramError: it is not one, or refers to anything outside itself: external data, session options, operators that are
            not standard ONNX, nested graphs, functions.
    """
    graphs = 0
    for number, value in _fields(memoryview(content)):
        if number == _MODEL_GRAPH:
            graphs += 1
            _check_graph(_message(value))
        elif number == _MODEL_METADATA and (1, b"ort_config") in _texts(_message(value)):
            raise UnsafeProgramError("it carries session options (ort_config)")
        elif number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
            raise UnsafeProgramError("it has functions or training steps, which no exported program has")
    if graphs != 1:
        raise UnsafeProgramError(f"it holds {graphs} graphs instead of one")


def _check_graph(graph: _Message) -> None:
    for number, value in _fields(graph):
        if number == _GRAPH_INITIALIZER:
            _check_tensor(_message(value))
        elif number == _GRAPH_SPARSE:
            _check_sparse(_message(value))
        elif number == _GRAPH_NODE:
            _check_node(_message(value))


def _check_node(node: _Message) -> None:
    parts = list(_fields(node))
    operator = next(
        (bytes(_message(value)).decode("utf-8", "replace") for n, value in parts if n == _NODE_OPERATOR), ""
    )
    for number, value in parts:
        if number == _NODE_DOMAIN and bytes(_message(value)) not in (b"", b"ai.onnx"):
            raise UnsafeProgramError(f"operator {operator!r} is not one of standard ONNX")
        if number == _NODE_ATTRIBUTE:
            for inner, content in _fields(_message(value)):
                if inner in _ATTRIBUTE_GRAPHS:
                    raise UnsafeProgramError(f"operator {operator!r} nests a graph, which no exported program does")
                if inner in _ATTRIBUTE_TENSORS:
                    _check_tensor(_message(content))
                elif inner in _ATTRIBUTE_SPARSE:
                    _check_sparse(_message(content))


def _check_sparse(tensor: _Message) -> None:
    for _, value in _fields(tensor):
        if isinstance(value, memoryview):
            _check_tensor(value)


def _check_tensor(tensor: _Message) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            raise UnsafeProgramError("it keeps weights in another file (external data)")


def _texts(entry: _Message) -> list[tuple[int, bytes]]:
    return [(number, bytes(_message(value))) for number, value in _fields(entry)]


def _message(value: int | _Message) -> _Message:
    if isinstance(value, int):
        raise UnsafeProgramError("it is not an ONNX program (a field has the wrong type)")
    return value


def _fields(message: _Message) -> Iterator[tuple[int, int | _Message]]:
    """Field numbers and values: numbers of varints, 0 for fixed-width numbers, bytes for the rest."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
            yield number, 0
        elif kind == 2:
            length, place = _varint(message, place)
            if place + length > end:
                raise UnsafeProgramError("it is cut off")
            yield number, message[place : place + length]
            place += length
        else:
            raise UnsafeProgramError("it is not an ONNX program (unknown wire type)")
    if place != end:
        raise UnsafeProgramError("it is cut off")


def _varint(message: _Message, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise UnsafeProgramError("it is cut off")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
    raise UnsafeProgramError("it is not an ONNX program (a number without an end)")
