"""Settings: one definition gives flags, DALLE_* environment, TOML file and docs/configuration.md. A leaf.

A flag beats the environment, which beats the file, which beats the default. A value that makes no sense, or an
unknown name in the file or among the flags, stops start-up with a hint (`ConfigError`).
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from platformdirs import user_cache_path, user_data_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dalle_server import words
from dalle_server.errors import ConfigError
from dalle_server.words import parse_arg_boolean as parse_arg_boolean

logger = logging.getLogger(__name__)

DEFAULT_IMG_OUTPUT_DIR = "generations"
ENV_PREFIX = "DALLE_"
CONFIG_ENV = "DALLE_CONFIG"  # names the TOML file, as --config does
MODEL_SETTINGS = (  # what an engine is made from, here or on a cluster
    "model_version", "model_dir", "cache_dir", "runner", "device", "dtype", "num_threads", "cpu_build", "num_slots",
)  # fmt: skip

_SERVICE_LINK = re.compile(
    r"DALLE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?|NAME|ENV_\w+)"
)


def parse_arg_dalle_version(value: object) -> str:
    """The name of a model size, any case, dashes or underscores. Raises ValueError for an unknown one."""
    version = str(value).strip().lower().replace("-", "_")
    if version not in get_args(ModelVersion):
        raise ValueError(f"expected one of {', '.join(get_args(ModelVersion))}, not {value!r}")
    return version


_WORDINGS = (  # so that they follow "expected"
    ("Value error, expected ", ""),
    ("Value error, ", ""),
    ("Input should be ", ""),
    ("String should match pattern ", "text of the form "),
    ("String should have ", "text with "),
    ("Input is not a valid path for <class 'pathlib.Path'>", "a path"),
)


def _model_entries(value: tuple[str, ...]) -> tuple[str, ...]:
    """Each is a known name, or tells by its form that it is a directory. `all` stands alone."""
    for entry in value:
        if entry == ALL_MODELS and len(value) > 1:
            raise ValueError("expected all to stand alone")
        directory = words.expanded(entry.rpartition("=")[2])
        if not (entry == ALL_MODELS or known_model(entry) or "=" in entry or directory.is_dir()):
            raise ValueError(f"expected {', '.join(get_args(ModelVersion))}, directories, or NAME=DIRECTORY")
    return value


def known_model(name: str) -> str | None:
    """The name of a model size as we spell it, or None."""
    try:
        return parse_arg_dalle_version(name)
    except ValueError:
        return None


ALL_MODELS = "all"
ModelVersion = Literal["nano", "mini", "mega", "mega_full", "janus_pro_1b", "janus_pro_7b"]
Flag = Annotated[bool, BeforeValidator(parse_arg_boolean)]
Words = Annotated[tuple[str, ...], BeforeValidator(words.split_list)]
Protection = Annotated[Words, AfterValidator(words.not_nothing)]
Directory = Annotated[Path, AfterValidator(words.expanded)]
Integer = Annotated[int, BeforeValidator(words.refuse_boolean)]
Number = Annotated[float, BeforeValidator(words.refuse_boolean)]
Count = Annotated[Annotated[Integer, Field(ge=1)] | None, BeforeValidator(words.none_if_auto)]


class Settings(BaseModel):
    """Everything an operator can set. Immutable; `model_copy(update=…)` makes a changed one.

    The order is that of the help and of docs/configuration.md; `json_schema_extra` starts a new group there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=False)

    # fmt: off
    port: Integer = Field(8000, ge=0, le=65535, json_schema_extra={"group": "Address and model"},
        description="TCP port; 0 takes a free one and prints it.")
    host: str = Field("0.0.0.0", min_length=1,
        description="Address to listen on: 0.0.0.0 is every interface, 127.0.0.1 this machine only.")
    model_version: Annotated[ModelVersion, BeforeValidator(parse_arg_dalle_version)] = Field("mini",
        description="Model size; nano is embedded in the package and needs no download.")
    model_dir: Directory | None = Field(None,
        description="Directory with weights (native, Flax, min-dalle, Janus-Pro) to serve in place of published ones.")
    models: Annotated[Words, AfterValidator(_model_entries)] = Field((),
        description="Several models in one server, the first as the default: names, directories, NAME=DIRECTORY; or "
            "all, which is every one on this machine. In place of model_version and model_dir.")
    memory_budget: Annotated[Annotated[Integer, Field(ge=1)] | None, BeforeValidator(words.num_bytes)] = Field(None,
        description="Memory that loaded models may take together: 12GB, 800MB. One that needs room has others "
            "unloaded, the longest unused first. auto: of several models, three quarters of what there is.")
    idle_unload_s: Number = Field(0.0, ge=0, allow_inf_nan=False,
        description="Seconds of silence after which a model is unloaded, to be loaded when it is next asked for; "
            "0 = never.")
    cache_dir: Directory = Field(default_factory=lambda: user_cache_path("dalle-server", appauthor=False),
        description="Where converted weights are kept. Downloads are kept where HF_HOME says.")

    save_to_disk: Flag = Field(False, json_schema_extra={"group": "Pictures"},
        description="Also save every picture of POST /dalle under output_dir.")
    img_format: Annotated[Literal["JPEG", "PNG"],
        BeforeValidator(lambda value: value.strip().upper() if isinstance(value, str) else value)] = Field("JPEG",
        description="File format of the pictures of POST /dalle, and of those that commands write.")
    output_dir: Directory = Field(Path(DEFAULT_IMG_OUTPUT_DIR),
        description="Where save_to_disk puts them, in a directory for each request.")
    max_images: Integer = Field(16, ge=1, le=1024,
        description="Most pictures that one request of any API may ask for.")

    runner: Annotated[Literal["auto", "compiled", "torch"], BeforeValidator(words.runner_name)] = Field("auto",
        json_schema_extra={"group": "Engine"},
        description="What does the arithmetic; auto takes torch on a GPU, and compiled on a CPU.")
    device: Annotated[str, BeforeValidator(words.lower)] = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:1, mps.")
    dtype: Annotated[Literal["auto", "fp32", "bf16", "fp16", "int8"], BeforeValidator(words.lower)] = Field("auto",
        description="Number format of the weights; auto takes the fastest that is faithful on the device.")
    num_threads: Count = Field(None,
        description="CPU threads of the engine; auto takes one for each physical core that it may use all the time.")
    cpu_build: Annotated[Literal["auto", "avx512vnni", "avxvnni", "avx2", "x86-64-v2", "dotprod", "aarch64"],
        BeforeValidator(words.lower)] = Field("auto",
        description="Instruction set of the compiled runner; auto takes the best that the CPU has. All draw the same.")
    num_slots: Count = Field(None,
        description="Pictures written at the same time; auto follows the device's memory.")
    max_waiting_images: Integer = Field(64, ge=1, le=4096,
        description="Pictures that may wait for a slot. A request that does not fit is refused with 503.")
    request_timeout_s: Number = Field(600.0, gt=0, le=86_400, allow_inf_nan=False,
        description="Seconds a request may take, waiting included; then it ends with 504.")
    drain_timeout_s: Number = Field(25.0, ge=0, le=3_600, allow_inf_nan=False,
        description="Seconds that work in flight may go on after SIGTERM or Ctrl+C. A second signal ends it at once.")

    api_keys: Protection = Field((), repr=False, json_schema_extra={"group": "Access"},
        description="Keys that may use the API, of 8 characters or more: name:key entries, or @FILE with one a line. "
            "None: no key is asked for.")
    rate_limit: Integer = Field(0, ge=0,
        description="Generation requests a minute for each key (or address, where no keys are set); 0 = no limit.")
    queue_share: Number = Field(1.0, gt=0, le=1,
        description="Part of max_waiting_images that one key (or address) may fill.")
    cors_origins: Words = Field(("*",),
        description="Web origins whose pages may call the generation routes; * is any, as in the original. "
            "Credentials are never allowed.")
    trusted_proxy: Words = Field((),
        description="Addresses or networks (10.0.0.0/8) of reverse proxies whose X-Forwarded-For, -Proto, -Host and "
            "-Prefix are believed.")
    public_url: str | None = Field(None,
        description="Address under which clients reach the server, where a proxy stands before it: "
            "https://example.org/dalle. Results point there.")
    max_json_bytes: Integer = Field(512 * 1024, ge=1024,
        description="Largest JSON body; larger ones are refused with 413.")
    max_upload_bytes: Integer = Field(16 * 1024 * 1024, ge=1024,
        description="Largest body of a route that takes pictures.")

    data_dir: Directory = Field(default_factory=lambda: user_data_path("dalle-server", appauthor=False),
        json_schema_extra={"group": "Jobs and results"},
        description="Where jobs and their pictures are kept.")
    database: Annotated[str, AfterValidator(words.database_url)] | None = Field(None, repr=False,
        description="Where the rows of jobs are: sqlite:///PATH, or postgresql://USER@HOST/NAME, which several servers "
            "may share. None: a file in data_dir.")
    picture_store: Annotated[str, AfterValidator(words.store_url)] | None = Field(None, repr=False,
        description="Where the pictures of jobs are: file:///PATH or s3://BUCKET/PREFIX, which servers may share. "
            "None: data_dir.")
    job_lease_s: Number = Field(30.0, ge=2, le=3_600, allow_inf_nan=False,
        description="Of several servers on one database: one that is silent for so long has its jobs taken over.")
    job_retention_s: Number = Field(7 * 86_400.0, gt=0, allow_inf_nan=False,
        description="Seconds that a finished job and its pictures are kept.")
    max_jobs: Integer = Field(10_000, ge=0,
        description="Finished jobs that are kept; beyond it the oldest go. 0 = any number.")
    max_jobs_bytes: Integer = Field(10 * 1024**3, ge=0,
        description="Bytes of finished jobs' pictures that are kept; beyond it the oldest jobs go. 0 = any number.")
    max_event_streams: Integer = Field(32, ge=1, le=1024,
        description="Clients that may watch jobs at the same time; each holds a thread. Others are told to poll.")
    url_ttl_s: Number = Field(3_600.0, gt=0, allow_inf_nan=False,
        description="Seconds that a result's url works.")
    max_urls_bytes: Integer = Field(1024**3, ge=2**20,
        description="Bytes of pictures kept for urls; beyond it the oldest go. A key (or address) may fill a quarter.")

    cluster: str | None = Field(None, min_length=1, json_schema_extra={"group": "Cluster"},
        description="Draw on the replicas of a Ray cluster (docs/deploying-on-ray.md): its ADDRESS (10.0.0.1:6379), or "
            "auto: that of RAY_ADDRESS, or on this machine, or else one that is started for this server.")
    replicas: Annotated[str, BeforeValidator(words.replica_range)] | None = Field(None,
        description="Engines that the cluster runs, N or MIN:MAX, as many as the pictures that are asked for want. "
            "None: those that run there already.")
    replica_resources: Annotated[str, AfterValidator(words.checked_resources)] = Field("CPU=2",
        description="What each of them takes of the cluster: CPU=N (it computes in so many threads), GPU=1, or both.")

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(words.lower)] = Field("info",
        json_schema_extra={"group": "Logs"},
        description="Least severe level that is logged (to standard error).")
    log_prompts: Flag = Field(False,
        description="Write prompts into the log. Off, no prompt leaves the request's own answer.")
    # fmt: on


