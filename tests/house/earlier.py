"""What commit 4576c40 wrote, computed and learned, and the same from the code as it stands.

    PYTHONPATH=tests python -m house.earlier

writes ``tests/data/house`` anew. That is done by the commit whose behaviour is kept, and not again to please a test.

Bytes are compared where they are the same on every machine: whole widths, levels, ranges, packed words, decoded
weights. What passes through sums, exponentials or other people's file formats is compared within a tolerance, which is
far below what another draw of the noise, another order of it or another formula would change.
"""

from __future__ import annotations

import hashlib
import io
import json
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diffq_fast
from house.earlier_models import MODELS, QUANTIZERS, Case

DATA = Path(__file__).resolve().parents[1] / "data" / "house"
RECORD = DATA / "record.json"
# Packed files and stored states that are kept: by file name, the case, and how the file is written.
PACKED = {
    "diffq": (Case("Ragged", "diffq"), False),
    "diffq_with_logits": (Case("Tied", "diffq single"), True),
    "diffq_ranges_per_group": (Case("Dense", "diffq ranges"), False),
    "diffq_half": (Case("Convolutional", "diffq half"), True),
    "uniform": (Case("Recurrent", "uniform 8"), False),
    "uniform_fractional": (Case("Dense", "uniform 9.6"), False),
    "lsq": (Case("Tied", "lsq 4"), True),
}
STATES = {
    "diffq_state": (Case("Dense", "diffq"), {}),
    "diffq_state_unpacked": (Case("Recurrent", "diffq single"), {"packed": False}),
    "uniform_state": (Case("Dense", "uniform 3"), {"torch_pack": True}),
    "lsq_state": (Case("Dense", "lsq 4"), {}),
}
# Files that the command line converts, with the model of those that know no shapes.
CONVERTED = {
    "golden/diffq_unpacked.th": None,
    "house/diffq_state_unpacked.th": None,
    "house/diffq_state.th": "Dense",
    "house/uniform_state.th": "Dense",
    "house/lsq_state.th": "Dense",
}
WRITTEN = [
    *(Case(model, name) for model in ("Dense", "Tied") for name in QUANTIZERS if name != "diffq auto"),
    *(
        Case(model, name)
        for model in ("Ragged", "Convolutional", "Recurrent")
        for name in ("diffq", "diffq half", "uniform 8", "lsq 4")
    ),
]
TRAINED = [
    *(Case("Dense", name) for name in QUANTIZERS),
    *(Case("Ragged", name) for name in ("diffq", "diffq single", "diffq torch", "uniform 3", "lsq 4")),
    *(Case(model, "diffq") for model in ("Convolutional", "Recurrent", "Tied")),
    *(Case("Tied", name) for name in ("diffq torch", "diffq half", "lsq 4")),
]
FROZEN = [Case(model, name) for model in ("Dense", "Tied") for name in ("diffq", "diffq single", "diffq by noise")]


