"""Packed folders: ``save_pretrained`` writes them, ``from_pretrained`` reads them."""

import copy
import json
import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[hf]')")

import diffq_fast  # noqa: E402
from diffq_fast import ActivationQuantizer, DiffQuantizer, RateQuantizer  # noqa: E402
from diffq_fast.integrations.huggingface import DiffqFastConfig, pack_on_save, save_float  # noqa: E402
from diffq_fast.packed.header import PackedFileError  # noqa: E402
from diffq_fast.runtime.weight import PackedWeight  # noqa: E402
from support.hugging_face import ARCHITECTURES, made, output  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*without a compiled core.*")


def quantised(model, scheme=DiffQuantizer, **options):
    """A quantizer whose groups have different widths."""
    quantizer = scheme(model, **{"min_size": 0.002, "group_size": 8, **options})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for logit in quantizer.learned_parameters():
            logit.add_(torch.randn(logit.shape, generator=generator) * 0.7)
    return quantizer


def folder_of(architecture, folder, **options):
    """A packed folder of a tiny model; its class, inputs, and what the quantised model gives for them."""
    model, auto, inputs = made(architecture)
    quantizer = quantised(model, **options)
    expected = output(model, inputs)
    pack_on_save(quantizer)
    model.save_pretrained(folder)
    return auto, inputs, expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_folder_loads_as_the_model_that_was_saved(architecture, tmp_path):
    auto, inputs, expected = folder_of(architecture, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "diffq_fast"
    assert diffq_fast.inspect(tmp_path / "model.safetensors").weights  # it is the package's own file
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert not any(isinstance(module, PackedWeight) for module in loaded.modules())
    assert torch.equal(output(loaded, inputs), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_stay_packed_in_memory_where_that_is_asked_for(architecture, tmp_path):
    auto, inputs, expected = folder_of(architecture, tmp_path)
    loaded = auto.from_pretrained(tmp_path, quantization_config=DiffqFastConfig(packed=True))
    packed = [module for module in loaded.modules() if isinstance(module, PackedWeight)]
    assert len(packed) >= 8
    torch.testing.assert_close(output(loaded, inputs), expected, rtol=1e-4, atol=1e-5)


def test_packed_layers_round_their_activations_where_that_is_asked_for(tmp_path):
    auto, inputs, expected = folder_of("bert", tmp_path)
    config = DiffqFastConfig(packed=True, activations="int8")
    loaded = auto.from_pretrained(tmp_path, quantization_config=config)
    kinds = {module.activations for module in loaded.modules() if isinstance(module, PackedWeight)}
    assert kinds == {"int8"}
    made = output(loaded, inputs)
    assert not torch.equal(made, expected)
    torch.testing.assert_close(made, expected, rtol=0.1, atol=0.05)
    loaded.save_pretrained(tmp_path / "second")
    again = auto.from_pretrained(tmp_path / "second")  # as its own config.json says
    assert torch.equal(output(again, inputs), made)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_inputs_are_rounded_as_the_folder_says_where_that_is_asked_for(architecture, packed, tmp_path):
    model, auto, inputs = made(architecture)
    quantizer = quantised(model)
    rounding = ActivationQuantizer(model, bits=5)
    quantizer.no_optimizer()
    model.train()
    model(**inputs)  # the ranges
    expected = output(model.eval(), inputs)
    pack_on_save(quantizer)
    model.save_pretrained(tmp_path / "first")

    float_inputs = auto.from_pretrained(tmp_path / "first")
    with_float_inputs = output(float_inputs, inputs)
    assert not torch.equal(with_float_inputs, expected)
    float_inputs.save_pretrained(tmp_path / "second")  # which keeps them
    config = DiffqFastConfig(packed=packed, activations="stored")
    loaded = auto.from_pretrained(tmp_path / "second", quantization_config=config)
    assert ActivationQuantizer.on(loaded).inputs.keys() == rounding.inputs.keys()
    if packed:
        # A float product that differs in its last bit may round to the next level of 31 in the layer behind it.
        error = (output(loaded, inputs) - expected).abs().mean()
        assert error < 0.25 * (with_float_inputs - expected).abs().mean()
    else:
        assert torch.equal(output(loaded, inputs), expected)
    made_here = output(loaded, inputs)
    loaded.save_pretrained(tmp_path / "third")
    assert torch.equal(output(auto.from_pretrained(tmp_path / "third"), inputs), made_here)  # as its config.json says


def test_a_base_model_rounds_the_inputs_of_its_own_layers_alone(tmp_path):
    model, _, inputs = made("bert")
    quantizer = quantised(model)
    rounding = ActivationQuantizer(model, bits=5)
    quantizer.no_optimizer()
    model.train()(**inputs)
    pack_on_save(quantizer)
    model.save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(
        tmp_path, quantization_config=DiffqFastConfig(activations="stored"), add_pooling_layer=False
    )
    own = [name.removeprefix("bert.") for name in rounding.inputs if name.startswith("bert.")]
    assert list(ActivationQuantizer.on(base).inputs) == own
    assert len(own) < len(rounding.inputs)  # the head's are left out
    expected = model.eval()(**inputs, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(base.eval()(**inputs).last_hidden_state, expected)


def test_stored_inputs_that_are_not_there_are_refused(tmp_path):
    auto, _, _ = folder_of("bert", tmp_path / "none")
    config = DiffqFastConfig(activations="stored")
    with pytest.raises(ValueError, match="the file has none; it was saved without an ActivationQuantizer"):
        auto.from_pretrained(tmp_path / "none", quantization_config=config)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_loaded_model_saves_the_same_folder_again(architecture, packed, tmp_path):
    auto, inputs, expected = folder_of(architecture, tmp_path / "first")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "first")
    config.quantization_config["packed"] = packed
    loaded = auto.from_pretrained(tmp_path / "first", config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no weight is told to have changed
        loaded.save_pretrained(tmp_path / "second")
    first, second = (diffq_fast.load(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("first", "second")]
    assert abs(sizes[0] - sizes[1]) < 0.01 * sizes[0]
    torch.testing.assert_close(output(auto.from_pretrained(tmp_path / "second"), inputs), expected)


def test_a_weight_that_was_changed_is_saved_as_it_is(tmp_path):
    auto, inputs, _ = folder_of("bert", tmp_path / "first")
    loaded = auto.from_pretrained(tmp_path / "first")
    with torch.no_grad():
        loaded.bert.encoder.layer[0].output.dense.weight.add_(0.125)
    with pytest.warns(UserWarning, match=r"1 of \d+ quantised weights have changed .*layer.0.output.dense.weight"):
        loaded.save_pretrained(tmp_path / "second")
    again = auto.from_pretrained(tmp_path / "second")
    assert torch.equal(output(again, inputs), output(loaded, inputs))


def test_the_base_model_loads_from_the_folder_of_one_with_a_head_and_the_other_way_round(tmp_path):
    model, _, inputs = made("bert")
    quantizer = quantised(model)
    expected = model.eval().bert(**inputs, return_dict=True)  # not through the root: float weights
    pack_on_save(quantizer)
    model.save_pretrained(tmp_path / "head")
    base = transformers.AutoModel.from_pretrained(tmp_path / "head", add_pooling_layer=False)
    quantizer.bake()
    expected = model.bert(**inputs)
    assert torch.equal(output(base, inputs), expected.last_hidden_state)

    base.save_pretrained(tmp_path / "base")
    head = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    assert torch.equal(output(head.bert, inputs), expected.last_hidden_state)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_shards_have_an_index_and_load_as_one(architecture, tmp_path):
    model, auto, inputs = made(architecture)
    quantizer = quantised(model)
    expected = output(model, inputs)
    pack_on_save(quantizer)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert torch.equal(output(auto.from_pretrained(tmp_path), inputs), expected)

    model.save_pretrained(tmp_path)  # whole again: nothing of the shards is left
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]


def test_coded_levels_and_half_precision_load(tmp_path):
    model, auto, inputs = made("bert")
    quantizer = quantised(model, RateQuantizer, float16=True)
    expected = output(model, inputs)
    pack_on_save(quantizer, DiffqFastConfig(coding="coded"))
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert torch.equal(output(loaded, inputs), expected)
    assert {param.dtype for param in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_the_one_that_is_asked_for(dtype, tmp_path):
    auto, inputs, expected = folder_of("llama", tmp_path)
    loaded = auto.from_pretrained(tmp_path, dtype=dtype)
    assert {param.dtype for param in loaded.parameters()} == {dtype}
    torch.testing.assert_close(output(loaded, inputs).float(), expected, rtol=0.1, atol=0.1)


def test_push_to_hub_uploads_the_packed_folder(tmp_path, monkeypatch):
    model, _, _ = made("vit")
    pack_on_save(quantised(model))
    uploaded = {}

    def upload(self, working_dir, repo_id, *args, **kwargs):
        file = f"{working_dir}/model.safetensors"
        uploaded[repo_id] = diffq_fast.inspect(file).weights

    monkeypatch.setattr(type(model), "_upload_modified_files", upload)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *args, **kwargs: _Repo("me/packed"))
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: _Card())
    model.push_to_hub("me/packed")
    assert uploaded.keys() == {"me/packed"}
    assert uploaded["me/packed"]


class _Repo:
    def __init__(self, repo_id):
        self.repo_id = repo_id


class _Card:
    def save(self, path):
        pass


def test_a_copy_saves_itself(tmp_path):
    auto, inputs, expected = folder_of("vit", tmp_path / "first")
    copied = copy.deepcopy(auto.from_pretrained(tmp_path / "first"))
    copied.save_pretrained(tmp_path / "second")
    assert torch.equal(output(auto.from_pretrained(tmp_path / "second"), inputs), expected)


def test_a_damaged_file_is_refused_before_anything_is_decoded(tmp_path):
    auto, _, _ = folder_of("vit", tmp_path)
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    with pytest.raises(PackedFileError, match="checksum"):
        auto.from_pretrained(tmp_path)


def test_a_float_model_is_not_quantised_by_loading_it(tmp_path):
    model, auto, _ = made("vit")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pre-quantized"):
        auto.from_pretrained(tmp_path, quantization_config=DiffqFastConfig())


def test_a_folder_whose_file_is_not_packed_is_refused(tmp_path):
    model, auto, _ = made("vit")
    model.config.quantization_config = DiffqFastConfig().to_dict()
    model.save_pretrained(tmp_path)
    with pytest.raises(PackedFileError, match="expected 'diffq_fast'"):
        auto.from_pretrained(tmp_path)


def test_save_float_gives_what_transformers_writes(tmp_path):
    model, auto, _ = made("vit")
    quantizer = quantised(model)
    pack_on_save(quantizer)
    save_float(quantizer)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    weight = "classifier.weight"
    assert torch.equal(auto.from_pretrained(tmp_path).state_dict()[weight], model.state_dict()[weight])


def test_a_quantizer_of_something_else_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    with pytest.raises(TypeError, match="expected a quantizer of a transformers model, got one of a Sequential"):
        pack_on_save(DiffQuantizer(model, min_size=0))


def test_another_coding_is_refused():
    with pytest.raises(ValueError, match="coding must be one of 'fixed', 'coded', 'auto', got 'zip'"):
        DiffqFastConfig(coding="zip")
    with pytest.raises(ValueError, match="activations must be one of 'float', 'int8', 'stored', got 'int4'"):
        DiffqFastConfig(packed=True, activations="int4")
    with pytest.raises(ValueError, match="activations='int8' is for layers that keep their weights packed"):
        DiffqFastConfig(activations="int8")
