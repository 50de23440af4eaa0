"""The one error tree. Every error a user can meet has a code, an HTTP status and a remedy in its text.

    DalleServerError
    ├── InvalidRequest (400)          a field of the request is wrong; `param` names it
    │   └── PayloadTooLarge (413)
    ├── Unauthorized (401)            no key, or a wrong one
    ├── Forbidden (403)               a page of another origin, or one that only looks like ours
    ├── NotFound (404)                no such model, job, picture or route
    ├── NotSupported (501)            part of a spoken protocol that this model cannot do
    ├── RateLimited (429)             this client asks too often
    ├── Overloaded (503)              the queue is full, or the server is draining
    │   └── NotReady (503)            the weights are still loading, or the engine restarts
    │       └── EngineDown (503)      the engine is stopped or given up: what it had accepted need not wait for it
    ├── DeadlineExceeded (504)        the request's own time limit passed
    ├── GenerationCancelled (499)     the client left or asked to stop
    ├── GenerationFailed (500)        the engine could not finish this picture
    │   └── EngineFault (500)         a crash or a hang ended all that ran: the picture itself may be well
    ├── StorageError (507)            data_dir is full, or the disk refuses
    ├── CheckpointError (500)         weights that are missing, broken or of a shape we do not know
    │   └── WeightsNotFound (500)
    └── ConfigError (500)             a setting that stops start-up

One translator per API family turns these into that API's envelope (`web/errors.py`).
"""

from typing import Self


def first_line(error: BaseException | str, otherwise: str = "no reason was given") -> str:
    """Of what an error of somebody else says, which may be pages, or nothing at all."""
    return next(iter(str(error).strip().splitlines()), otherwise)


class DalleServerError(Exception):
    """Base of every error raised on purpose. `str(error)` is safe to show to a client."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(DalleServerError):
    status = 400
    code = "invalid_request_error"


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class Unauthorized(DalleServerError):
    status = 401
    code = "invalid_api_key"


class Forbidden(DalleServerError):
    status = 403
    code = "forbidden"


class NotFound(DalleServerError):
    status = 404
    code = "not_found"


class NotSupported(DalleServerError):
    status = 501
    code = "not_supported"


class RateLimited(DalleServerError):
    status = 429
    code = "rate_limit_exceeded"


class Overloaded(DalleServerError):
    status = 503
    code = "overloaded"

    @classmethod
    def no_room(cls, room: int, num_images: int, seconds: float) -> Self:
        """For `num_images` where the queue has `room` for fewer; some of it is free again in about `seconds`."""
        message = f"the queue has room for {room} more pictures, not {num_images}; try again later"
        return cls(message, retry_after_s=max(1.0, seconds))


class NotReady(Overloaded):
    code = "not_ready"


class EngineDown(NotReady):
    """Told as any NotReady; who waits for a place in this engine's queue waits in vain."""


class DeadlineExceeded(DalleServerError):
    status = 504
    code = "deadline_exceeded"

    @classmethod
    def after(cls, timeout_s: float | None) -> Self:
        """The request's own limit; one that has passed was given."""
        return cls(f"not done within its time limit of {timeout_s or 0.0:g} s")


class GenerationCancelled(DalleServerError):
    status = 499
    code = "cancelled"


class GenerationFailed(DalleServerError):
    code = "generation_failed"


class EngineFault(GenerationFailed):
    """Tell it as any GenerationFailed; what can wait for the engine's restart may try once more."""


class StorageError(DalleServerError):
    status = 507
    code = "storage_error"


class CheckpointError(DalleServerError):
    code = "checkpoint_error"


class WeightsNotFound(CheckpointError):
    code = "weights_not_found"


class ConfigError(DalleServerError):
    code = "config_error"