def load_settings(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: str | Path | None = None,
) -> Settings:
    """Settings from flags over environment over file over defaults.

    `flags` maps field names to what was given (None: not given). Raises ConfigError that names where a wrong
    key or value stands.
    """
    environ = os.environ if environ is None else environ
    path = config_file or environ.get(CONFIG_ENV)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if path:
        values |= (found := read_file(path))
        origin |= {name: f"{name} in {path}" for name in found}
    values |= (found := read_environment(environ))
    origin |= {name: f"{ENV_PREFIX}{name.upper()} in the environment" for name in found}
    values |= (found := {name: value for name, value in (flags or {}).items() if value is not None})
    origin |= {name: f"--{name}" for name in found}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise config_error(error, origin) from None


def config_error(error: ValidationError, origin: Mapping[str, str]) -> ConfigError:
    """The first fault, as one sentence; `origin` says where a setting stands, if not under its own name."""
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return ConfigError(f"{name} is no setting{did_you_mean(name)}", param=name)
    reason = fault["msg"]
    for pydantics, ours in _WORDINGS:
        reason = reason.replace(pydantics, ours)
    reason = reason.split(", unable to parse")[0].split(", not ")[0]
    shown = "" if name in ("api_keys", "database", "picture_store") else f", not {fault['input']!r}"
    return ConfigError(f"{origin.get(name, name)}: expected {reason}{shown}", param=name)


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Every DALLE_* variable that is a setting and not empty, by field name. Others are ignored: with a warning,
    unless they are what Kubernetes and Docker set for a service called dalle (DALLE_SERVICE_HOST, DALLE_PORT=tcp://…).
    """
    found = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_ENV or not value:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if _SERVICE_LINK.fullmatch(variable) and (name not in Settings.model_fields or "://" in value):
            continue
        if name not in Settings.model_fields:
            hint = did_you_mean(name, lambda known: ENV_PREFIX + known.upper())
            logger.warning("the environment variable %s is no setting%s; it is ignored", variable, hint)
            continue
        found[name] = value
    return found


def read_file(path: str | Path) -> dict[str, Any]:
    """A TOML file of `name = value` lines, dashes or underscores. Raises ConfigError."""
    try:
        raw = tomllib.loads(words.expanded(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
    found = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in Settings.model_fields:
            raise ConfigError(f"{key} in {path} is no setting{did_you_mean(name)}", param=key)
        found[name] = value
    return found


def did_you_mean(
    name: str,
    spell: Callable[[str], str] = str,
    among: Iterable[str] = (),
    listed_by: str = "dalle-server serve --help",
) -> str:
    """`; did you mean X?` when a known name is near, else where the names are listed."""
    near = difflib.get_close_matches(name, list(among) or list(Settings.model_fields), n=1, cutoff=0.6)
    return f"; did you mean {spell(near[0])}?" if near else f"; `{listed_by}` lists them"
