"""Tiny, randomly initialised models of transformers, with inputs, by architecture."""

import torch
import transformers

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert():
    return transformers.BertConfig(vocab_size=120, max_position_embeddings=32, **SMALL)


def gpt2():
    return transformers.GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=2, n_positions=32)


def llama():
    return transformers.LlamaConfig(vocab_size=120, num_key_value_heads=1, max_position_embeddings=32, **SMALL)


def t5():
    return transformers.T5Config(vocab_size=120, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)


def vit():
    return transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SMALL)


def whisper():
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8}
    places = {"max_source_positions": 16, "max_target_positions": 16, "decoder_start_token_id": 1, "pad_token_id": 0}
    return transformers.WhisperConfig(vocab_size=120, **layers, **sizes, **places, bos_token_id=1, eos_token_id=2)


def tokens():
    return torch.randint(3, 120, (2, 7), generator=torch.Generator().manual_seed(3))


# architecture: (its configuration, the class that AutoModel... stands for, what it is called with)
ARCHITECTURES = {
    "bert": (bert, transformers.AutoModelForMaskedLM, lambda: {"input_ids": tokens()}),
    "gpt2": (gpt2, transformers.AutoModelForCausalLM, lambda: {"input_ids": tokens()}),
    "llama": (llama, transformers.AutoModelForCausalLM, lambda: {"input_ids": tokens()}),
    "t5": (
        t5,
        transformers.AutoModelForSeq2SeqLM,
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens()[:, :4]},
    ),
    "vit": (
        vit,
        transformers.AutoModelForImageClassification,
        lambda: {"pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))},
    ),
    "whisper": (
        whisper,
        transformers.AutoModelForSpeechSeq2Seq,
        lambda: {
            "input_features": torch.rand(2, 8, 32, generator=torch.Generator().manual_seed(3)),
            "decoder_input_ids": tokens()[:, :4],
        },
    ),
}


def made(architecture):
    """(model with fixed random weights, its class, its inputs)"""
    config, auto, inputs = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    return auto.from_config(config()), auto, inputs()


def output(model, inputs):
    """The logits, or the last hidden state."""
    with torch.no_grad():
        result = model.eval()(**inputs)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state
