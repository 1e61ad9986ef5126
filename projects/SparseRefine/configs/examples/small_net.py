# SPDX-License-Identifier: Apache-2.0
"""A segmentation model that knows nothing of Detectron2, for plain_pytorch.yaml."""

from torch import nn


class SmallNet(nn.Module):
    """Six convolutions at stride 8. (B,3,H,W) -> logits (B,num_classes,H/8,W/8)."""

    def __init__(self, num_classes, width=48):
        super().__init__()
        layers, channels = [], 3
        for stride, dilation in ((2, 1), (2, 1), (2, 1), (1, 2), (1, 4)):
            layers += [
                nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        return self.classifier(self.features(x))
