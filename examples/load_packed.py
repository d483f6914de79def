"""Load a packed file into a fresh network; print its labels for the held-out digits as one string of digits.

`demo.py` runs this in a new process: what the file holds is all that the network gets.

    python examples/load_packed.py demo-output/mnist.diffq
"""

import sys

import mnist

import diffq_fast


def main(path: str) -> None:
    mnist.use_one_thread()
    network = mnist.build_network()
    diffq_fast.load(path, network)
    _, held_out = mnist.split(mnist.load_digits())
    print("".join(map(str, mnist.predict(network, held_out).tolist())))


if __name__ == "__main__":
    main(sys.argv[1])
