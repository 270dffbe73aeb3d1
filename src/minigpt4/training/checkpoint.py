"""Checkpoints, from which a stopped run continues: trained weights, optimizer state, step, place in the data.

They hold no random state: the order of samples follows from the seed, and frozen parts have no dropout. Each file
begins with the SHA-256 of the rest; if it does not match, the checkpoint before is used.
"""

import hashlib
import io
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minigpt4.errors import UserError
from minigpt4.files import failed_write_is_a_user_error, write_atomically
from minigpt4.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)

DIGEST = hashlib.sha256().digest_size
_NAME = re.compile(r"\d{8,}-(nan|inf|-?\d+\.\d+)\.pt")  # step and loss


@dataclass(frozen=True)
class Position:
    """Where a run stands: finished steps, their mean loss since the last save, each process's place in the data."""

    step: int = 0
    loss: float = math.nan
    loaders: tuple[dict[str, Any] | None, ...] = ()


class Checkpoints:
    """The last `keep` checkpoints and the best. `belongs_to`: fingerprints of what a run must find again, by name."""

    def __init__(self, directory: Path, keep: int, belongs_to: Mapping[str, str]) -> None:
        self.directory, self._keep = directory, keep
        self._belongs_to = {what: hashlib.sha256(mark.encode()).hexdigest() for what, mark in belongs_to.items()}
        self._damaged: list[Path] = []  # the files that `last` found damaged

    def save(
        self, position: Position, model: MiniGPT4, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Write a checkpoint, then delete those that are not kept. Raises UserError; former ones are then intact."""
        trained = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
        state = {
            **vars(position), "belongs_to": self._belongs_to, "trained": trained, "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        path = self.directory / f"{position.step:08d}-{position.loss:.4f}.pt"
        with failed_write_is_a_user_error(path):
            self.directory.mkdir(exist_ok=True)
            write_atomically(path, hashlib.sha256(payload).digest() + payload)
            self._damaged = [damaged for damaged in self._damaged if damaged != path]
            for damaged in self._damaged:
                damaged.unlink(missing_ok=True)
            files = self.files()
            best = min(files, key=_loss)
            for old in files[self._keep :]:
                if old != best:
                    old.unlink()

    def files(self) -> list[Path]:
        """All checkpoints, the last first."""
        return sorted((path for path in self.directory.glob("*.pt") if _NAME.fullmatch(path.name)), reverse=True)

    def last(self) -> tuple[Path | None, dict[str, Any]]:
        """The last undamaged checkpoint and what it holds. Raises UserError if it belongs to another run."""
        self._damaged = []
        for path in self.files():
            state = _read(path)
            if state is None:
                self._damaged.append(path)
                continue
            found = state.get("belongs_to")
            known = found if isinstance(found, dict) else {}
            others = [what for what, mark in self._belongs_to.items() if known.get(what) != mark]
            if others:
                raise UserError(
                    f"{path}: belongs to other {' and '.join(others)} than the recipe's paths hold now; put the former "
                    "back, or give another output"
                )
            return path, state
        return None, {}

    def load(self, model: MiniGPT4, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Position:
        """Put the last undamaged checkpoint into model and optimizer; its position, or the first. Raises UserError."""
        path, state = self.last()
        for damaged in self._damaged:
            logger.warning("%s: the checkpoint is damaged; going on from the one before it", damaged)
        if path is None:
            if self._damaged:
                raise UserError(f"{self.directory}: every checkpoint is damaged; delete them to start again")
            return Position()
        try:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(state["trained"][name])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            return Position(int(state["step"]), float(state["loss"]), tuple(state["loaders"]))
        except Exception as error:  # torch has many exceptions for a state that does not fit
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: does not fit this recipe's model ({reason}); delete it") from None


def _read(path: Path) -> dict[str, Any] | None:
    """What the file holds, or None if it is damaged: also one whose digest is right and which holds more than data."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            return None
        state = torch.load(io.BytesIO(content[DIGEST:]), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch have their own exceptions for what is wrong
        logger.debug("%s: %s", path, error)
        return None
    return state if isinstance(state, dict) else None


def _loss(path: Path) -> float:
    loss = float(path.stem.partition("-")[2])
    return math.inf if math.isnan(loss) else loss
