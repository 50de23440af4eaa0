"""The commands edit, vary and branch: pictures over a given one."""

from __future__ import annotations

import argparse
from dataclasses import replace

from dalle_server.cli import commands
from dalle_server.config import Settings
from dalle_server.drawing.form import Form
from dalle_server.drawing.repaint import Repaint, keep_rows_of
from dalle_server.drawing.repainting import draw_over
from dalle_server.pictures.canvas import read_file
from dalle_server.pictures.codec import ImageFormat, describe_image
from dalle_server.request import SamplingParams, require_words


def draw(settings: Settings, arguments: argparse.Namespace) -> int:
    """Prints the path of each picture it has written."""
    image = read_file(arguments.file)
    mask = read_file(arguments.mask) if getattr(arguments, "mask", None) else None
    if arguments.prompt is not None:
        require_words(arguments.prompt)
    wanted, sampling = _wanted(arguments, image, mask), SamplingParams.of(arguments)
    commands.check_writable(arguments.output)
    with commands.open_maker(wanted.recipe, settings, download=arguments.download) as engine:
        if arguments.command == "branch":
            wanted = replace(wanted, keep_tokens=keep_rows_of(engine.config.picture, arguments.keep_rows))
        drawn, plan = draw_over(
            engine,
            wanted,
            prompt=arguments.prompt,
            num_images=arguments.num_images,
            seed=arguments.seed,
            negative_prompt=arguments.negative_prompt,
            sampling=sampling,
            seamless=arguments.seamless,
        )
        for each in commands.watch(drawn):
            told = describe_image(each, drawn, engine, plan.told)
            form = Form(format=ImageFormat[settings.img_format])
            data = form.file(plan.frame.finished(each.pixels), drawn, told)
            print(commands.write_picture(arguments.output, form.format, data, told))
    return 0


def _wanted(arguments: argparse.Namespace, image: bytes, mask: bytes | None) -> Repaint:
    match arguments.command:
        case "edit":
            told = {name: getattr(arguments, name) for name in ("strength", "candidates", "grow")}
            return Repaint.read(image, mask, **told)
        case "vary":
            return Repaint.variation(image, strength=arguments.strength, candidates=arguments.candidates)
        case _:
            return Repaint.read(image, strength=1.0)
