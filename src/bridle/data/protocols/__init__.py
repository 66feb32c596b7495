"""Published sets, read in the layout in which they are published: ``read_protocol(name, folder)``."""

from bridle.data.protocols.base import About, Metric, Protocol, ProtocolData
from bridle.data.protocols.registry import PROTOCOLS, find_protocol, read_protocol

__all__ = ["PROTOCOLS", "About", "Metric", "Protocol", "ProtocolData", "find_protocol", "read_protocol"]
