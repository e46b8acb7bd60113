"""ONNX in fp32 → ONNX in half precision, typed as TensorRT is to compute it.

TensorRT's networks are strongly typed: an operator computes in the type of its tensors. This pass gives
every tensor its type. All is fp16 or bf16, except

- log-softmax and the decoder step's search (`TopK`, `Pad`, which it begins with in a large vocabulary, `Exp`,
  `LogSoftmax`, what follows them, and the additions that lead to them alone): scores of a beam are summed over its
  tokens, and a blocked end token, −1e20, is no fp16 number;
- bytes on their way to whole numbers, which TensorRT takes through fp32 or fp16 alone;
- inputs and outputs of `mplug.contract`, which stay fp32, the caches apart: these never leave the device.

`LayerNormalization` keeps half-precision tensors and computes in fp32 (its `stash_type`). An fp16 product may be summed
in fp16 on a GPU; casts around it, from half-precision factors to fp32 and back, ask the compiler for a kernel that
reads halves and sums in fp32. Products in bf16 are summed in fp32 anyway. `rounded_emulation` turns such a graph into
one that ONNX Runtime's CPU provider computes with the same roundings, which it does for neither type by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
#: Tensors of the decoder's graphs that stay on the device, by the beginnings of their names.
CACHES = ("PAST_", "CROSS_", "WRITTEN")
#: Operators that compute and answer in fp32.
SINGLE_OPERATORS = frozenset({"LogSoftmax", "TopK", "Pad", "Exp"})
#: Operators that may join what they lead to in fp32: each output element comes from one element of each input.
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Cast", "Unsqueeze", "Squeeze", "Identity"})
#: Operators whose sums are long.
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
#: Largest finite fp16 number.
LARGEST_FP16 = 65504.0
#: ONNX lets Conv and others have bf16 from this version on; else it differs from the exporter's in nothing used here.
BF16_OPSET = 22


class PrecisionError(ValueError):
    """A graph cannot be converted; the message names the tensor."""


def to_half(
    model: ModelProto,
    precision: str,
    single_operators: Iterable[str] = SINGLE_OPERATORS,
    *,
    single_sums: bool = True,
) -> ModelProto:
    """Return a copy of `model`, an fp32 graph, in `fp16` or `bf16`.

    `single_operators` are kept in fp32. `single_sums`: sum fp16 products in fp32. Raises PrecisionError for a constant
    that fp16 cannot hold.
    """
    casts = single_sums and precision == "fp16"
    return _Converter(model, HALF_TYPES[precision], frozenset(single_operators), PRODUCTS if casts else ()).run()


class _Converter:
    def __init__(self, model: ModelProto, half: int, single_operators: frozenset[str], products: Iterable[str]) -> None:
        self._model = ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        self._half, self._products = half, frozenset(products)
        self._types = _element_types(self._model)
        self._single = _single_nodes(self._graph.node, single_operators) | self._casts_of_bytes()
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._have: dict[str, int] = {}  # float tensor → the type that its producer gives it
        self._casts: dict[tuple[str, int], str] = {}
        self._factors: set[str] = set()  # half-precision tensors that are cast for a product
        self._nodes: list[NodeProto] = []

    def run(self) -> ModelProto:
        for value in self._graph.input:
            if self._is_float(value.name):
                self._have[value.name] = self._half if value.name.startswith(CACHES) else TensorProto.FLOAT
                value.type.tensor_type.elem_type = self._have[value.name]
        outputs = {value.name for value in self._graph.output if self._is_float(value.name)}
        for index, node in enumerate(self._graph.node):
            self._convert(node, TensorProto.FLOAT if index in self._single else self._half)
        for value in self._graph.output:
            if value.name in outputs:
                self._finish(value)
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(kept)
        if self._half == TensorProto.BFLOAT16:
            for domain in self._model.opset_import:
                domain.version = max(domain.version, BF16_OPSET) if not domain.domain else domain.version
        onnx.checker.check_model(self._model)
        _element_types(self._model)  # every operator has tensors of types that go together
        return self._model

    def _casts_of_bytes(self) -> set[int]:
        """Return the indices of casts of bytes, and of casts of their answers."""
        carried = {name for name, kind in self._types.items() if kind == TensorProto.UINT8}
        found = set()
        for index, node in enumerate(self._graph.node):
            if node.op_type == "Cast" and node.input[0] in carried:
                found.add(index)
                carried.update(node.output)
        return found

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == TensorProto.FLOAT

    def _convert(self, node: NodeProto, wanted: int) -> None:
        for index, name in enumerate(node.input):
            if name and self._is_float(name):
                node.input[index] = self._as(name, wanted)
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = wanted
        elif node.op_type in ("Constant", "ConstantOfShape"):
            self._convert_value(node, wanted)
        for name in node.output:
            if self._is_float(name):
                self._have[name] = wanted
        if node.op_type in self._products and wanted == self._half:
            self._accumulate_in_single(node)
        else:
            self._nodes.append(node)

    def _accumulate_in_single(self, node: NodeProto) -> None:
        """Add a product with casts around it: half-precision factors, a sum in fp32, rounded once."""
        (answer,) = node.output
        for index, name in enumerate(node.input):
            if not name:
                continue
            wide = f"{name}.factor"
            if name not in self._factors:
                self._factors.add(name)
                self._nodes.append(helper.make_node("Cast", [name], [wide], name=f"cast.{wide}", to=TensorProto.FLOAT))
            node.input[index] = wide
        node.output[0] = f"{answer}.sum"
        self._nodes.append(node)
        self._nodes.append(
            helper.make_node("Cast", [f"{answer}.sum"], [answer], name=f"cast.{answer}.sum", to=self._half)
        )

    def _convert_value(self, node: NodeProto, wanted: int) -> None:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(self._rounded(attribute.t, wanted))
            elif attribute.name in ("value_float", "value_floats"):
                raise PrecisionError(f"constant {node.output[0]}: {attribute.name} is not handled; use value")

    def _as(self, name: str, wanted: int) -> str:
        """Return the name of float tensor `name` in type `wanted`."""
        if name in self._constants:
            if wanted == TensorProto.FLOAT:
                return name
            if (name, wanted) not in self._casts:
                rounded = self._rounded(self._constants[name], wanted)
                rounded.name = self._casts[name, wanted] = f"{name}.half"
                self._graph.initializer.append(rounded)
            return self._casts[name, wanted]
        if self._have[name] == wanted:
            return name
        if (name, wanted) not in self._casts:
            cast = f"{name}.{'single' if wanted == TensorProto.FLOAT else 'half'}"
            self._nodes.append(helper.make_node("Cast", [name], [cast], name=f"cast.{cast}", to=wanted))
            self._casts[name, wanted] = cast
        return self._casts[name, wanted]

    def _rounded(self, tensor: TensorProto, wanted: int) -> TensorProto:
        array = numpy_helper.to_array(tensor)
        if wanted == TensorProto.FLOAT:
            return tensor
        if wanted == TensorProto.FLOAT16 and array.size and np.abs(array).max() > LARGEST_FP16:
            raise PrecisionError(
                f"constant {tensor.name}: {np.abs(array).max():.3g} exceeds the range of fp16; use bf16"
            )
        return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(wanted)), tensor.name)

    def _finish(self, value: onnx.ValueInfoProto) -> None:
        """Give a graph's output the type of the contract."""
        wanted = self._half if value.name.startswith(CACHES) else TensorProto.FLOAT
        value.type.tensor_type.elem_type = wanted
        if self._have[value.name] == wanted:
            return
        inner = f"{value.name}.inner"
        for node in self._nodes:
            node.input[:] = [inner if name == value.name else name for name in node.input]
            node.output[:] = [inner if name == value.name else name for name in node.output]
        self._nodes.append(helper.make_node("Cast", [inner], [value.name], name=f"cast.{value.name}", to=wanted))


