"""Half precision where it pays: the network's matrix products, as torch's autocast does.

Distances, logarithms and normalisation stay in single precision: distances overflow and small errors vanish in half.
"""

from __future__ import annotations

from typing import Any

_LINEAR = "torch.nn.modules.linear.Linear"


def halve(model: Any) -> Any:
    """A copy of an ONNX model in which every linear layer multiplies in float16, between casts."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    linear = [node for node in graph.node if node.op_type in ("Gemm", "MatMul") and _is_linear(node)]
    smaller: dict[str, str] = {}
    casts: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if not any(node is other for other in linear):
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name in weights:
                if name not in smaller:
                    smaller[name] = f"{name}.half"
                    array = numpy_helper.to_array(weights[name]).astype("float16")
                    graph.initializer.append(numpy_helper.from_array(array, smaller[name]))
                node.input[place] = smaller[name]
            else:
                if name not in casts:
                    casts[name] = f"{name}.half"
                    nodes.append(helper.make_node("Cast", [name], [casts[name]], to=TensorProto.FLOAT16))
                node.input[place] = casts[name]
        name = node.output[0]
        node.output[0] = f"{name}.of_half"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [name], to=TensorProto.FLOAT)]
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    return halved


def _is_linear(node: Any) -> bool:
    return any(_LINEAR in entry.value for entry in node.metadata_props if entry.key.endswith("class_hierarchy"))
