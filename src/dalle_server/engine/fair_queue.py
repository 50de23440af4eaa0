"""Who is next: first come, first served, in turns between clients, and between the requests of one client."""

from __future__ import annotations

from collections import OrderedDict, deque

from dalle_server.engine.sequence import ImageSequence, Job

Requests = OrderedDict[Job, deque[ImageSequence]]


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

    def add(self, job: Job) -> None:
        self._clients.setdefault(job.client, OrderedDict())[job] = deque(job.sequences)

    def pop(self) -> ImageSequence:
        """The next picture. Raises KeyError when nothing waits."""
        client, requests = self._clients.popitem(last=False)
        job, pictures = requests.popitem(last=False)
        picture = pictures.popleft()
        if pictures:
            requests[job] = pictures
        if requests:
            self._clients[client] = requests
        return picture

    def put_back(self, picture: ImageSequence) -> None:
        """The next turn is this picture's."""
        requests = self._clients.setdefault(picture.job.client, OrderedDict())
        requests.setdefault(picture.job, deque()).appendleft(picture)
        requests.move_to_end(picture.job, last=False)
        self._clients.move_to_end(picture.job.client, last=False)

    def remove(self, job: Job) -> None:
        """Forget what still waits of this request."""
        requests = self._clients.get(job.client, OrderedDict())
        requests.pop(job, None)
        if not requests:
            self._clients.pop(job.client, None)

    def in_order(self) -> list[ImageSequence]:
        """Every waiting picture in the order of its turn, if nothing else arrives."""
        rehearsal = FairQueue()
        for client, requests in self._clients.items():
            rehearsal._clients[client] = OrderedDict((job, deque(pictures)) for job, pictures in requests.items())
        return [rehearsal.pop() for _ in range(len(self))]
