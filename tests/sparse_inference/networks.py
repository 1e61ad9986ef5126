# SPDX-License-Identifier: Apache-2.0
"""Small networks of four channels, one for each thing that networks of convolutions do."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A bottleneck with squeeze and excitation, as timm's and torchvision's."""

    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(),
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.outer = nn.Conv2d(8, channels, 1)

    def forward(self, x):
        inner = self.inner(x)
        return x + self.outer(inner * self.gate(inner)) / 2


class InPlace(nn.Module):
    """What is read first and changed later is another tensor; what is changed is read later."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = self.first(x)
        kept = y
        y += x
        y -= 1
        y *= 2
        y /= 3
        return self.second(1 - y) + kept + (2 / (3 + F.relu(y)) - -x)


class Pooled(nn.Module):
    """What is computed of the pooled map is no matter of single pixels."""

    def __init__(self):
        super().__init__()
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x * self.pooled(x))


class Pyramid(nn.Module):
    """Down to stride 4, back up, joined: an FPN and a UNet in small."""

    def __init__(self, mode):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(2))
        self.up = nn.Upsample(
            scale_factor=2, mode=mode, align_corners=None if mode == "nearest" else False
        )
        self.join = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        half = F.relu(self.down[0](x))
        quarter = F.relu(self.down[1](half))
        half = torch.cat([half, self.up(quarter)], dim=1)
        size = x.shape[-2:]
        return F.interpolate(self.join(half), size=size, mode="bilinear", align_corners=False)


NETWORKS = {
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "3x3": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "5x5 dilated": lambda: nn.Conv2d(4, 6, 5, padding=6, dilation=3),
    "1x7": lambda: nn.Conv2d(4, 6, (1, 7), padding=(0, 3)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "grouped 1x1": lambda: nn.Conv2d(4, 6, 1, groups=2),
    "depthwise 5x5": lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4),
    "padded on one side": lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 2, 0)), nn.Conv2d(4, 6, 3)),
    "stride 2": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "stride 2, 1x1": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "stride 2, one side": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, stride=2)
    ),
    "patches": lambda: nn.Conv2d(4, 6, 4, stride=4),
    "max pool": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max pool 2x2": lambda: nn.MaxPool2d(2),
    "group norm": lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Dropout(0.5), nn.GELU()),
    "group norm, plain": lambda: nn.GroupNorm(2, 4, affine=False),
    "residual": lambda: nn.Sequential(Residual(4), Residual(4)),
    "in place": InPlace,
    "pooled": Pooled,
    "nearest": lambda: Pyramid("nearest"),
    "bilinear": lambda: Pyramid("bilinear"),
}


def network_of(name):
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network
