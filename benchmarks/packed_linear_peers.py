"""Products with packed weights by other libraries, for ``measure_packed_linear.py``: those that are installed.

Each class makes one layer of random levels, ``bits`` each, in groups of 64 columns that share a scale, and multiplies
with it; ``weight`` is what its levels stand for.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from ggml_products import BLOCK, GgmlProduct
from torch import Tensor

GROUP = 64


class Peer(ABC):
    """Levels centred on 2**(bits - 1), times a scale."""

    tolerance = 1e-3  # of the products' root mean square
    package = "torch"
    widths: tuple[int, ...] = (4,)

    def __init__(self, size: int, bits: int) -> None:
        generator = torch.Generator().manual_seed(bits)
        self.size, self.bits = size, bits
        self.levels = torch.randint(0, 1 << bits, (size, size), dtype=torch.uint8, generator=generator)
        self.scales = torch.rand(size, size // GROUP, generator=generator) + 0.5
        self.prepare()

    @property
    def weight(self) -> Tensor:
        centred = self.levels.float() - (1 << self.bits - 1)
        return centred * self.scales.repeat_interleave(GROUP, 1)

    def check(self, inputs: Tensor) -> None:
        wanted = inputs @ self.weight.mT
        error = float((self.run(inputs).float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
        assert error < self.tolerance, f"{type(self).__name__}: the product is wrong by {error:.2g}"

    def bytes_of_levels(self) -> np.ndarray:
        """Levels in a little-endian run of bits: uint8 ``[rows, groups, bytes]``."""
        each = 8 // self.bits
        parts = self.levels.view(self.size, self.size // GROUP, GROUP // each, each)
        shifts = torch.arange(each, dtype=torch.uint8) * self.bits
        return (parts << shifts).sum(-1).to(torch.uint8).numpy()

    @abstractmethod
    def prepare(self) -> None:
        """Make the layer."""

    @abstractmethod
    def run(self, inputs: Tensor) -> Tensor:
        """The product, ``[vectors, size]``."""


class Aten(Peer):
    """torch's own int4 weights, with activations in bfloat16."""

    tolerance = 0.02

    def prepare(self) -> None:
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self.levels.int(), 1)
        scales = self.scales.mT.contiguous()
        self.scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], 2).bfloat16()

    def run(self, inputs: Tensor) -> Tensor:
        given = inputs.bfloat16(), self.packed, GROUP, self.scales_and_zeros
        return torch.ops.aten._weight_int4pack_mm_for_cpu(*given)


class OnnxRuntime(Peer):
    """MatMulNBits with float activations."""

    package = "onnxruntime"
    widths = (4, 2)
    accuracy = 0
    tolerance = 0.02

    def prepare(self) -> None:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        attributes = {"K": self.size, "N": self.size, "bits": self.bits, "block_size": GROUP}
        attributes |= {"accuracy_level": self.accuracy}
        node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", **attributes)
        stored = [
            numpy_helper.from_array(self.bytes_of_levels(), "b"),
            numpy_helper.from_array(self.scales.flatten().numpy(), "s"),
        ]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", self.size]) for name in "xy"]
        graph = helper.make_graph([node], "product", ends[:1], ends[1:], stored)
        versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)

    def run(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"x": inputs.numpy()})[0])


class OnnxRuntimeInt8(OnnxRuntime):
    """MatMulNBits with activations in int8."""

    accuracy = 4


class OpenVino(Peer):
    """A constant of u4, decompressed in the product."""

    package = "openvino"
    tolerance = 0.03

    def prepare(self) -> None:
        import openvino
        from openvino import opset13 as ops

        self.packed = self.bytes_of_levels().reshape(-1)  # which the constant does not keep
        shape = [self.size, self.size // GROUP, GROUP]
        constant = ops.constant(openvino.Tensor(self.packed, shape, openvino.Type.u4))
        centred = ops.subtract(ops.convert(constant, "f32"), np.float32(1 << self.bits - 1))
        scaled = ops.multiply(centred, self.scales.numpy()[:, :, None])
        weight = ops.reshape(scaled, np.array([self.size, self.size], np.int64), False)
        x = ops.parameter([-1, self.size], np.float32)
        model = openvino.Model([ops.matmul(x, weight, False, True)], [x], "product")
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self.request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(self, inputs: Tensor) -> Tensor:
        self.request.infer([inputs.numpy()], share_inputs=True)
        return torch.from_numpy(self.request.get_output_tensor().data)


class Ggml(Peer):
    """ggml's q4_0 in the layout that its CPU backend repacks it to; activations in int8, by blocks of 32."""

    package = "pywhispercpp"
    tolerance = 0.02

    def prepare(self) -> None:
        low, high = self.levels.view(-1, 2, BLOCK // 2).unbind(1)
        scales = self.scales.flatten().repeat_interleave(GROUP // BLOCK).half()
        blocks = torch.cat([scales[:, None].view(torch.uint8), low | high << 4], 1)
        self.product = GgmlProduct(self.size, blocks.numpy())

    def run(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.product(inputs.numpy()))


PEERS: dict[str, type[Peer]] = {
    "aten int4, bfloat16 activations": Aten,
    "onnxruntime MatMulNBits": OnnxRuntime,
    "onnxruntime MatMulNBits, int8 activations": OnnxRuntimeInt8,
    "OpenVINO u4": OpenVino,
    "ggml q4_0, int8 activations": Ggml,
}


def installed(bits: int) -> dict[str, type[Peer]]:
    """Those that are here and know this width."""
    return {
        name: peer
        for name, peer in PEERS.items()
        if bits in peer.widths and importlib.util.find_spec(peer.package) is not None
    }