def digest(value: Any) -> str:
    """SHA-256 of a nest of tensors, numbers, texts and classes, in a form of its own."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        state.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        state.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        _feed(state, list(value.items()))
    elif isinstance(value, (list, tuple)):
        state.update(f"{type(value).__name__} {len(value)} ".encode())
        for each in value:
            _feed(state, each)
    else:
        state.update((value.__name__ if isinstance(value, type) else repr(value)).encode() + b" ")


def _bytes_digest(write: Callable[[Path], object]) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _state_digest(quantizer: Any, **form: bool) -> str:
    """Of a stored state; or that there is none, for ragged groups and ranges per group."""
    try:
        return digest(quantizer.get_quantized_state(**form))
    except ValueError:
        return "ValueError"


def written(case: Case) -> dict[str, Any]:
    """What a model with these very weights and widths becomes in each form of storage."""
    model, quantizer = case.make()
    before = digest(model.state_dict())
    with quantizer.enter_quantize():
        rounded = digest(model.state_dict())
    save = partial(diffq_fast.save, quantizer)
    return {
        "file": _bytes_digest(save),
        "file with logits": _bytes_digest(partial(save, logits=True)),
        "state": _state_digest(quantizer),
        "unpacked state": _state_digest(quantizer, packed=False),
        "torch_pack state": _state_digest(quantizer, torch_pack=True),
        "rounded weights": rounded,
        "weights come back": digest(model.state_dict()) == before,
        "size": quantizer.model_size().item(),
        "true size": quantizer.true_model_size(),
    }


def stored_sizes(case: Case) -> dict[str, float]:
    """Sizes of pickled and compressed states: PyTorch's and zlib's versions have a say in them."""
    _, quantizer = case.make()
    return {"packed": quantizer.packed_model_size(), "compressed": quantizer.compressed_model_size()}


def frozen(case: Case) -> dict[str, Any]:
    """Widths and file after freezing, as they stand and down to a size."""
    result = {}
    for share in (None, 0.8):
        _, quantizer = case.make()
        quantizer.freeze_bits(share and share * quantizer.true_model_size())
        result[f"to {share}"] = [digest(quantizer.widths()), _bytes_digest(partial(diffq_fast.save, quantizer))]
    return result


def _step(model: Any, seed: int, penalty: Callable[[], Tensor]) -> Tensor:
    outputs = model(model.inputs(seed)).float()
    return F.cross_entropy(outputs, torch.arange(len(outputs)) % 3) + penalty()


def _train(model: Any, quantizer: Any, steps: int, optimizer: Any, penalty: Callable[[], Tensor]) -> list[float]:
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = _step(model, step, penalty)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(case: Case, *, autocast: bool = False) -> dict[str, Any]:
    """Losses of a short training, and what it ends with."""
    model, quantizer = case.make()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each not in _learned(model)], lr=0.05)
    quantizer.setup_optimizer(optimizer, **({} if case.quantizer.startswith("lsq") else {"lr": 0.5}))
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = _train(model, quantizer, 8, optimizer, lambda: 2 * quantizer.model_size())
    model.eval()
    with torch.no_grad():
        outputs = model(model.inputs(99))
    return {"losses": losses, "outputs": outputs.flatten().tolist()[:12], "size": quantizer.model_size().item()}


def _learned(model: nn.Module) -> set[nn.Parameter]:
    return {each for name, each in model.named_parameters() if name.endswith(("_diffq", "_lsq"))}


def led_to_a_size(case: Case) -> dict[str, Any]:
    """A training that a size target leads, and the size at its end."""
    model, quantizer = case.make()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each not in _learned(model)], lr=0.05)
    quantizer.setup_optimizer(optimizer, lr=0.1)
    target = diffq_fast.SizeTarget(quantizer, mb=0.7 * quantizer.true_model_size(), total_steps=30)
    torch.manual_seed(5)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = _step(model, step, target.penalty)
        loss.backward()
        optimizer.step()
        target.step()
        losses.append(loss.item())
    return {"losses": losses, "size": quantizer.true_model_size()}


def tensors(path: Path) -> dict[str, str]:
    """The digest of each tensor of a packed file, decoded."""
    return {name: digest(value) for name, value in diffq_fast.load(path).items()}


def restored(path: Path, case: Case) -> dict[str, str]:
    """The digest of each parameter that a stored state gives back."""
    model = MODELS[case.model]()
    diffq_fast.restore_quantized_state(model, torch.load(path, weights_only=False))
    return {name: digest(value) for name, value in model.named_parameters()}


def converted(name: str) -> str:
    """The digest of the packed file that the command line makes of a stored state."""
    model = CONVERTED[name]
    options = ["--model", f"house.earlier_models:{model}"] if model else []
    return _bytes_digest(lambda path: _command("convert", str(DATA.parent / name), str(path), *options))


def _command(*arguments: str) -> None:
    """``python -m diffq_fast`` with arguments, in this process; RuntimeError if it fails."""
    status: Any = None
    with mock.patch.object(sys, "argv", ["diffq_fast", *arguments]), redirect_stdout(io.StringIO()):
        try:
            runpy.run_module("diffq_fast", run_name="__main__")
        except SystemExit as stop:
            status = stop.code
    if status:
        raise RuntimeError(f"diffq_fast {' '.join(arguments)}: exit status {status}")


def write_files() -> None:
    for name, (case, logits) in PACKED.items():
        diffq_fast.save(case.make()[1], DATA / f"{name}.safetensors", logits=logits)
    for name, (case, form) in STATES.items():
        torch.save(case.make()[1].get_quantized_state(**form), DATA / f"{name}.th")


def record() -> dict[str, Any]:
    """Everything that is kept, as JSON values."""
    return {
        "written": {str(case): written(case) for case in WRITTEN},
        "stored sizes": {str(case): stored_sizes(case) for case, _ in STATES.values()},
        "frozen": {str(case): frozen(case) for case in FROZEN},
        "trained": {str(case): trained(case) for case in TRAINED},
        "trained under autocast": {str(case): trained(case, autocast=True) for case in [Case("Dense", "diffq auto")]},
        "led to a size": {str(case): led_to_a_size(case) for case in [Case("Dense", "diffq")]},
        "tensors": {name: tensors(DATA / f"{name}.safetensors") for name in PACKED},
        "restored": {name: restored(DATA / f"{name}.th", case) for name, (case, _) in STATES.items()},
        "converted": {name: converted(name) for name in CONVERTED},
    }


def main() -> None:
    DATA.mkdir(exist_ok=True)
    write_files()
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