def _single_nodes(nodes: Iterable[NodeProto], operators: frozenset[str]) -> set[int]:
    """Return the indices of the nodes that compute in fp32; see the module's description."""
    nodes = list(nodes)
    single = {index for index, node in enumerate(nodes) if node.op_type in operators}
    scores = {index for index in single if nodes[index].op_type in SINGLE_OPERATORS}
    carried = {name for index in scores for name in nodes[index].output}
    for index, node in enumerate(nodes):
        if carried.intersection(node.input):
            scores.add(index)
            carried.update(node.output)
    consumers: dict[str, set[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            consumers.setdefault(name, set()).add(index)
    for index in reversed(range(len(nodes))):
        users = set().union(*(consumers.get(name, set()) for name in nodes[index].output))
        if nodes[index].op_type in ELEMENTWISE and users and users <= scores:
            scores.add(index)
    return single | scores


def _element_types(model: ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of a graph by name. Raises PrecisionError if one is unknown."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output, *graph.value_info]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    unknown = [name for node in graph.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise PrecisionError(f"the element type is unknown of {', '.join(unknown[:5])}")
    return types


def rounded_emulation(model: ModelProto) -> ModelProto:
    """Turn a graph in half precision into one in fp32 that rounds every tensor as the half graph does.

    Each operator computes in fp32 from rounded inputs and its answer is rounded, which is what a GPU does
    with fp32 accumulators. Inputs and outputs become fp32. ONNX Runtime must run it unoptimised: it takes
    a cast there and back for nothing.
    """
    types = _element_types(model)
    halves = set(HALF_TYPES.values())
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    half_outputs = {value.name for value in graph.output if types[value.name] in halves}
    nodes: list[NodeProto] = []
    wide: dict[str, str] = {}

    def widened(name: str) -> str:
        if name not in wide:
            wide[name] = f"{name}.wide"
            nodes.append(helper.make_node("Cast", [name], [wide[name]], to=TensorProto.FLOAT))
        return wide[name]

    for value in graph.input:
        if types[value.name] in halves:
            half, value.type.tensor_type.elem_type = types[value.name], TensorProto.FLOAT
            rounded, wide[value.name] = f"{value.name}.rounded", f"{value.name}.wide"
            nodes.append(helper.make_node("Cast", [value.name], [rounded], to=half))
            nodes.append(helper.make_node("Cast", [rounded], [wide[value.name]], to=TensorProto.FLOAT))
    for node in graph.node:
        if node.op_type != "Cast":
            node.input[:] = [widened(name) if types.get(name) in halves else name for name in node.input]
        else:
            node.input[:] = [wide.get(name, name) if types[name] in halves else name for name in node.input]
        rounding = []
        if node.op_type != "Cast":
            for index, name in enumerate(node.output):
                if types.get(name) in halves:
                    node.output[index] = f"{name}.exact"
                    rounding.append(helper.make_node("Cast", [f"{name}.exact"], [name], to=types[name]))
        nodes += [node, *rounding]
    for value in graph.output:
        if value.name in half_outputs:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            for node in nodes:
                node.input[:] = [f"{value.name}.half" if name == value.name else name for name in node.input]
                node.output[:] = [f"{value.name}.half" if name == value.name else name for name in node.output]
            nodes.append(helper.make_node("Cast", [f"{value.name}.half"], [value.name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return result
