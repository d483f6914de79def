"""A page on which a person draws a digit, and a packed network in the browser says which one it is.

    bash csrc/wasm/build.sh && python examples/web/serve.py [folder] [epochs] [port]

Trains the digits network of examples/mnist.py briefly, packs it, puts it into the folder (web-output) beside the page
and the JavaScript package, and serves that. Any other server of files does as well.
"""

import contextlib
import functools
import http.server
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import mnist

import diffq_fast

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "build" / "wasm"
PAGE = ("index.html", "style.css", "page.js", "network.js", "pixels.js")
SEED = 0
SAMPLES = 200


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, with the types that browsers want of modules."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        pass


def server(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of the folder for this machine alone; port 0: any that is free."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(folder)))


def write_page(folder: Path, package: Path = PACKAGE) -> None:
    """All but the network."""
    if not (package / "diffq_fast.wasm").exists():
        raise SystemExit(f"serve: no {package / 'diffq_fast.wasm'}; `bash csrc/wasm/build.sh` makes it")
    (folder / "diffq-fast").mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, folder / name)
    for name in ("index.js", "diffq_fast.wasm"):
        shutil.copy(package / name, folder / "diffq-fast" / name)


def write_network(folder: Path, epochs: int) -> mnist.Digits:
    """network.safetensors, and samples.bytes: digits that it was not trained on, 28 x 28 bytes each. Returns all of
    these."""
    digits, held_out = mnist.split(mnist.load_digits())
    network = mnist.new_network(SEED)
    quantizer = mnist.train(network, digits, SEED, with_diffq=True, epochs=epochs)
    folder.mkdir(parents=True, exist_ok=True)
    diffq_fast.save(quantizer, folder / "network.safetensors")
    chosen = torch.randperm(len(held_out.labels), generator=torch.Generator().manual_seed(SEED))[:SAMPLES]
    held_out.images[chosen].mul(255).round().byte().numpy().tofile(folder / "samples.bytes")
    return held_out


def main(folder: str = "web-output", epochs: str = "5", port: str = "8000") -> None:
    mnist.use_one_thread()
    files = Path(folder)
    write_page(files)
    write_network(files, int(epochs))
    with server(files, int(port)) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/ (Control-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
