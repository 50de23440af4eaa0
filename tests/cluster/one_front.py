"""`python -m tests.cluster.one_front ADDRESS APP N…`: a front that asks for N pictures and leaves, for each N."""

import sys

from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.request import GenerationRequest
from tests.cluster.engines import SLOW

if __name__ == "__main__":
    address, app, *counts = sys.argv[1:]
    for count in counts:
        connection = Connection(address)
        handle = find_or_deploy(app, SLOW, may_deploy=False)
        engine = ClusterEngine(connection, handle, most_slots=4, max_waiting_images=64)
        engine.submit(GenerationRequest.of("a cat", int(count))).result()
        engine.stop()
        connection.close()
