"""torchvision's mobile networks as backbones: the trunk in stages, the classifier taken off.

Names of parameters stay torchvision's. torchvision is imported when one of them is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from edgecil.nets.packages import torchvision_models


@dataclass(frozen=True)
class Trunk:
    """How torchvision's network of the same name is built and cut."""

    stages: tuple[int, ...]
    """Index in ``features`` of the last block of every stage: the next one halves the map."""
    settings: Mapping[str, float] = field(default_factory=dict)


TRUNKS: Mapping[str, Trunk] = {
    "mobilenet_v3_small": Trunk((1, 3, 8, 12)),
    "mobilenet_v3_large": Trunk((3, 6, 12, 16)),
    # Blocks dropped at random would make two functions of a student and of its teacher.
    "efficientnet_b0": Trunk((2, 3, 5, 8), {"stochastic_depth_prob": 0.0}),
}
"""Every mobile network by torchvision's name."""


class MobileNet(nn.Module):
    """The trunk of a mobile network: calling it returns the outputs of its stages."""

    def __init__(self, features: nn.Sequential, stages: tuple[int, ...], feature_dim: int) -> None:
        super().__init__()
        self.features = features
        self.stages = stages
        self.feature_dim = feature_dim

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one map per stage of images ``(N, 3, S, S)``; the last enters the pooling."""
        x, outputs = images, []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self.stages:
                outputs.append(x)
        return tuple(outputs)


def mobile_net(arch: str) -> tuple[MobileNet, nn.Sequential | None, int]:
    """Return the trunk, the hidden layers behind the pooling if any, and what they give.

    Dropout is left out: in training an attention map must come from the function that made
    the logits.

    Raises:
        DependencyMissing: torchvision cannot be imported.
    """
    trunk = TRUNKS[arch]
    whole = torchvision_models().get_model(arch, weights=None, num_classes=1, **trunk.settings)
    linear = [m for m in whole.classifier if isinstance(m, nn.Linear)]
    between = [m for m in whole.classifier[:-1] if not isinstance(m, nn.Dropout)]
    backbone = MobileNet(whole.features, trunk.stages, linear[0].in_features)
    return backbone, nn.Sequential(*between) if between else None, linear[-1].in_features
