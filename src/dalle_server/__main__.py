"""`python -m dalle_server` is `dalle-server`."""

import sys

from dalle_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
