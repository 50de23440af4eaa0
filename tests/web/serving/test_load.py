"""Many clients at once, some of whom leave: every request ends once, and nothing is left behind."""

import http.client
import json
import random
import re
import threading
from collections import Counter
from pathlib import Path

from tests.web.server_process import PATIENCE_S, ServerProcess, post_bytes

CLIENTS, REQUESTS = 24, 10


def status_of(server: ServerProcess, body: object) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/dalle", json.dumps(body))
        reply = connection.getresponse()
        if reply.status == 200:
            assert len(json.loads(reply.read())["generatedImages"]) == body["num_images"]
        return reply.status
    finally:
        connection.close()


def outcomes(server: ServerProcess) -> dict[str, int]:
    text = server.get("/metrics")[1]
    return {name: int(float(n)) for name, n in re.findall(r'^dalle_requests_total{outcome="(\w+)"} (\S+)', text, re.M)}


def test_load_with_leaving_clients(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--num_slots", "4", "--max_waiting_images", "12", step_s=0.001) as server:
        server.ready()
        open_files = server.metric("process_open_fds")
        seen: Counter[int | str] = Counter()
        failures: list[BaseException] = []

        def play(client: int) -> None:
            dice = random.Random(client)
            try:
                for number in range(REQUESTS):
                    body = {"text": f"client {client} picture {number}", "num_images": dice.randint(1, 3)}
                    if dice.random() < 0.1:
                        server.raw(post_bytes("/dalle", body)).close()
                        seen["left"] += 1
                    else:
                        seen[status_of(server, body)] += 1
            except BaseException as error:
                failures.append(error)

        players = [threading.Thread(target=play, args=(client,)) for client in range(CLIENTS)]
        for player in players:
            player.start()
        healths = []
        while any(player.is_alive() for player in players):
            healths.append(server.get("/health")[0])
        assert not failures and set(healths) == {200}
        assert set(seen) <= {200, 503, "left"} and seen[200] > 0 and seen.total() == CLIENTS * REQUESTS

        def quiet() -> bool:
            return server.metric("dalle_running_images") == 0 == server.metric("dalle_waiting_images")

        server.wait_for(quiet)
        server.wait_for(lambda: server.metric("process_open_fds") <= open_files + 2)
        ended = outcomes(server)
        assert ended["failed"] == 0
        # Whoever left may have been answered, cancelled, refused, or gone before the request was read.
        assert ended["done"] >= seen[200] and ended["refused"] >= seen[503]
        assert sum(ended.values()) <= seen.total()
        assert server.request("POST", "/dalle", {"text": "after", "num_images": 1})[0] == 200
