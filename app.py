"""The original's launcher: `python app.py --port 8000 --model_version mini`. The program is in src/dalle_server."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from dalle_server.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
