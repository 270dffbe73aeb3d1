"""EfficientNet-Lite, a convolutional network for images that runs fast on a CPU, as a vision encoder.

Mingxing Tan, Quoc Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), in the Lite
form of 2020: no squeeze-and-excitation, ReLU6 for swish, stem and head of one width at all scales. Tensors have the
names of the published PyTorch weights (`_blocks.0._depthwise_conv.weight`).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

#: (blocks, kernel, stride, expansion, channels) of each stage of the smallest network.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
_STEM = 32
STRIDE = 32  # pixels of the input per position of the output, in each direction
CLASS_SCALE = 10.0  # brings the classifier's weights to about the size of the positions' features
POSITION_SCALE = 0.3  # size of the positions' code, about half that of the features


class EfficientNetLiteConfig(PreTrainedConfig):
    """Sizes: Lite0 has width and depth 1.0 at 224 px, Lite2 1.1 and 1.2 at 260 px."""

    model_type = "efficientnet_lite"
    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    image_size: int = 224
    hidden_size: int = 1280
    num_classes: int = 1000
    patch_size: int = STRIDE

    def __post_init__(self, **others: Any) -> None:
        if not (0 < self.width_coefficient <= 8 and 0 < self.depth_coefficient <= 8):
            raise ValueError("width_coefficient and depth_coefficient are from 0 to 8")
        super().__post_init__(**others)


class EfficientNetLite(PreTrainedModel):
    """Pixels (n, 3, h, w), scaled by `(x - 127) / 128` -> a summary, the class, then the positions row by row."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self._conv_stem = _Conv(3, _STEM, 3, stride=2)
        self._bn0 = _norm(_STEM)
        self._blocks = nn.ModuleList()
        width = _STEM
        for number, (blocks, kernel, stride, expansion, channels) in enumerate(_STAGES):
            fixed = number in (0, len(_STAGES) - 1)  # the Lite form repeats neither the first stage nor the last
            out = _rounded(channels * config.width_coefficient)
            for block in range(blocks if fixed else math.ceil(blocks * config.depth_coefficient)):
                self._blocks.append(_Block(width, out, kernel, 1 if block else stride, expansion))
                width = out
        self._conv_head = _Conv(width, config.hidden_size, 1)
        self._bn1 = _norm(config.hidden_size)
        self._fc = nn.Linear(config.hidden_size, config.num_classes)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """`last_hidden_state` (n, 2 + positions, hidden_size)."""
        x = F.relu6(self._bn0(self._conv_stem(pixel_values.contiguous(memory_format=torch.channels_last))))
        for block in self._blocks:
            x = block(x)
        positions = F.relu6(self._bn1(self._conv_head(x))).flatten(2).transpose(1, 2)
        summary = positions.mean(1, keepdim=True)
        # Nearly the same for all images of one class, so that a few of them teach its name.
        kind = self._fc(summary).softmax(-1) @ self._fc.weight * CLASS_SCALE
        code = position_code(math.isqrt(positions.shape[1]), positions.shape[2], positions.device)
        placed = positions + code.to(positions.dtype)
        return BaseModelOutput(last_hidden_state=torch.cat([summary, kind, placed], dim=1))


def position_code(side: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of row and column, (side * side, width): convolutions say little of where a position is."""
    place = torch.arange(side, dtype=torch.float32, device=device) / side
    waves = place[:, None] * torch.linspace(0.5, side / 2, width // 4, device=device) * 2 * math.pi
    line = torch.cat([waves.sin(), waves.cos()], dim=1) * POSITION_SCALE
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class _Conv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does, where these weights were trained: more at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        step, kernel = self.stride[0], self.kernel_size[0]
        missing = [max((math.ceil(size / step) - 1) * step + kernel - size, 0) for size in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [pad for total in missing for pad in (total // 2, total - total // 2)]))


class _Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _Conv(inputs, inside, 1), _norm(inside)
        self._depthwise_conv, self._bn1 = _Conv(inside, inside, kernel, stride, groups=inside), _norm(inside)
        self._project_conv, self._bn2 = _Conv(inside, outputs, 1), _norm(outputs)
        self._widens, self._adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu6(self._bn0(self._expand_conv(x))) if self._widens else x
        inside = F.relu6(self._bn1(self._depthwise_conv(inside)))
        out: Tensor = self._bn2(self._project_conv(inside))
        return out + x if self._adds else out


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, at least nine tenths of what was asked for."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
