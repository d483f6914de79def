"""transformers: packed folders for ``from_pretrained`` and ``save_pretrained``, and a callback for ``Trainer``.

Importing this module registers the method ``"diffq_fast"`` with transformers; nothing else has to be called, and no
code comes from a model's folder. ``docs/integrations.md`` has examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, auto, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..files.tensor_bytes import memory_keys
from ..packed.activations import renamed_inputs
from ..packed.coding import CodedTensor
from ..packed.contents import PackedContents, read_packed
from ..packed.input_match import stored_for
from ..packed.layout import CODED_PARTS
from ..packed.save_load import STORED, check_activations
from ..packed.tensor import PackedTensor
from ..quantizers.activations import ActivationQuantizer
from ..quantizers.base import BaseQuantizer
from ..quantizers.stored_input import StoredInput
from ..runtime.fill import packed_weights, put_packed
from ..runtime.layers import PACKED_CLASSES, PackedParameters
from .huggingface_folder import Contents, hook_saving, of_files, of_quantizer, unhook_saving

METHOD = "diffq_fast"
CODINGS = ("fixed", "coded", "auto")
# What transformers sets on a model that it has loaded through a quantizer.
OF_MODEL = {"hf_quantizer", "is_quantized", "quantization_method"}
OF_CONFIG = {"quantization_config", "_is_quantized"}


class PackedConv1D(PackedParameters, Conv1D):
    """GPT-2's linear layer, with the weight transposed; it is unpacked in each forward."""


PACKED_CLASSES[Conv1D] = PackedConv1D


@register_quantization_config(METHOD)
class DiffqFastConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a packed folder.

    Args:
        packed: keep quantised weights packed in memory (docs/runtime.md): for a model that is not trained, or through
            adapters alone. False: the model is an ordinary one, with weights in its dtype.
        coding: of the levels in files that are written, see :func:`diffq_fast.save`.
        activations: "float", "stored" or, where weights are kept packed, "int8", see :func:`diffq_fast.load`.

    Raises:
        ValueError: another coding, other activations, or int8 for weights that are not kept packed.
    """

    def __init__(
        self, packed: bool = False, coding: str = "fixed", activations: str = "float", quant_method: str = METHOD
    ) -> None:
        if coding not in CODINGS:
            raise ValueError(f"DiffqFastConfig: coding must be one of {', '.join(map(repr, CODINGS))}, got {coding!r}")
        check_activations("DiffqFastConfig", activations, packed, (STORED,))
        self.quant_method = quant_method
        self.packed, self.coding, self.activations = packed, coding, activations

    def get_loading_attributes(self) -> dict[str, Any]:
        """What ``from_pretrained(folder, quantization_config=...)`` may choose for a folder that has its own."""
        return {"packed": self.packed, "activations": self.activations}


# transformers takes loading attributes from the classes of this tuple alone; registering a method does not add it.
auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*getattr(auto, "LOADING_ATTRIBUTES_CONFIG_TYPES", ()), DiffqFastConfig)


class UnpackWeight(ConversionOps):
    """Makes a weight of its packed parts, which were read and verified before."""

    def __init__(self, hf_quantizer: DiffqFastHfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer  # which tells transformers that parts are not to be cast
        self.dtype: torch.dtype | None = None

    def __deepcopy__(self, memo: Any) -> UnpackWeight:  # one for each weight, of one quantizer
        return UnpackWeight(self.hf_quantizer)

    def convert(self, input_dict: Mapping[str, list[Tensor]], **options: Any) -> dict[str, Tensor]:
        name, model = options["full_layer_name"], options["model"]
        device = next(iter(input_dict.values()))[0].device
        dtype = self.dtype or model.get_parameter_or_buffer(name).dtype
        return {name: self.hf_quantizer.weight(name, device).to(dtype)}

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("UnpackWeight: packed folders are written by save_pretrained of the model itself")


@register_quantizer(METHOD)
class DiffqFastHfQuantizer(HfQuantizer):
    """What transformers asks while it loads a packed folder, and what the model is saved by."""

    requires_calibration = True  # a float model is not quantised by loading it: train it, or pack its checkpoint
    quantization_config: DiffqFastConfig

    def __init__(self, quantization_config: DiffqFastConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._loaded = PackedContents({}, {})
        self._stored_names: dict[str, str] = {}
        self._contents: Contents | None = None
        self._saving = False

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "diffq_fast: packed folders cannot be offloaded to disk, got a device_map with 'disk'; packed weights "
                "(DiffqFastConfig(packed=True)) take a fraction of the memory"
            )

    # -- loading -------------------------------------------------------------------------------------------------------

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Read and verify the files; only their packed weights are kept."""
        packed: dict[str, PackedTensor | CodedTensor] = {}
        ties: dict[str, str] = {}
        half: dict[str, torch.dtype] = {}
        inputs: dict[str, StoredInput] = {}
        info: Mapping[str, Any] = {}
        files = [str(file) for file in kwargs["checkpoint_files"]]
        for file in files:
            contents = read_packed(file)
            packed |= contents.packed
            ties |= contents.ties
            half |= contents.half
            inputs |= contents.activations
            info = contents.quantizer
        path = str(Path(files[0]).parent)
        self._loaded = PackedContents(packed, {}, ties, half, quantizer=info, activations=inputs, path=path)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Parts of a weight become the weight, before any conversion of the model's own."""
        ours = WeightConverter([rf"\{part}$" for part in CODED_PARTS], "", [UnpackWeight(self)])
        conversions = [ours, *weight_conversions]
        renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        converters = [each for each in conversions if isinstance(each, WeightConverter)]
        state = model.state_dict()

        def in_model(stored: str) -> str:
            return rename_source_key(stored, renamings, converters, model.base_model_prefix, state)[0]

        def known(stored: str) -> str | None:
            return name if (name := in_model(stored)) in state else None

        self._stored_names |= {in_model(f"{stored}{CODED_PARTS[0]}"): stored for stored in self._loaded.packed}
        # Layers that the model lacks, such as a head, are passed over, as transformers passes over their weights.
        inputs = renamed_inputs(self._loaded.activations, known)
        self._loaded = replace(self._loaded, activations=inputs)
        return conversions

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        for operation in getattr(converter, "operations", ()):
            if isinstance(operation, UnpackWeight):
                operation.dtype = dtype
        return super().get_new_dtype(converter, param, dtype)

    def weight(self, name: str, device: torch.device) -> Tensor:
        """The weight that the model calls ``name``, in the dtype that it was saved with."""
        return self._loaded.tensor(self._stored_names[name], device)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        used = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [
            each
            for each in used
            if not any(isinstance(operation, UnpackWeight) for operation in getattr(each, "operations", ()))
        ]
        self._fill_ties(model)
        keys = memory_keys(model.state_dict())
        stored = {keys[name]: stored for name, stored in self._stored_names.items() if name in keys}
        self._stored_names = {name: stored[key] for name, key in keys.items() if key in stored}
        activations, inputs = self.quantization_config.activations, self._loaded.activations
        if self.quantization_config.packed:
            of_layers = "float" if activations == STORED else activations
            put_packed(model, packed_weights(model, self._loaded, keys, self._stored_names, of_layers))
        if activations == STORED:
            stored_for(model, inputs, self._loaded.path, asked=True, strict=True)  # which refuses what does not fit
            ActivationQuantizer.stored(model, inputs)
        self._contents = of_files(model, self._loaded, self._stored_names)
        hook_saving(model)
        return model

    def _fill_ties(self, model: PreTrainedModel) -> None:
        """Weights that were one tensor when they were saved, and that the model does not tie."""
        state = model.state_dict()
        names = {stored: name for name, stored in self._stored_names.items()}
        prefix = f"{model.base_model_prefix}."
        for alias, stored in self._loaded.ties.items():
            source = state.get(names.get(stored, stored))
            for name in (alias, alias.removeprefix(prefix), prefix + alias):
                target = state.get(name)
                if source is None or target is None:
                    continue
                if target.data_ptr() != source.data_ptr() and target.shape == source.shape:
                    target.copy_(source)

    # -- saving --------------------------------------------------------------------------------------------------------

    def save_from(self, contents: Contents) -> None:
        """What ``save_pretrained`` writes from now on."""
        self._contents = contents

    def saved_contents(self) -> PackedContents:
        if self._contents is None:
            raise RuntimeError("save_pretrained: the model was not loaded whole; load it again")
        return self._contents()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """transformers writes no weights inside."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel, *args: Any
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        if not self._saving:
            raise RuntimeError("diffq_fast: a packed folder is written by model.save_pretrained(folder) alone")
        return {}, {}

    def is_serializable(self, *args: Any) -> bool:
        return True

    # -- what else is asked --------------------------------------------------------------------------------------------

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        if self.quantization_config.packed:
            raise ValueError("diffq_fast: packed weights are not unpacked in place; load the folder with packed=False")
        unhook_saving(model)
        return model if dtype is None else model.to(dtype)

    @property
    def is_trainable(self) -> bool:
        """Through adapters: gradients reach the inputs of packed layers too."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Weights that are not kept packed are ordinary parameters."""
        return not self.quantization_config.packed

    @property
    def is_compileable(self) -> bool:
        return True


