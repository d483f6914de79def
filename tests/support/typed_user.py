"""A program that uses every public name, for the type checker alone: mypy reads it, nothing runs it.

Each ``type: ignore`` is a mistake that must be seen: mypy complains of one that is not needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import diffq_fast
from diffq_fast import BitsLog, DiffQuantizer, SizeTarget, UniformQuantizer, functional, ts_export


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> DiffQuantizer:
    quantizer = DiffQuantizer(model, group_size=8, noise="uniform")
    quantizer.setup_optimizer(optimizer, lr=0.5)
    target = SizeTarget(quantizer, mb=0.1, total_steps=10)
    loss = model(inputs).sum() + assert_type(target.penalty(), Tensor) + assert_type(quantizer.model_size(), Tensor)
    BitsLog(quantizer, csv="bits.csv").step(0, loss=loss.detach())
    assert_type(quantizer.true_model_size(), float)
    assert_type(quantizer.bits_per_weight(), dict[str, float])
    assert_type([weight.name for weight in quantizer.weights], list[str])
    DiffQuantizer(model, groups=8)  # type: ignore[call-arg]
    DiffQuantizer(model, min_bits="two")  # type: ignore[arg-type]
    return quantizer


def keep(quantizer: DiffQuantizer, model: nn.Module) -> None:
    diffq_fast.save(quantizer, "file", logits=True)
    diffq_fast.save(quantizer)  # type: ignore[call-arg]
    assert_type(diffq_fast.load("file"), dict[str, Tensor])
    assert_type(diffq_fast.load("file", model), nn.Module)
    assert_type(diffq_fast.inspect("file").table(), str)
    moments = diffq_fast.calibrate(model, [torch.ones(2)])
    assert_type(moments, dict[str, Tensor])
    diffq_fast.save_calibration("moments", moments)
    assert_type(diffq_fast.pack_checkpoint("plain", "file", target_mb=8, calibration=moments).file_bytes, int)
    diffq_fast.start_from_packed(diffq_fast.RateQuantizer(model), "file", within=0.5)
    diffq_fast.plot_bits(quantizer, "bits.png")
    torch.export.export(model, (torch.ones(2),)).run_decompositions(diffq_fast.decompositions())
    assert_type(diffq_fast.export("file", "file.gguf", to="gguf").bytes, int)
    assert_type(diffq_fast.export_onnx("file", model, torch.ones(2), "file.onnx").summary(), str)
    diffq_fast.save_legacy(quantizer, "state.th")
    diffq_fast.restore_quantized_state(model, diffq_fast.load_legacy("state.th"))
    assert_type(ts_export.export(quantizer), torch.jit.ScriptModule)


def others(model: nn.Module, weight: Tensor) -> None:
    diffq_fast.install_as_diffq()
    diffq_fast.empty_cache()
    assert_type(diffq_fast.__version__, str)
    assert_type(sorted(diffq_fast.backend_info()), list[str])
    UniformQuantizer(model, bits=4, qat=True).enter_quantize()
    diffq_fast.LSQ(model, bits=4).learned_parameters()
    key = functional.draw_key(weight)
    options = functional.NoiseOptions(group_size=4)
    assert_type(functional.add_noise([weight], [weight], key, options).noisy, list[Tensor])
    assert_type(diffq_fast.RateQuantizer(model, init_step=0.5).model_size(), Tensor)
    activations = diffq_fast.ActivationQuantizer(model, bits=6, learn_bits=True)
    assert_type(activations.mean_bits(), Tensor)
    diffq_fast.no_such_name()  # type: ignore[attr-defined]
