"""Find, read, convert and write weights, on numpy. Only min-dalle's pickles need torch, in a process of their own."""

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.convert import convert
from dalle_server.checkpoints.locate import find_checkpoint
from dalle_server.checkpoints.native import open_checkpoint, write_native

__all__ = ["Checkpoint", "convert", "find_checkpoint", "open_checkpoint", "write_native"]