def pack_on_save(quantizer: BaseQuantizer, config: DiffqFastConfig | None = None) -> None:
    """From now on ``save_pretrained`` and ``push_to_hub`` of the quantizer's model write packed folders.

    Args:
        quantizer: on a transformers model, or on a module that holds some, each of which then writes its own.
        config: what the folder's ``config.json`` says.

    Raises:
        TypeError: there is no transformers model.
    """
    config = DiffqFastConfig() if config is None else config
    models = list(outermost(quantizer.model))
    if not models:
        raise TypeError(
            f"pack_on_save: expected a quantizer of a transformers model, got one of a "
            f"{type(quantizer.model).__name__}; diffq_fast.save writes a packed file of any model"
        )
    for model in models:
        model.hf_quantizer = DiffqFastHfQuantizer(config)
        model.hf_quantizer.save_from(of_quantizer(quantizer, model, config.coding))
        model.config.quantization_config = config
        hook_saving(model)


def save_float(quantizer: BaseQuantizer) -> None:
    """Undo :func:`pack_on_save`: ``save_pretrained`` writes what transformers writes, as checkpoints of a training."""
    for model in outermost(quantizer.model):
        unhook_saving(model)
        for owner, names in ((model, OF_MODEL), (model.config, OF_CONFIG)):
            for name in names & vars(owner).keys():
                delattr(owner, name)


def outermost(model: nn.Module) -> Iterator[PreTrainedModel]:
    """The transformers models that a module is or holds, without those inside of another one."""
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and id(module) not in inside:
            inside |= {id(each) for each in module.modules()}
            yield module
