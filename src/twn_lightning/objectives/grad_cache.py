"""Representation caching: contrastive batches larger than memory, with the gradients of the plain computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

ChunkT = TypeVar("ChunkT")
Representations = tuple[Tensor, ...]


def grad_cache_backward(
    encode_chunk: Callable[[ChunkT], Representations],
    chunks: Sequence[ChunkT],
    loss_fn: Callable[[Representations], Tensor],
    rng_replay: bool = True,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> Tensor:
    """Backpropagate a loss over all chunks' representations while holding one chunk's activations at a time.

    All chunks are encoded without gradient; the loss is differentiated with respect to the concatenated
    representations; each chunk is encoded again, with its random state replayed, and receives its share of that
    gradient. Parameter gradients accumulate, so nothing else may be pending on them. A single chunk is encoded once.

    Args:
        encode_chunk: Chunk -> tuple of (rows, ...) tensors; the tuple has the same length for every chunk, and a chunk
            may contribute zero rows to some of them (query chunks next to candidate chunks).
        chunks: The chunks, of any sizes.
        loss_fn: Concatenated representations (dimension 0, chunk order) -> scalar loss.
        rng_replay: Restore each chunk's CPU and CUDA random state on the second encoding; without it dropout would
            make the two encodings differ.
        backward: What runs the backward pass; Lightning's `manual_backward` goes here. It is called once per chunk.

    Returns:
        The detached scalar loss.

    Raises:
        ValueError: Without chunks, or when the loss does not depend on any representation.

    Reference: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache).

    Relations:
        Loss and gradients equal those of `loss_fn(concatenated encodings).backward()`.
    """
    if not chunks:
        raise ValueError("grad_cache_backward needs at least one chunk.")
    if len(chunks) == 1:
        loss = loss_fn(encode_chunk(chunks[0]))
        backward(loss)
        return loss.detach()

    states: list[RandomState] = []
    encoded: list[Representations] = []
    with torch.no_grad():
        for chunk in chunks:
            states.append(RandomState.capture())
            encoded.append(encode_chunk(chunk))
    loss, gradients = _representation_gradients(encoded, loss_fn)
    offsets = [0] * len(gradients)
    for chunk, state, first in zip(chunks, states, encoded, strict=True):
        with state.replayed() if rng_replay else nullcontext():
            again = encode_chunk(chunk)
        shares = []
        for index, tensor in enumerate(first):
            shares.append(gradients[index][offsets[index] : offsets[index] + len(tensor)])
            offsets[index] += len(tensor)
        terms = [
            (tensor * share).sum()
            for tensor, share in zip(again, shares, strict=True)
            if tensor.requires_grad and len(tensor)
        ]
        if terms:
            backward(torch.stack(terms).sum())
    return loss


def _representation_gradients(
    encoded: Sequence[Representations], loss_fn: Callable[[Representations], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Loss and its gradient at every concatenated representation; zeros where the loss does not read one."""
    leaves = tuple(torch.cat(parts).detach().requires_grad_() for parts in zip(*encoded, strict=True))
    with torch.enable_grad():
        loss = loss_fn(leaves)
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on any representation: nothing to backpropagate.")
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    filled = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, gradients, strict=True)]
    return loss.detach(), filled


@dataclass
class RandomState:
    """The generators a forward pass may draw from."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def capture(cls) -> RandomState:
        used = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else [])

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Run with this state, then put back the state found on entry."""
        with torch.random.fork_rng(devices=range(len(self.cuda))):
            torch.set_rng_state(self.cpu)
            if self.cuda:
                torch.cuda.set_rng_state_all(self.cuda)
            yield
