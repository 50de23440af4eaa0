"""What binds those who serve a model's weights, told once on a machine."""

from __future__ import annotations

import logging
from pathlib import Path

from dalle_server.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def tell_licence(checkpoint: Checkpoint, cache_dir: Path) -> None:
    """Log the family's note at its first start with this cache directory. One that cannot be written is told again."""
    config = checkpoint.config
    if not (note := config.transformer.licence_note):
        return
    told = cache_dir / "licences-told" / config.family
    try:
        told.parent.mkdir(parents=True, exist_ok=True)
        told.open("x").close()
    except FileExistsError:
        return
    except OSError:
        pass
    logger.warning("%s", note)
