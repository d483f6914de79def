"""Layers that torch computes as one piece, written out, so that the products with their weights can be seen.

Recurrent layers and cells, and multi-head attention. The values are torch's up to rounding; nothing is dropped out, as
in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

State = tuple[Tensor, ...]
OPTIONS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")  # of attention


class Product(Protocol):
    """``inputs @ weight.T + bias``, seen by who asked for it: of the layer's weight of this name, or, of so many equal
    parts of its rows, of one."""

    def __call__(self, name: str, inputs: Tensor, bias: Tensor | None, part: int = 0, parts: int = 1) -> Tensor: ...


def recurrent(layer: nn.RNNBase, product: Product) -> Callable[..., Any]:
    """What ``layer.forward`` computes, of an nn.LSTM, nn.GRU or nn.RNN."""

    def forward(values: Tensor | PackedSequence, state: Any = None) -> tuple[Any, Any]:
        if isinstance(values, PackedSequence):
            return _packed(layer, product, values, state)
        batched = values.ndim == 3
        sequence = values if batched else values[:, None]
        if batched and layer.batch_first:
            sequence = sequence.transpose(0, 1)
        first = _states(layer, state, batched, sequence)
        output, last = _layers(layer, product, sequence, first)
        if not batched:
            output, last = output[:, 0], tuple(each[:, 0] for each in last)
        elif layer.batch_first:
            output = output.transpose(0, 1)
        return output, last if isinstance(layer, nn.LSTM) else last[0]

    return forward


def _packed(layer: nn.RNNBase, product: Product, values: PackedSequence, state: Any) -> tuple[Any, Any]:
    """Sequences of several lengths, one after the other."""
    sequences = unpack_sequence(values)
    states = None if state is None else (state if isinstance(layer, nn.LSTM) else (state,))
    outputs, lasts = [], []
    for place, sequence in enumerate(sequences):
        own = None if states is None else tuple(each[:, place : place + 1] for each in states)
        first = own or _states(layer, None, True, sequence[:, None])
        output, last = _layers(layer, product, sequence[:, None], first)
        outputs.append(output[:, 0])
        lasts.append(last)
    ended = tuple(torch.cat(parts, 1) for parts in zip(*lasts, strict=True))
    packed = pack_sequence(outputs, enforce_sorted=values.unsorted_indices is None)
    return packed, ended if isinstance(layer, nn.LSTM) else ended[0]


def _states(layer: nn.RNNBase, state: Any, batched: bool, sequence: Tensor) -> State:
    """The first states, each [layers · directions, batch, size]."""
    if state is not None:
        given = state if isinstance(layer, nn.LSTM) else (state,)
        return tuple(each if batched else each[:, None] for each in given)
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if isinstance(layer, nn.LSTM) else 1]
    return tuple(sequence.new_zeros(count, sequence.shape[1], size) for size in sizes)


def _layers(layer: nn.RNNBase, product: Product, sequence: Tensor, first: State) -> tuple[Tensor, State]:
    """The outputs [time, batch, directions · size] of the last layer, and the last states of all."""
    ends = []
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    for depth in range(layer.num_layers):
        outputs = []
        for direction, suffix in enumerate(suffixes):
            name = f"_l{depth}{suffix}"
            state = tuple(each[depth * len(suffixes) + direction] for each in first)
            output, state = _direction(layer, product, name, sequence.flip(0) if direction else sequence, state)
            outputs.append(output.flip(0) if direction else output)
            ends.append(state)
        sequence = torch.cat(outputs, 2)
    return sequence, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


def _direction(layer: nn.RNNBase, product: Product, name: str, sequence: Tensor, state: State) -> tuple[Tensor, State]:
    biases = [getattr(layer, f"bias_{part}{name}") if layer.bias else None for part in ("ih", "hh")]
    inputs, outputs = product(f"weight_ih{name}", sequence, biases[0]), []
    for each in inputs:
        hidden = product(f"weight_hh{name}", state[0], biases[1])
        state = _step(layer, each, hidden, state)
        if getattr(layer, "proj_size", 0):
            state = (product(f"weight_hr{name}", state[0], None), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs), state


def _step(layer: nn.Module, inputs: Tensor, hidden: Tensor, state: State) -> State:
    """The next state, from both products with their biases."""
    if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
        gates = (inputs + hidden).chunk(4, -1)
        cell = gates[1].sigmoid() * state[1] + gates[0].sigmoid() * gates[2].tanh()
        return gates[3].sigmoid() * cell.tanh(), cell
    if isinstance(layer, (nn.GRU, nn.GRUCell)):
        of_inputs, of_hidden = inputs.chunk(3, -1), hidden.chunk(3, -1)
        reset, update = ((of_inputs[place] + of_hidden[place]).sigmoid() for place in (0, 1))
        new = (of_inputs[2] + reset * of_hidden[2]).tanh()
        return ((1 - update) * new + update * state[0],)
    total = inputs + hidden
    return (total.tanh() if layer.nonlinearity == "tanh" else total.relu(),)


def cell(layer: nn.RNNCellBase, product: Product) -> Callable[..., Any]:
    """What ``layer.forward`` computes, of an nn.LSTMCell, nn.GRUCell or nn.RNNCell."""

    def forward(values: Tensor, state: Any = None) -> Any:
        parts = 2 if isinstance(layer, nn.LSTMCell) else 1
        if state is None:
            found: State = (values.new_zeros(*values.shape[:-1], layer.hidden_size),) * parts
        else:
            found = tuple(state) if parts == 2 else (state,)
        inputs = product("weight_ih", values, layer.bias_ih)
        found = _step(layer, inputs, product("weight_hh", found[0], layer.bias_hh), found)
        return found if parts == 2 else found[0]

    return forward


def attention(layer: nn.MultiheadAttention, product: Product) -> Callable[..., Any]:
    """What ``layer.forward`` computes, of an nn.MultiheadAttention.

    The queries, keys and values are made here, and torch's own function gets them with unit matrices for its weights;
    the output layer is called as any other module.
    """

    def forward(query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        options = dict(zip(OPTIONS, given, strict=False)) | named
        turned = layer.batch_first and query.ndim == 3
        made = _projected(layer, product, (query, key, value))
        queries, keys, values = (each.transpose(0, 1) if turned else each for each in made)
        size = layer.embed_dim
        unit = torch.eye(size, dtype=query.dtype, device=query.device)
        output, weights = F.multi_head_attention_forward(
            queries,
            keys,
            values,
            size,
            layer.num_heads,
            None,
            None,
            layer.bias_k,
            layer.bias_v,
            layer.add_zero_attn,
            0.0,
            unit,
            None,
            training=False,
            use_separate_proj_weight=True,
            q_proj_weight=unit,
            k_proj_weight=unit,
            v_proj_weight=unit,
            **options,
        )
        output = layer.out_proj(output)
        return output.transpose(0, 1) if turned else output, weights

    return forward


def _projected(layer: nn.MultiheadAttention, product: Product, given: tuple[Tensor, ...]) -> list[Tensor]:
    """Queries, keys and values, each [..., embed_dim]."""
    biases = [None] * 3 if layer.in_proj_bias is None else list(layer.in_proj_bias.chunk(3))
    if layer._qkv_same_embed_dim:
        return [product("in_proj_weight", given[place], biases[place], place, 3) for place in range(3)]
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    return [product(name, each, bias) for name, each, bias in zip(names, given, biases, strict=True)]
