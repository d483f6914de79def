"""The demo: train a small network on real digits in float32 and with DiffQ, save it, load it, compare.

Writes demo-output/: the packed file, the float32 file, and a picture of the bits that each layer learned.
One seed; `mnist_claim.py` measures several with an interval.
"""

import subprocess
import sys
import time
from pathlib import Path

import mnist
import torch
from torch import Tensor, nn

import diffq_fast
from diffq_fast import DiffQuantizer

SEED = 0
OUTPUT = Path("demo-output")


def train(kind: str, digits: mnist.Digits) -> tuple[nn.Module, DiffQuantizer | None]:
    """A trained network and its quantizer, if `kind` is "DiffQ"; one line of progress per epoch."""
    started = time.perf_counter()

    def report(epoch: mnist.Epoch) -> None:
        seconds = time.perf_counter() - started
        left = seconds / epoch.number * (mnist.EPOCHS - epoch.number)
        progress = f"epoch {epoch.number:2d}/{mnist.EPOCHS}  loss {epoch.loss:.3f}  {epoch.megabytes:.3f} MB"
        print(f"{kind:8s} {progress}  {seconds:4.0f} s, {left:3.0f} s left", flush=True)

    network = mnist.new_network(SEED)
    return network, mnist.train(network, digits, SEED, with_diffq=kind == "DiffQ", report=report)


def labels_in_new_process(path: Path) -> Tensor:
    """What a fresh process predicts for the held-out digits, knowing only the packed file."""
    command = [sys.executable, str(Path(__file__).with_name("load_packed.py")), str(path)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return torch.tensor([int(label) for label in printed.strip()])


def table(megabytes: list[float], parameters: int, accuracies: list[float], files: list[Path]) -> str:
    """The comparison, float32 first."""
    bits = [size * 8 * 2**20 / parameters for size in megabytes]
    disk = [file.stat().st_size / 2**20 for file in files]
    points = accuracies[1] - accuracies[0]
    rows = [
        ("size", *(f"{size:.3f} MB" for size in megabytes), times_smaller(megabytes)),
        ("file on disk", *(f"{size:.3f} MB" for size in disk), times_smaller(disk)),
        ("bits per weight, all told", *(f"{width:.2f}" for width in bits), ""),
        ("accuracy, held-out digits", *(f"{accuracy:.2f} %" for accuracy in accuracies), f"{points:+.2f} points"),
    ]
    lines = [f"{name:27s}{plain:>10s}{small:>11s}   {note}" for name, plain, small, note in rows]
    return "\n".join([f"{'':27s}{'float32':>10s}{'DiffQ':>11s}", *lines])


def times_smaller(sizes: list[float]) -> str:
    return f"{sizes[0] / sizes[1]:.1f} times smaller"


def main() -> None:
    started = time.perf_counter()
    mnist.use_one_thread()
    OUTPUT.mkdir(exist_ok=True)
    digits, held_out = mnist.split(mnist.load_digits())
    counts = f"{len(digits.labels):,} training and {len(held_out.labels):,} held-out digits"
    print(f"diffq_fast demo: {counts}; takes one to three minutes")
    plain, _ = train("float32", digits)
    network, quantizer = train("DiffQ", digits)
    assert quantizer is not None
    files = [OUTPUT / "mnist_float32.pt", OUTPUT / "mnist.diffq"]
    torch.save(plain.state_dict(), files[0])
    diffq_fast.save(quantizer, files[1])
    diffq_fast.plot_bits(quantizer, OUTPUT / "bits_per_layer.png")

    here, there = mnist.predict(network, held_out), labels_in_new_process(files[1])
    accuracies = [mnist.accuracy(mnist.predict(plain, held_out), held_out), mnist.accuracy(here, held_out)]
    megabytes = [mnist.float32_megabytes(plain), quantizer.true_model_size()]
    parameters = sum(param.numel() for param in plain.parameters())
    print("\n" + table(megabytes, parameters, accuracies, files))
    same = f"{int((here == there).sum()):,} of {len(here):,} labels the same"
    print(f"{'loaded in a new process':37s}{mnist.accuracy(there, held_out):9.2f} %   {same}")
    print(f"\nWrote {OUTPUT}/: {files[1].name}, {files[0].name}, bits_per_layer.png", end="")
    print(f" ({time.perf_counter() - started:.0f} s in all)")
    if not torch.equal(here, there):
        sys.exit("demo: the network loaded from the packed file differs from the one that was saved")


if __name__ == "__main__":
    main()
