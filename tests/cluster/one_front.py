"""`python -m tests.cluster.one_front ADDRESS APP N`: a front that asks for N pictures, to be killed meanwhile."""

import sys

from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.request import GenerationRequest
from tests.cluster.engines import SLOW

if __name__ == "__main__":
    address, app, count = sys.argv[1:]
    connection = Connection(address)
    engine = ClusterEngine(connection, find_or_deploy(app, SLOW, may_deploy=False), most_slots=4, max_waiting_images=64)
    engine.submit(GenerationRequest.of("a cat", int(count))).result()
