"""The `dalle-server` command: serve · generate · edit · vary · branch · pull · models · info · replay.

Exit codes: 0 done, 1 it failed, 2 it was called or set up wrongly, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dalle_server import __version__
from dalle_server.cli.flags import add_flags
from dalle_server.cli.terminal import forgiving
from dalle_server.config import MODEL_SETTINGS, Settings, did_you_mean, load_settings
from dalle_server.errors import ConfigError, DalleServerError, InvalidRequest
from dalle_server.words import expanded

if TYPE_CHECKING:
    from dalle_server.engine.engine import Engine
    from dalle_server.engine.stats import Observer
    from dalle_server.models.card import ModelCard
    from dalle_server.web.serving.server import LoadEngine

    _Commands = argparse._SubParsersAction["Parser"]

logger = logging.getLogger(__name__)

Command = Callable[[argparse.Namespace], int]
CONFIG_HELP = "TOML file with settings (docs/configuration.md)"


def _path(text: str) -> Path:
    """Behind --mask= and --output= no shell puts a home in the place of ~."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None


class Parser(argparse.ArgumentParser):
    """argparse, with `did you mean` for a mistyped flag."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse at once what is unknown: argparse hands it to the parser above, which has other flags."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: --([\w-]+)", message)
        if unknown:
            flags = [flag[2:] for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            hint = did_you_mean(unknown[1].replace("-", "_"), "--{}".format, flags, f"{self.prog} --help")
            message = f"--{unknown[1]} is no flag of {self.prog}{hint}"
        self.exit(2, f"error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    with forgiving() as (output, _):
        code = _run(given)
        output.flush()
        return code or (1 if output.failed else 0)


def _run(given: Sequence[str]) -> int:
    arguments = _parser().parse_args(given)
    try:
        code: int = arguments.run(arguments)
        return code
    except DalleServerError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | InvalidRequest) else 1
    except KeyboardInterrupt:
        return 130


def _underscored(word: str) -> str:
    """`--some-name=x` → `--some_name=x`: both spellings are the same flag."""
    found = re.match(r"--[A-Za-z][\w-]*", word)
    return word if found is None else "--" + found[0][2:].replace("-", "_") + word[found.end() :]


def _parser() -> Parser:
    parser = Parser(prog="dalle-server", description="Text in, pictures out.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"dalle-server {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    serve = commands.add_parser("serve", help="answer over HTTP", allow_abbrev=False, description=_SERVE)
    serve.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    add_flags(serve)
    serve.set_defaults(run=_serve)

    generate = commands.add_parser("generate", help="make pictures of a text, without a server", allow_abbrev=False)
    generate.add_argument("prompt", help="what the pictures show")
    generate.add_argument("--size", metavar="WIDTHxHEIGHT", help="of the files; another shape is painted in windows")
    generate.add_argument("--fit", metavar="WAY", help="paint, crop or stretch: how another shape is reached")
    _add_drawing_flags(generate)
    generate.set_defaults(run=_later("commands", "generate"))

    _add_drawing_over(commands)
    _add_weights(commands)
    _add_saved_pictures(commands)
    return parser


def _add_drawing_over(commands: _Commands) -> None:
    """edit, vary, branch."""
    edit = commands.add_parser("edit", help="paint a part of a picture anew", allow_abbrev=False)
    edit.add_argument("--mask", type=_path, metavar="FILE", help="transparent, or white, is painted [its own holes]")
    edit.add_argument("--grow", type=int, default=0, metavar="N", help="tokens around it that are painted too [0]")
    edit.add_argument("--prompt", required=True, metavar="TEXT", help="what the picture shows in the end")
    _add_strength_flags(edit, "[1 with a mask, else 0.75]", "[4]")

    vary = commands.add_parser("vary", help="draw a picture anew, by half", allow_abbrev=False)
    vary.add_argument("--prompt", metavar="TEXT", help="what it shows [the picture's own, if it is ours]")
    _add_strength_flags(vary, "[0.5]", "[1]")

    branch = commands.add_parser("branch", help="draw a picture again from a row on", allow_abbrev=False)
    branch.add_argument("--keep_rows", type=int, required=True, metavar="N", help="rows of tokens that stay")
    branch.add_argument("--prompt", metavar="TEXT", help="what it shows [the picture's own, if it is ours]")
    for command in (edit, vary, branch):
        command.add_argument("file", type=Path, metavar="FILE", help="PNG, JPEG, WebP or GIF")
        _add_drawing_flags(command)
        _add_download_flag(command)
        command.set_defaults(run=_later("over", "draw"), command=command.prog.rsplit(" ", 1)[-1])


def _add_weights(commands: _Commands) -> None:
    """pull, models."""
    pull = commands.add_parser("pull", help="download and convert published weights", allow_abbrev=False)
    pull.add_argument("model", metavar="MODEL", help="mini, mega, mega_full, janus-pro-1b or janus-pro-7b")
    pull.add_argument(
        "--mirror", action="store_true", help="from the other place (docs/checkpoints.md); needs torch once"
    )
    models = commands.add_parser("models", help="list the models: what is here, what the rest would take")
    for command, name in ((pull, "pull"), (models, "models")):
        command.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
        add_flags(command, only=("cache_dir",))
        command.set_defaults(run=_later("commands", name))


def _add_saved_pictures(commands: _Commands) -> None:
    """info, replay."""
    info = commands.add_parser("info", help="print how a saved picture was made", allow_abbrev=False)
    info.add_argument("files", nargs="+", type=Path, metavar="FILE")
    info.set_defaults(run=_info)

    replay = commands.add_parser("replay", help="make a saved picture again, and compare", allow_abbrev=False)
    replay.add_argument("file", type=Path, metavar="FILE")
    replay.add_argument(
        "--source", choices=("seed", "tokens"), default="seed", help="draw it again, or decode its tokens [seed]"
    )
    replay.add_argument(
        "-o", "--output", type=_path, metavar="FILE", help="also write the picture here: PNG, JPEG or WebP by its name"
    )
    _add_download_flag(replay)
    _add_model_flags(replay)
    replay.set_defaults(run=_later("commands", "replay"))


_SERVE = """Answer over HTTP. Every flag is also an environment variable DALLE_NAME and a line of the TOML file;
dashes may stand for underscores; [defaults] are in brackets."""


def _add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--num_images", type=int, default=1, metavar="N", help="how many [1]")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed draws the same pictures [random]")
    parser.add_argument("-o", "--output", type=_path, default=Path(), metavar="DIR", help="where to put them [here]")
    parser.add_argument("--seamless", action="store_true", help="opposite edges meet: the pictures can be tiled")
    parser.add_argument("--negative_prompt", metavar="TEXT", help="what to steer away from")
    for name, kind in (("temperature", float), ("top_k", int), ("top_p", float), ("condition_scale", float)):
        parser.add_argument(f"--{name}", type=kind, metavar="X", help="[the model's own]")
    _add_model_flags(parser, "img_format")


def _add_strength_flags(parser: argparse.ArgumentParser, strength: str, candidates: str) -> None:
    parser.add_argument("--strength", type=float, metavar="X", help=f"0 keeps the picture, 1 ignores it {strength}")
    parser.add_argument("--candidates", type=int, metavar="N", help=f"drawn for each; the best counts {candidates}")


def _add_download_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--download", action="store_true", help="fetch the model that the file names, if it is not here"
    )


def _add_model_flags(parser: argparse.ArgumentParser, *more: str) -> None:
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    add_flags(parser, only=(*MODEL_SETTINGS, *more))


def _settings(arguments: argparse.Namespace) -> Settings:
    flags = {name: value for name, value in vars(arguments).items() if name in Settings.model_fields}
    return load_settings(flags, config_file=arguments.config)


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if settings.replicas is not None and settings.cluster is None:
        raise ConfigError("--replicas runs on a cluster: say which with --cluster", param="replicas")
    from dalle_server.web.serving.server import serve

    def load(settings: Settings, observer: Observer, on_fatal: Callable[[], None]) -> Engine:
        from dalle_server.dalle_model import load_engine  # after the port answers: this imports the runners

        return load_engine(settings, observer, on_fatal, progress=_logged_progress())

    def describe(settings: Settings) -> ModelCard:
        from dalle_server import catalogue

        return catalogue.describe(settings)

    if settings.models:
        from dalle_server.catalogue import prepared

        settings = prepared(settings)
    code = serve(settings, *((load, describe) if settings.cluster is None else (cluster_load(settings), None)))
    # Nothing is left to flush: the server writes its lines itself, and one of these streams may be closed or unread.
    # Not sys.exit: threads inside native code (a load, a step) cannot be joined, and die badly at finalisation.
    os._exit(code)


def cluster_load(settings: Settings) -> LoadEngine:
    """What loads engines that draw on a Ray cluster. Raises ConfigError where ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--cluster needs Ray Serve: pip install 'dalle-server[cluster]'", param="cluster")
    from dalle_server.cluster.load import Cluster

    return Cluster(settings).load


def _logged_progress() -> Callable[[str, int, int], None]:
    """Downloads and conversions in the server's log: a line for each tenth."""
    told: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if told.get(what) != tenth:
            told[what] = tenth
            logger.info("%s: %d %% of %.1f MB", what, 10 * tenth, total / 1e6)

    return tell


def _later(module: str, name: str) -> Command:
    """A command of that module, imported when it runs: `--help` need not wait for the engine."""

    def run(arguments: argparse.Namespace) -> int:
        command: Callable[[Settings, argparse.Namespace], int]
        command = getattr(importlib.import_module(f"dalle_server.cli.{module}"), name)
        return command(_settings(arguments), arguments)

    return run


def _info(arguments: argparse.Namespace) -> int:
    """Asks for no settings: a file says the same whatever they are."""
    from dalle_server.cli import commands

    return commands.info(arguments.files)
