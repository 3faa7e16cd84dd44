"""Networks that LiteSeg is compared with, ESPNet, ERFNet and ENet, in plain torch.nn."""

from __future__ import annotations

from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig
from liteseg.models.peers.enet import ENet
from liteseg.models.peers.erfnet import ERFNet
from liteseg.models.peers.espnet import ESPNet, ESPNetConfig

PEERS: dict[str, type[Peer]] = {"espnet": ESPNet, "erfnet": ERFNet, "enet": ENet}

__all__ = ["PEERS", "ENet", "ERFNet", "ESPNet", "ESPNetConfig", "Peer", "PeerBlock", "PeerConfig"]
