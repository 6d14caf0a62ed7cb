"""FSDP2 for bodies too large to hold whole beside their moments: each process keeps a share.

Sharded are the weights at rest, the gradients, AdamW's moments and the averages: of 24 bytes a
weight (float32 weight, gradient, two moments, two averages) each process holds 24/W. While a step
is computed the weights are whole on every process, and stay so until the gradients are summed: the
derivative of the derivative reads them a second time, after the point where FSDP2 would have let
them go (pytorch issue 172543), and a weight gathered anew is not the tensor that the graph holds.
So this is sharding of state, which is the larger part, not of the weights in use.

Tensors here are `local` (this process's share of a parameter, a view) or `whole`. A process alone
has parameters that are both.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from scf.training.distributed import Peers


def shard(model: nn.Module, peers: Peers, device: torch.device, *, entry: str) -> None:
    """Share out the parameters of `model`, in place, over all processes.

    Args:
        model: On `device`, with the same weights everywhere.
        peers: The processes.
        device: Its kind is the mesh's.
        entry: The method in which all work on the parameters begins: they are gathered there.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    with peers.waiting("sharing out the weights"):
        mesh = init_device_mesh(device.type, (peers.world_size,))
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, entry)


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether parameters are dealt out."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def release(model: nn.Module) -> None:
    """Let go of gathered weights, so that the next use gathers them anew.

    Gathered is what a forward pass leaves behind; the parameters in the model are plain then.
    """
    if hasattr(model, "reshard"):  # FSDP2 made it one of its own; importing it to ask takes seconds
        model.reshard()  # type: ignore[operator]


def local(tensor: Tensor) -> Tensor:
    """This process's share, sharing memory."""
    share: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return share.detach()


def whole(share: Tensor, like: Tensor, peers: Peers) -> Tensor | None:
    """A copy of all of a tensor on the CPU of the first process; None on the others.

    Args:
        share: This process's share, or all of it where nothing is sharded.
        like: The parameter that it belongs to.
        peers: The processes; all of them call this together.
    """
    if isinstance(like, DTensor):
        with peers.waiting("gathering a checkpoint"):
            spread = placed(share, like)
            assert isinstance(spread, DTensor)
            full = spread.full_tensor()
        return full.cpu() if peers.is_first else None
    return share.detach().to("cpu", copy=True) if peers.is_first else None


def placed(share: Tensor, like: Tensor) -> Tensor:
    """A share as the sharded tensor that it is part of, sharing memory; itself where none is."""
    if not isinstance(like, DTensor):
        return share
    return DTensor.from_local(
        share,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def dealt(full: Tensor, like: Tensor) -> Tensor:
    """A tensor that all processes hold whole, copied and placed as the parameter `like` is."""
    full = full.detach().to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    return full.clone()
