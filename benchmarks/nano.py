"""The embedded model: a cold start, a warm picture, and what HTTP, JPEG and base64 add to it.

Cold: `dalle-server serve`, a new process, from its command to the first answer of POST /dalle; beside it the engine
alone. Warm: one picture through the engine, and the same by POST /dalle on loopback, in turns.

    python -m benchmarks.nano [--pictures 12]

Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

from waitress import create_server

from benchmarks.measuring import machine
from benchmarks.start_up import started
from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.config import Settings
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.select import choose_runner
from dalle_server.request import GenerationRequest
from dalle_server.text import TextTokenizer
from dalle_server.variants import ModelSize
from dalle_server.web.app import create_app
from dalle_server.web.service import Service

PROMPT = "a red apple"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=12)
    num_pictures = parser.parse_args().pictures
    directory = find_checkpoint(ModelSize.NANO)
    cold = started(directory, "auto")
    with tempfile.TemporaryDirectory() as folder:
        engine_s, http_s, dtype = warm(directory, Path(folder), num_pictures)
    share = 1 - statistics.median(engine_s) / statistics.median(http_s)
    print(
        f"cold start to first picture {cold['server, first']['first_picture_s']} s, of the engine alone"
        f" {cold['engine, first']['first_picture_s']} s; warm {statistics.median(engine_s):.3f} s,"
        f" over HTTP {statistics.median(http_s):.3f} s ({share:.1%} more than the engine)"
    )
    answer = {
        "benchmark": "nano",
        "dtype": dtype,
        "cold": cold,
        "engine_s": round(statistics.median(engine_s), 4),
        "http_s": round(statistics.median(http_s), 4),
        "http_share": round(share, 4),
    }
    print(json.dumps({**answer, **machine.describe()}))


def warm(directory: Path, data_dir: Path, num_pictures: int) -> tuple[list[float], list[float], str]:
    """Seconds of each picture by the engine alone and over HTTP, and the dtype that was chosen."""
    checkpoint = open_checkpoint(directory)
    engine = Engine(choose_runner(checkpoint), TextTokenizer.from_checkpoint(checkpoint))
    engine.start()
    service = Service(Settings(data_dir=data_dir), load=lambda: engine)
    service.start_loading()
    service.wait_until_loaded(60)
    server = create_server(create_app(Settings(data_dir=data_dir), service), host="127.0.0.1", port=0, threads=4)
    threading.Thread(target=server.run, daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", server.effective_port)
    engine_s, http_s = [], []
    for seed in range(num_pictures):
        begun = time.perf_counter()
        engine.submit(GenerationRequest.of(PROMPT, seed=seed)).result()
        between = time.perf_counter()
        connection.request("POST", "/dalle", json.dumps({"text": PROMPT, "num_images": 1}))
        reply = json.loads(connection.getresponse().read())
        http_s.append(time.perf_counter() - between)
        engine_s.append(between - begun)
        if len(reply["generatedImages"]) != 1:
            raise SystemExit(f"no picture came back: {reply}")
    connection.close()
    engine.stop()
    server.close()
    return engine_s[1:], http_s[1:], engine.info.dtype


if __name__ == "__main__":
    main()
