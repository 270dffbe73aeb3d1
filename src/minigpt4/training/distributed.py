"""The processes of a run, on accelerate: each has the frozen parts, or its share, and its rows of every batch."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from minigpt4.errors import ToldError, UserError
from minigpt4.model.precision import resolve_device

T = TypeVar("T")


class Processes:
    """This process among those of the run: `rank` of `world`, on `device`."""

    def __init__(self, device: str | None = None, trackers: Sequence[str] = (), output: Path | None = None) -> None:
        """`device` is the recipe's. Raises UserError for a device that is not there or a tracker that is missing."""
        available = {str(name) for name in get_available_trackers()}
        for tracker in trackers:
            if tracker not in available:
                raise UserError(f"trackers: {tracker} is not installed; install it with: pip install {tracker}")
        if device == "auto":
            raise UserError("device=auto is for talking: offloaded layers cannot be trained through; give cpu or cuda")
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if launched and device and ":" in device:
            raise UserError(f"device={device} is one for all processes; leave the number out")
        resolved = resolve_device(device)
        if resolved.type == "cuda" and resolved.index is not None:
            torch.cuda.set_device(resolved)
        self._accelerator = Accelerator(
            cpu=resolved.type == "cpu", log_with=list(trackers) or None, project_dir=str(output) if output else None
        )
        self.rank: int = self._accelerator.process_index if launched else 0
        self.world: int = self._accelerator.num_processes if launched else 1
        self.device: torch.device = self._accelerator.device if launched else resolved

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` gives in the main process, while the others wait; its UserError ends all of them."""
        if self.world == 1:
            return action()
        told: list[Any] = [None, None]
        if self.is_main:
            try:
                told[0] = action()
            except UserError as error:
                told[1] = str(error)
        broadcast_object_list(told)
        if told[1] is not None:
            raise UserError(told[1]) if self.is_main else ToldError(told[1])
        return told[0]

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        return [value] if self.world == 1 else gather_object([value])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each of these float32 tensors over all processes, in place, in one exchange."""
        if self.world > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            total = self._accelerator.reduce(flat, reduction="sum")
            for tensor, part in zip(tensors, total.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def shard(self, llm: Any) -> None:
        """Leave this process its share of each layer of a frozen LLM; a layer comes together to compute (FSDP)."""
        if self.world == 1:
            raise UserError("shard_llm shares the LLM out over processes; start several with torchrun, or leave it out")
        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in llm.base_model.layers:
            fully_shard(layer, mesh=mesh)

    def start_trackers(self, output: Path, settings: dict[str, Any]) -> None:
        """Open this run in its trackers, or go on with it: a run is known by its `output`."""
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in settings.items()}
        name = "-".join(part for part in output.parts if part.strip("./")) or "run"
        mark = hashlib.sha256(str(output.absolute()).encode()).hexdigest()[:16]
        settings_of = {
            "wandb": {"name": name, "id": mark, "resume": "allow", "dir": str(output)},
            "trackio": {"name": f"{name}-{mark[:6]}", "resume": "allow"},
        }
        self._accelerator.init_trackers("minigpt4", config=plain, init_kwargs=settings_of)

    def track(self, figures: dict[str, float], step: int) -> None:
        self._accelerator.log(figures, step=step)

    def end_trackers(self) -> None:
        """End them alone: accelerate's `end_training` would end the group of processes too, which is still needed."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
