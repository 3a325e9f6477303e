"""A binary network as an ONNX model: packed weights, unpacked in the graph by standard operators.

The graph is torch's own (`torch.onnx.export`) of the network as a function of images and of all its tensors: what torch
does not know, it cannot fold. Then each tensor gets its name in the model, and its value:

    signs of all weights → BitwiseAnd with 128, 64, … 1 → Cast to bool → Where ±1 → Split → Reshape, Mul by the scale

`onnx` and `onnxscript` are optional, and imported where they are used: `pip install 'fsg[export]'`.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fsg.binarize import BinaryNetwork, traced
from fsg.packing import SCALE, SIGNS, Planes, packed_signs

if TYPE_CHECKING:
    import onnx

OPSET = 18  # the first with BitwiseAnd
_PLACES = [128, 64, 32, 16, 8, 4, 2, 1]


class _Stateless(nn.Module):
    """images, tensors by name → the network's output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        vars(self)["network"] = network  # not as a part: its tensors shall come from outside

    def forward(self, images: Tensor, tensors: dict[str, Tensor]) -> Any:
        return functional_call(vars(self)["network"], tensors, (images,))


def onnx_model(binary: BinaryNetwork, images: Tensor, about: Mapping[str, str] | None = None) -> "onnx.ModelProto":
    """`images` float32 [b, …] → `logits` [b, …], for any b ≥ 1, with the tensors of the network inside, by name.

    Raises ImportError where onnx is not installed, and ValueError, in one line, for a network that cannot be traced,
    has an operator that ONNX lacks, or gives anything but one tensor.
    """
    import onnx

    tensors = binary.tensors()
    graph = _traced_graph(binary.network, images, tensors)
    count = itertools.count()
    _rename(graph, dict(zip([each.name for each in graph.input], ["images", *tensors], strict=True)), count)
    used = {value for inside in _graphs(graph) for node in inside.node for value in node.input}
    nodes, values = _unpacking({n: p for n, p in binary.planes.items() if n in used}, count)
    values |= {n: t.numpy() for n, t in tensors.items() if n in used and n not in binary.planes}
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    shape = ["batch", *images.shape[1:]]
    made = onnx.helper.make_graph(
        [*nodes, *graph.node],
        "network",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        graph.output,
        [*graph.initializer, *constants],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(made, opset_imports=opset, ir_version=10, producer_name="fsg")
    onnx.helper.set_model_props(model, dict(about or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def _traced_graph(network: nn.Module, images: Tensor, tensors: dict[str, Tensor]) -> Any:
    """The graph of torch's, whose inputs are the images and the tensors in their order."""
    shapes = ({0: torch.export.Dim("batch", min=1)}, dict.fromkeys(tensors))
    program = traced(_Stateless(network), (images, tensors), shapes)
    if (count := len(program.graph_signature.user_outputs)) != 1:
        raise ValueError(f"the network gives {count} tensors, expected one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own parts
            made = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False, opset_version=OPSET)
    except ImportError:
        raise
    except Exception as error:  # torch's kinds are not public
        raise ValueError(f"ONNX has no way to say what the network does ({_cause(error)})") from error
    assert made is not None
    graph = made.model_proto.graph
    operators = [node for inside in _graphs(graph) for node in inside.node]
    foreign = {f"{node.domain}.{node.op_type}" for node in operators if node.domain}
    if foreign:
        raise ValueError(f"{', '.join(sorted(foreign))}: no standard operator of ONNX (expected those alone)")
    return graph


def _cause(error: BaseException) -> str:
    """The first line of the error that all others came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _rename(graph: Any, given: Mapping[str, str], count: Iterator[int]) -> None:
    """Inputs and output get their names, all other values a number, which is short and no name of a tensor."""
    names = {**given, graph.output[0].name: "logits", "": ""}
    for inside in _graphs(graph):
        for named in (*inside.input, *inside.output, *inside.initializer):
            named.name = names.setdefault(named.name, str(next(count)))
            del named.metadata_props[:]
        for node in inside.node:
            for values in (node.input, node.output):
                values[:] = [names.setdefault(value, str(next(count))) for value in values]
            node.name = ""
            del node.metadata_props[:]


def _unpacking(planes: Mapping[str, Planes], count: Iterator[int]) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The nodes that give each packed weight under its name, and the constants that they need."""
    import onnx

    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {}
    known: dict[str, str] = {}

    def constant(value: Any, dtype: Any = np.int64) -> str:
        array = np.array(value, dtype)
        name = known.setdefault(f"{dtype} {array.tolist()}", str(next(count)))
        constants[name] = array
        return name

    def node(kind: str, inputs: Iterable[str], outputs: Iterable[str] = (), **attributes: Any) -> str:
        made = onnx.helper.make_node(kind, list(inputs), list(outputs) or [str(next(count))], **attributes)
        nodes.append(made)
        return str(made.output[0])

    if not planes:
        return nodes, constants
    constants[SIGNS] = packed_signs(planes.values()).reshape(-1, 1)
    bits = node("Cast", [node("BitwiseAnd", [SIGNS, constant(_PLACES, np.uint8)])], to=onnx.TensorProto.BOOL)
    ones = node("Where", [bits, constant(1, np.float32), constant(-1, np.float32)])
    sizes = [one.positive[0].numel() for one in planes.values() for _ in one.positive]
    left = 8 * len(constants[SIGNS]) - sum(sizes)  # bits of the last byte that are nobody's
    pieces = [str(next(count)) for _ in [*sizes, *[0] * (left > 0)]]
    node("Split", [node("Reshape", [ones, constant([-1])]), constant([*sizes, *[left] * (left > 0)])], pieces, axis=0)
    each = iter(pieces)
    for name, one in planes.items():
        to = constant(one.positive.shape[1:])
        mine = [next(each) for _ in one.positive]
        if len(mine) == 1 and (one.scale == 1).all():
            node("Reshape", [mine[0], to], [name])
            continue
        scales = [f"{name}{SCALE}.{place}" if place else f"{name}{SCALE}" for place in range(len(mine))]
        constants |= {scale: value.numpy() for scale, value in zip(scales, one.scale, strict=True)}
        shaped = [[node("Reshape", [plane, to]), scale] for plane, scale in zip(mine, scales, strict=True)]
        if len(shaped) == 1:
            node("Mul", shaped[0], [name])
        else:
            node("Sum", [node("Mul", pair) for pair in shaped], [name])
    return nodes, constants
