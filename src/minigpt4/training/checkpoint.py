"""One file that holds all a stopped run needs to go on: trained weights, optimiser state, step.

There is no random state in it: the order of samples follows from the seed and the step, and frozen parts have no
dropout. Knows nothing about when to save.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minigpt4.errors import UserError
from minigpt4.files import write_atomically

if TYPE_CHECKING:
    from minigpt4.model.alignment import MiniGPT4


def save_checkpoint(path: Path, model: MiniGPT4, optimizer: torch.optim.Optimizer, step: int, fingerprint: str) -> None:
    """Write the state after `step` finished steps, replacing the former checkpoint in one rename.

    `fingerprint` names the data and the frozen parts. Raises UserError if there is no space; the former is then intact.
    """
    buffer = io.BytesIO()
    trained = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    state = {"step": step, "fingerprint": fingerprint, "trained": trained, "optimizer": optimizer.state_dict()}
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, model: MiniGPT4, optimizer: torch.optim.Optimizer, fingerprint: str) -> int:
    """Put the saved state into model and optimiser; returns the number of finished steps, 0 if there is no checkpoint.

    Raises:
        UserError: the file is damaged, or comes from other data or other frozen parts.
    """
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, saved_fingerprint, trained = int(state["step"]), state["fingerprint"], state["trained"]
    except Exception as error:  # torch.load has many exceptions for a file that is not what it should be
        raise UserError(f"{path}: the checkpoint is damaged; delete it to start from the first step") from error
    if saved_fingerprint != fingerprint:
        raise UserError(
            f"{path}: belongs to other data or other frozen parts than the recipe's paths hold now; "
            "put the former ones back, or give another output"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(trained[name])
    optimizer.load_state_dict(state["optimizer"])
    return step
