"""The command `dalle-server`."""

from dalle_server.cli.parser import main as main
