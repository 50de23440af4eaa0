"""Self-hosted text-to-image: DALL·E Mini and Mega behind an HTTP API of your own."""

__version__ = "0.1.0"
