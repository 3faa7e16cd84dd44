"""The three published networks once more, in plain torch.nn and with the authors' key names.

Written only from the architecture facts, sharing nothing with `liteseg.models`, so that the two check each other: what
`liteseg` computes from a state dict of these classes must be what they compute from it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class _Scaled(nn.Module):
    """Depthwise then pointwise, or (standard variant) the single convolution in `_head_conv`."""

    def __init__(self, cin: int, cout: int, k: int, pad: int, dil: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cin, k, 1, pad, dil, groups=cin, bias=False)
        self.pointwise = nn.Conv2d(cin, cout, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.conv1(x))


def _head_conv(separable: bool, cin: int, cout: int, k: int = 1, pad: int = 0, dil: int = 1) -> nn.Module:
    if separable:
        return _Scaled(cin, cout, k, pad, dil)
    return nn.Conv2d(cin, cout, k, 1, pad, dil, bias=False)


class _Branch(nn.Module):
    def __init__(self, separable: bool, cin: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        if rate > 1:
            self.conv1 = _head_conv(separable, 96, 96, 3, 1)
            self.bn1 = nn.BatchNorm2d(96)
            self.atrous_convolution = _head_conv(separable, cin, 96, 3, rate, rate)
        else:
            self.atrous_convolution = _head_conv(separable, cin, 96)
        self.bn = nn.BatchNorm2d(96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.atrous_convolution(x))
        return torch.relu(self.bn1(self.conv1(x))) if self.rate > 1 else x


class _Net(nn.Module):
    """Head and decoder; a subclass gives `features(x) -> (low, encoded)` and the names of its backbone."""

    def __init__(self, separable: bool, classes: int, encoded: int, low: int, reduced: int | None, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.aspp1 = _Branch(separable, encoded, 1)
        self.aspp2 = _Branch(separable, encoded, 3)
        self.aspp3 = _Branch(separable, encoded, 6)
        self.aspp4 = _Branch(separable, encoded, 9)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(encoded, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU()
        )
        self.conv1 = _head_conv(separable, encoded + 480, 96)
        self.bn1 = nn.BatchNorm2d(96)
        self.reduces = reduced is not None
        if reduced is not None:
            self.conv2 = _head_conv(separable, low, reduced)
            self.bn2 = nn.BatchNorm2d(reduced)
        self.last_conv = nn.Sequential(
            _head_conv(separable, 96 + (reduced or low), 96, 3, 1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            _head_conv(separable, 96, 96, 3, 1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.Conv2d(96, classes, 1),
        )

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        low, e = self.features(x)
        pooled = _resize(self.global_avg_pool(e), e.shape[2:])
        y = torch.cat((e, self.aspp1(e), self.aspp2(e), self.aspp3(e), self.aspp4(e), pooled), 1)
        y = torch.relu(self.bn1(self.conv1(y)))
        y = _resize(y, (-(-height // self.stride), -(-width // self.stride)))
        if self.reduces:
            low = torch.relu(self.bn2(self.conv2(low)))
        return _resize(self.last_conv(torch.cat((y, low), 1)), (height, width))


class _MobileBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = cin * expansion
        steps: list[nn.Module] = []
        if expansion > 1:
            steps += [nn.Conv2d(cin, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        steps += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        steps += [nn.Conv2d(wide, cout, 1, bias=False), nn.BatchNorm2d(cout)]
        self.conv = nn.Sequential(*steps)
        self.adds = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class _MobileFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def plain(cin: int, cout: int, k: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(cin, cout, k, stride, k // 2, bias=False), nn.BatchNorm2d(cout), nn.ReLU6())

        widths = [32, 16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
        halving = {2, 4, 7, 14}
        blocks = [
            _MobileBlock(widths[i - 1], widths[i], 2 if i in halving else 1, 1 if i == 1 else 6) for i in range(1, 18)
        ]
        self.features = nn.Sequential(plain(3, 32, 3, 2), *blocks, plain(320, 1280, 1, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))


class MobileNetLiteSeg(_Net):
    def __init__(self, *, separable: bool = True, classes: int = 19) -> None:
        super().__init__(separable, classes, 1280, 24, None, 4)
        self.mobile_features = _MobileFeatures()

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.mobile_features.features[:4](x)
        return low, self.mobile_features.features[4:](low)


class _GroupedConv(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int, active: bool) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(cin, cout, 1, groups=groups)
        self.batch_norm = nn.BatchNorm2d(cout)
        self.active = active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.batch_norm(self.conv1x1(x))
        return torch.relu(x) if self.active else x


class _Unit(nn.Module):
    def __init__(self, cin: int, cout: int, compress_groups: int) -> None:
        super().__init__()
        b = cout // 4
        self.shrinks = cin != cout
        self.g_conv_1x1_compress = _GroupedConv(cin, b, compress_groups, True)
        self.depthwise_conv3x3 = nn.Conv2d(b, b, 3, 2 if self.shrinks else 1, 1, groups=b)
        self.bn_after_depthwise = nn.BatchNorm2d(b)
        self.g_conv_1x1_expand = _GroupedConv(b, cout - cin if self.shrinks else cout, 8, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.g_conv_1x1_compress(x)
        n, c, h, w = y.shape
        y = y.view(n, 8, c // 8, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.g_conv_1x1_expand(self.bn_after_depthwise(self.depthwise_conv3x3(y)))
        if self.shrinks:
            return torch.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1, count_include_pad=True), y), 1))
        return torch.relu(x + y)


class _ShuffleFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, 2, 1)
        cin = 24
        for stage, cout, count in ((2, 384, 4), (3, 768, 8), (4, 1536, 4)):
            units = OrderedDict()
            for u in range(count):
                units[f"ShuffleUnit_Stage{stage}_{u}"] = _Unit(cin, cout, 1 if cin == 24 else 8)
                cin = cout
            self.add_module(f"stage{stage}", nn.Sequential(units))
        self.fc = nn.Linear(1536, 1000)


class ShuffleNetLiteSeg(_Net):
    def __init__(self, *, separable: bool = True, classes: int = 19) -> None:
        super().__init__(separable, classes, 1536, 384, 48, 8)
        # the key names of a DataParallel wrapper
        self.shuffle_features = nn.ModuleDict({"module": _ShuffleFeatures()})

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        net = self.shuffle_features["module"]
        low = net.stage2(F.max_pool2d(net.conv1(x), 3, 2, 1))
        return low, net.stage4(net.stage3(low))


class _ConvBatch(nn.Module):
    def __init__(self, cin: int, cout: int, k: int, pad: int, dil: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(cin, cout, k, 1, pad, dil, bias=False), nn.BatchNorm2d(cout, momentum=0.01), nn.LeakyReLU(0.1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class _DarkFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # channels, kernel, padding, dilation; a number is a max-pool's kernel and stride
        table = [
            *[(32, 3, 1, 1), 2, (64, 3, 1, 1), 2, (128, 3, 1, 1), (64, 1, 0, 1), (128, 3, 1, 1), 2],
            *[(256, 3, 1, 1), (128, 1, 0, 1), (256, 3, 1, 1), 2],
            *[(512, 3, 1, 1), (256, 1, 1, 1), (512, 3, 1, 1), (256, 1, 1, 1), (512, 3, 1, 1), 1],
            *[(1024, 3, 1, 2), (512, 1, 1, 2), (1024, 3, 1, 2), (512, 1, 0, 2), (1024, 3, 1, 2)],
        ]
        self.layers = nn.Sequential()
        cin = 3
        for number, row in enumerate(table, 1):
            if isinstance(row, int):
                self.layers.add_module(f"{number}_max", nn.MaxPool2d(row, row))
            else:
                self.layers.add_module(f"{number}_convbatch", _ConvBatch(cin, *row))
                cin = row[0]


class DarkNetLiteSeg(_Net):
    def __init__(self, *, separable: bool = True, classes: int = 19) -> None:
        super().__init__(separable, classes, 1024, 128, 32, 4)
        self.resnet_features = _DarkFeatures()

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.resnet_features.layers[:7](x)
        return low, self.resnet_features.layers[7:](low)


OFFICIAL: dict[str, type[_Net]] = {
    "mobilenetv2": MobileNetLiteSeg,
    "shufflenet": ShuffleNetLiteSeg,
    "darknet19": DarkNetLiteSeg,
}
