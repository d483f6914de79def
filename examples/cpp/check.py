"""Trains the digits network briefly, packs it, and compares what `classify` makes of it with what Python does.

    python examples/cpp/check.py build/example/classify [folder] [epochs]

The digits are the held-out ones of examples/mnist.py. Labels must be equal, logits to rounding. The folder
(cpp-output) then holds network.safetensors and digits.float32.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import mnist

import diffq_fast

SEED = 0
TOLERANCE = 1e-4  # of logits of some tens: float32 sums of up to 864 products, in another order


def write_files(folder: Path, epochs: int) -> mnist.Digits:
    """A packed network, and the held-out digits."""
    digits, held_out = mnist.split(mnist.load_digits())
    network = mnist.new_network(SEED)
    quantizer = mnist.train(network, digits, SEED, with_diffq=True, epochs=epochs)
    folder.mkdir(parents=True, exist_ok=True)
    diffq_fast.save(quantizer, folder / "network.safetensors")
    held_out.images.numpy().astype("<f4").tofile(folder / "digits.float32")
    return held_out


@torch.no_grad()
def python_logits(path: Path, digits: mnist.Digits) -> np.ndarray:
    """float32 `[digits, 10]`, of a fresh network that knows the file alone."""
    network = diffq_fast.load(path, mnist.build_network()).eval()
    return torch.cat([network(images) for images in digits.images.split(500)]).numpy()


def main(program: str, folder: str = "cpp-output", epochs: str = "3") -> None:
    mnist.use_one_thread()
    files = Path(folder)
    held_out = write_files(files, int(epochs))
    network, digits, logits = (files / name for name in ("network.safetensors", "digits.float32", "logits.float32"))
    printed = subprocess.run([program, network, digits, logits], check=True, stdout=subprocess.PIPE, text=True).stdout
    expected = python_logits(network, held_out)
    found = np.fromfile(logits, dtype="<f4").reshape(expected.shape)
    labels = torch.tensor([int(label) for label in printed.strip()])
    same = int((labels == torch.from_numpy(expected.argmax(1))).sum())
    print(f"{mnist.accuracy(labels, held_out):.2f} % of {len(labels):,} held-out digits are right")
    print(f"{same:,} labels are Python's; the largest difference of a logit is {np.abs(found - expected).max():.1e}")
    if same != len(labels) or not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        sys.exit("check: C++ and Python differ")


if __name__ == "__main__":
    main(*sys.argv[1:])
