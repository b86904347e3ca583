"""One factory of Lightning strategies for all three stages: one device plain, DDP, or FSDP2.

The module is never wrapped by torch's DDP: several backward passes a step (CoT chunks, cached representations) would
leave its reducer out of sync without an error. Instead trained parameters are broadcast once, and `sync_gradients`
averages their gradients in one flat all-reduce after accumulation, which is right under any chunking. Under FSDP2 the
gradients of sharded parameters arrive averaged; `sync_gradients` leaves them alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from twn_lightning.errors import ConfigError, LostProcessError
from twn_lightning.settings import TrainerSettings

T = TypeVar("T")

_GATHERED: WeakSet[nn.Module] = WeakSet()
"""Sharded modules that every rank holds whole for the time."""


class AdapterDDPStrategy(DDPStrategy):
    """Data parallelism without the DDP wrapper: equal parameters at the start, gradients by `sync_gradients`."""

    def configure_ddp(self) -> None:
        """Give every rank the first rank's trained parameters; frozen ones come from the same files."""
        assert self.model is not None
        broadcast_parameters(p for p in self.model.parameters() if p.requires_grad)


class AdapterFSDP2Strategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of the other strategies: one file, trained parameters only, unsharded.

    Lightning's own would gather and save the whole backbone.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return {**state, "state": {i: {k: _whole(v) for k, v in s.items()} for i, s in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                i: {k: _like(v, parameters[i]) for k, v in entries.items()} for i, entries in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _like(value: Any, parameter: Tensor) -> Any:
    """An optimizer's moment, sharded as its parameter is; step counters stay plain."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    # Every rank read the whole file: no rank needs to send its part to the others.
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)


def resolve_accelerator(trainer: TrainerSettings) -> str:
    """`cpu` or `cuda`, with `auto` decided by what is there.

    Raises:
        ConfigError: CUDA asked for where there is none, or more devices than there are.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not available):
        return "cpu"
    if trainer.devices > available:
        raise ConfigError(
            f"trainer.accelerator={trainer.accelerator} with trainer.devices={trainer.devices}, but this machine has "
            f"{available} CUDA devices: set trainer.accelerator=cpu, or trainer.devices to at most {available}"
        )
    return "cuda"


def build_strategy(trainer: TrainerSettings) -> Strategy:
    """The strategy that the trainer's settings ask for.

    `auto` is one device plain, several CUDA devices FSDP2, several CPU processes DDP over gloo.

    Raises:
        ConfigError: `single` with several devices, or devices that are not there.
    """
    accelerator = resolve_accelerator(trainer)
    world = trainer.devices * trainer.num_nodes
    name = trainer.strategy
    if name == "auto":
        name = "single" if world == 1 else ("fsdp2" if accelerator == "cuda" else "ddp")
    if name == "single":
        if world > 1:
            raise ConfigError(
                f"trainer.strategy=single runs on one device, but devices x num_nodes = {world}: "
                "set trainer.strategy to auto, ddp or fsdp2"
            )
        return SingleDeviceStrategy(device="cuda:0" if accelerator == "cuda" else "cpu")
    if name == "fsdp2":
        return AdapterFSDP2Strategy(world)
    return AdapterDDPStrategy(process_group_backend="nccl" if accelerator == "cuda" else "gloo")


def shard(backbone: nn.Module, layers: Iterable[nn.Module], mesh: Any) -> None:
    """FSDP2 on every decoder layer and on the backbone that holds the rest; a second call changes nothing.

    On CUDA layers compute in bf16 and gradients are reduced in fp32; adapters keep their fp32 shards.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if isinstance(backbone, FSDPModule):
        return
    policy = MixedPrecisionPolicy()
    if mesh.device_type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(backbone, mesh=mesh, mp_policy=policy)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Hold a sharded module whole on every rank, so that ranks may run it different numbers of times.

    Decoding takes as many steps as a rank's longest CoT; under FSDP2 each would be a collective that the other ranks
    never join. Without sharding this does nothing. No gradients inside.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    _GATHERED.add(module)
    try:
        with torch.no_grad():
            yield
    finally:
        _GATHERED.discard(module)
        for part in sharded:
            part.reshard()
            # The root keeps its parameters from forward to backward, as fully_shard itself would have it.
            part.set_reshard_after_forward(part is not module, recurse=False)


def runs_in_lockstep(module: nn.Module) -> bool:
    """Whether all ranks must run the module equally often: it is sharded, and not `gathered` at the moment."""
    from torch.distributed.fsdp import FSDPModule

    return world_size() > 1 and isinstance(module, FSDPModule) and module not in _GATHERED


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def sync_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of plain parameters over ranks, in one flat all-reduce.

    Args:
        parameters: what this step trains, the same list on every rank; a rank without a gradient counts as zero.

    Relations: A no-op on one rank, and for parameters that FSDP2 shards (theirs are averaged in the backward pass).
    """
    plain = [p for p in parameters if not isinstance(p, DTensor)]
    if world_size() == 1 or not plain:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in plain]
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    shares = flat.split([gradient.numel() for gradient in gradients])
    for parameter, gradient, share in zip(plain, gradients, shares, strict=True):
        parameter.grad = share.view_as(gradient).to(gradient.dtype)


@torch.no_grad()
def broadcast_parameters(parameters: Iterable[nn.Parameter]) -> None:
    """Copy the first rank's values to every rank."""
    if world_size() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)


def sum_over_ranks(value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A detached scalar summed over ranks, float64: token counts stay exact."""
    total = torch.as_tensor(value, dtype=torch.float64, device=device).detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def average_over_ranks(value: Tensor) -> float:
    """A scalar averaged over ranks."""
    return float(sum_over_ranks(value, value.device)) / world_size()


_NO_ANSWER = re.compile(r"remote|system error|closed|reset by peer|timeout|timed out", re.IGNORECASE)
"""What NCCL's errors say if another rank is gone, and not if this one is at fault."""


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn what the transport says when another rank is gone into an error for people.

    Raises:
        LostProcessError: says what to do.
    """
    try:
        yield
    except RuntimeError as error:  # the class of gloo's errors and the base of NCCL's
        reason = str(error).strip()
        nccl = isinstance(error, dist.DistError) and _NO_ANSWER.search(reason)
        if world_size() == 1 or not ("gloo" in reason or nccl):
            raise
        raise LostProcessError(
            f"rank {rank()} has lost another of the {world_size()} ranks: {reason} What that rank printed says why; "
            "out of memory is the usual reason. Start all ranks again: training goes on with `twn train --resume RUN`, "
            "an evaluation of tasks with the same paths.run_dir"
        ) from error


def leave_processes() -> None:
    """End the process group that a strategy opened, on all ranks together; alone: nothing.

    A process that ends with the group still open may be aborted: a background thread finds its peer gone.
    """
    if dist.is_available() and dist.is_initialized():
        with naming_lost_ranks():
            dist.barrier()
        dist.destroy_process_group()


def gather_objects(value: T) -> list[T]:
    """A picklable value from every rank, in rank order."""
    if world_size() == 1:
        return [value]
    received: list[Any] = [None] * world_size()
    dist.all_gather_object(received, value)
    return received


def interleave(shares: Sequence[Sequence[T]]) -> list[T]:
    """Undo `items[rank::world_size]`: the shares of all ranks back in their order."""
    longest = max((len(share) for share in shares), default=0)
    return [share[i] for i in range(longest) for share in shares if i < len(share)]
