"""Who is next: first come, first served, in turns between clients, and between the requests of one client."""

from __future__ import annotations

from collections import OrderedDict, deque

from dalle_server.engine.sequence import ImageGroup, ImageSequence

Requests = OrderedDict[ImageGroup, deque[ImageSequence]]


class FairQueue:
    """A ring of clients, each a ring of requests, each a queue of pictures. One turn takes one picture.

    So whoever comes after a request for 16 pictures waits for one of them, and not for 16. Clients and requests enter
    at the end of their ring.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[str, Requests] = OrderedDict()

    def __len__(self) -> int:
        """Pictures waiting."""
        return sum(len(pictures) for requests in self._clients.values() for pictures in requests.values())

    def add(self, group: ImageGroup) -> None:
        self._clients.setdefault(group.client, OrderedDict())[group] = deque(group.sequences)

    def pop(self) -> ImageSequence:
        """The next picture. Raises KeyError when nothing waits."""
        client, requests = self._clients.popitem(last=False)
        group, pictures = requests.popitem(last=False)
        picture = pictures.popleft()
        if pictures:
            requests[group] = pictures
        if requests:
            self._clients[client] = requests
        return picture

    def put_back(self, picture: ImageSequence) -> None:
        """The next turn is this picture's."""
        requests = self._clients.setdefault(picture.group.client, OrderedDict())
        requests.setdefault(picture.group, deque()).appendleft(picture)
        requests.move_to_end(picture.group, last=False)
        self._clients.move_to_end(picture.group.client, last=False)

    def remove(self, group: ImageGroup) -> None:
        """Forget what still waits of this request."""
        requests = self._clients.get(group.client, OrderedDict())
        requests.pop(group, None)
        if not requests:
            self._clients.pop(group.client, None)

    def in_order(self) -> list[ImageSequence]:
        """Every waiting picture in the order of its turn, if nothing else arrives."""
        rehearsal = FairQueue()
        for client, requests in self._clients.items():
            rehearsal._clients[client] = OrderedDict((group, deque(pictures)) for group, pictures in requests.items())
        return [rehearsal.pop() for _ in range(len(self))]
