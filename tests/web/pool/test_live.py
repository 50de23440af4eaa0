"""One server with three real models, nano, a tiny DalleBart and a tiny Janus: clients that know nothing of it choose
by name, memory comes back, jobs of two models go on after a kill.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import webuiapi
from PIL import Image

from dalle_server.catalogue import describe
from dalle_server.config import Settings
from tests.web.server_process import ROOT, ServerProcess
from tests.web.waits import until

BART = ROOT / "tests" / "data" / "parity" / "tiny-mega"
JANUS = ROOT / "tests" / "data" / "parity-janus" / "hf-tiny"
NANO = describe(Settings(model_version="nano"))
SIDES_PX = {"nano": NANO.image_px, "tiny-mega": 64, "janus": 96}
PATIENCE_S = 60.0


def server_of(directory: Path, *flags: str, models: str = f"nano,{BART},janus={JANUS}") -> ServerProcess:
    cache = ("--cache_dir", str(directory / "cache"))
    return ServerProcess(directory, "--models", models, *cache, "--num_threads", "1", *flags, real=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_of(tmp_path_factory.mktemp("models")) as server:
        yield server.ready()


def states(server: ServerProcess) -> dict[str, str]:
    return {model["name"]: model["state"] for model in server.get("/health")[1]["models"]}


def side_px(b64_json: str | None) -> int:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json))).size[0]


def test_the_openai_client_lists_and_chooses_by_name(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none") as client:
        listed = [model.id for model in client.models.list()]
        assert listed[:3] == ["nano", "tiny-mega", "janus"] and "gpt-image-1" in listed
        for name in ("tiny-mega", "janus", "nano", "dall-e-3"):
            reply = client.images.generate(prompt="a red apple", model=name, response_format="b64_json")
            assert reply.data is not None
            assert side_px(reply.data[0].b64_json) == SIDES_PX.get(name, SIDES_PX["nano"])
        assert states(server) == dict.fromkeys(SIDES_PX, "loaded")
        with pytest.raises(openai.NotFoundError) as caught:
            client.images.generate(prompt="a red apple", model="sdxl")
        assert caught.value.code == "model_not_found"
    described = server.get("/v1/models/janus")[1]
    assert (described["family"], described["image_px"], described["default"]) == ("janus", 96, False)
    assert {each["model"]["name"] for each in server.get("/v1/info")[1]["models"]} == set(SIDES_PX)
    assert server.metric('dalle_model_images_total{model="janus"}') >= 1


def test_webuiapi_switches_for_itself_alone(server: ServerProcess) -> None:
    api = webuiapi.WebUIApi(host="127.0.0.1", port=server.port, sampler="Gumbel-max")
    names = api.util_get_model_names()
    assert [name.split(" ")[0] for name in names] == ["janus", "nano", "tiny-mega"]
    api.util_set_model("janus")
    assert api.util_get_current_model().startswith("janus")
    assert api.txt2img(prompt="a red apple", seed=1).info["sd_model_name"] == "janus"
    once = api.txt2img(prompt="a red apple", seed=1, override_settings={"sd_model_checkpoint": "nano"})
    assert once.info["sd_model_name"] == "nano"
    assert api.util_get_current_model().startswith("janus")
    api.txt2img(
        prompt="a red apple",
        override_settings={"sd_model_checkpoint": "nano"},
        override_settings_restore_afterwards=False,
    )
    assert api.util_get_current_model().startswith("nano")


def test_each_model_scores_and_answers_in_its_own_words(server: ServerProcess) -> None:
    body = {"prompt": "a red apple", "model": "nano", "response_format": "b64_json", "seed": 3}
    picture = json.loads(server.request("POST", "/v1/images/generations", body)[2])["data"][0]["b64_json"]
    scored = server.request("POST", "/v1/images/score", {"image": picture, "prompt": "a red apple", "model": "nano"})
    assert json.loads(scored[2])["model"] == "nano"
    other = json.loads(
        server.request("POST", "/v1/images/score", {"image": picture, "prompt": "x", "model": "janus"})[2]
    )
    assert (other["model"], other["grid_width"]) == ("janus", 6)
    tool = {"type": "image_generation", "model": "janus"}
    answer = json.loads(server.request("POST", "/v1/responses", {"input": "a red apple", "tools": [tool]})[2])
    assert answer["output"][0]["size"] == "96x96"


def test_eviction_and_a_model_that_does_not_fit(tmp_path: Path) -> None:
    # The others take 1 and 4 MB by their sizes, until they are converted.
    with server_of(tmp_path, "--memory_budget", f"{NANO.memory_bytes // 10**6 + 2}MB") as server:
        server.ready()
        paint(server, "tiny-mega")
        assert states(server) == {"nano": "loaded", "tiny-mega": "loaded", "janus": "on_disk"}
        paint(server, "janus")
        assert states(server) == {"nano": "on_disk", "tiny-mega": "loaded", "janus": "loaded"}
        paint(server, "nano")
        assert states(server)["nano"] == "loaded"
        assert server.metric('dalle_model_unloads_total{model="nano",reason="evicted"}') == 1
    with ServerProcess(tmp_path, "--model_version", "nano", "--memory_budget", "10MB", real=True) as server:
        assert server.exit_code() == 2
    assert any("model 'nano' takes about" in line and "--memory_budget" in line for line in server.errors)
    with server_of(tmp_path, "--memory_budget", "20MB", models=f"{BART},nano") as server:
        server.ready()
        status, _, body = server.request("POST", "/v1/images/generations", {"prompt": "x", "model": "nano"})
        error = json.loads(body)["error"]
        assert (status, error["code"], error["param"]) == (400, "model_does_not_fit", "model")
        assert "tiny-mega (13 MB) would fit" in error["message"]


def paint(server: ServerProcess, model: str, **body: Any) -> str:
    asked = {"prompt": "a red apple", "model": model, "response_format": "b64_json", "seed": 1, **body}
    status, _, reply = server.request("POST", "/v1/images/generations", asked)
    assert status == 200, reply
    data: str = json.loads(reply)["data"][0]["b64_json"]
    return data


def pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


@pytest.mark.skipif(not hasattr(psutil.Process, "memory_maps"), reason="this system does not tell resident memory so")
def test_silence_gives_the_memory_back(tmp_path: Path) -> None:
    """Compiled models: what is left is the process. Its threads end, and no torch was imported."""
    with server_of(tmp_path, "--idle_unload_s", "1", models="nano") as server:
        process = psutil.Process(server.process.pid)
        empty = process.memory_info().rss  # it listens, and loads nano
        server.ready()
        server.wait_for(lambda: states(server)["nano"] == "on_disk")
        threads = process.num_threads()
        first = paint(server, "nano")
        loaded = process.memory_info().rss
        server.wait_for(lambda: states(server)["nano"] == "on_disk")
        for _ in range(3):
            assert paint(server, "nano") == first
            server.wait_for(lambda: states(server)["nano"] == "on_disk")
        until(lambda: process.num_threads() <= threads + 2, PATIENCE_S)  # HTTP threads come as they are needed
        # The model is off the list a moment before its memory is given back.
        until(lambda: process.memory_info().rss < min(loaded, empty + 200e6), PATIENCE_S)
        assert not any("libtorch" in map.path for map in process.memory_maps())
        assert server.get("/ready")[0] == 200


def test_jobs_of_two_models_go_on_after_a_kill(tmp_path: Path) -> None:
    asked = [{"prompt": f"apple {i}", "num_images": 8, "seed": i, "model": ("nano", "janus")[i % 2]} for i in range(4)]
    with server_of(tmp_path, "--num_slots", "1", models=f"nano,janus={JANUS}") as server:
        server.ready()
        jobs = [json.loads(server.request("POST", "/v1/jobs", body)[2]) for body in asked]
        assert [job["model"] for job in jobs] == ["nano", "janus"] * 2
    with server_of(tmp_path, models=f"{BART},janus={JANUS},nano") as server:  # another is the first now
        server.ready()

        def all_over() -> bool:
            found = [server.get(f"/v1/jobs/{job['id']}")[1] for job in jobs]
            return all(job["status"] in ("done", "failed") for job in found)

        server.wait_for(all_over)
        for job, body in zip(jobs, asked, strict=True):
            found = server.get(f"/v1/jobs/{job['id']}")[1]
            assert (found["status"], found["model"], len(found["images"])) == ("done", body["model"], 8), found
            image = server.request("GET", found["images"][7]["url"])[2]
            again = paint(server, str(body["model"]), prompt=body["prompt"], seed=body["seed"], image_index=7)
            assert pixels(image) == pixels(base64.b64decode(again)), "the same picture, whenever it is drawn"


def test_one_that_has_gone_fails_its_jobs_and_says_so(tmp_path: Path) -> None:
    body = {"prompt": "an apple", "num_images": 16, "model": "janus"}
    with server_of(tmp_path, "--num_slots", "1", models=f"nano,janus={JANUS}") as server:
        server.ready()
        job = json.loads(server.request("POST", "/v1/jobs", body)[2])
    with server_of(tmp_path, models=f"nano,{BART}") as server:
        server.ready()
        server.wait_for(lambda: server.get(f"/v1/jobs/{job['id']}")[1]["status"] == "failed")
        assert "janus, which this server no longer has" in server.get(f"/v1/jobs/{job['id']}")[1]["error"]["message"]


def test_two_of_one_name_and_folders_without_a_model_stop_the_start(tmp_path: Path) -> None:
    with server_of(tmp_path, models=f"nano,nano={BART}") as server:
        assert server.exit_code() == 2
    assert any("two are called 'nano'" in line for line in server.errors)
    (tmp_path / "empty").mkdir()
    with server_of(tmp_path, models=f"nano,{tmp_path / 'empty'}") as server:
        assert server.exit_code() == 1
    assert any("is no checkpoint" in line for line in server.errors)
