"""Networks that LiteSeg is compared with: the other rows of the paper's Tables III and IV."""

from __future__ import annotations

from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig
from liteseg.models.peers.ccc2 import CCC2, CCC2Config
from liteseg.models.peers.dsnet import DSNet
from liteseg.models.peers.enet import ENet
from liteseg.models.peers.erfnet import ERFNet
from liteseg.models.peers.espnet import ESPNet, ESPNetConfig
from liteseg.models.peers.segnet import SegNet
from liteseg.models.peers.skipnet_mobilenet import SkipNetMobileNet
from liteseg.models.peers.skipnet_shufflenet import SkipNetShuffleNet

PEERS: dict[str, type[Peer]] = {
    "espnet": ESPNet,
    "erfnet": ERFNet,
    "enet": ENet,
    "segnet": SegNet,
    "skipnet_mobilenet": SkipNetMobileNet,
    "skipnet_shufflenet": SkipNetShuffleNet,
    "ccc2": CCC2,
    "dsnet": DSNet,
}

__all__ = [
    "CCC2",
    "PEERS",
    "CCC2Config",
    "DSNet",
    "ENet",
    "ERFNet",
    "ESPNet",
    "ESPNetConfig",
    "Peer",
    "PeerBlock",
    "PeerConfig",
    "SegNet",
    "SkipNetMobileNet",
    "SkipNetShuffleNet",
]
