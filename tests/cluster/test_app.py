"""What is deployed, without a cluster: how replicas are counted, what they take, and the files that say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from dalle_server.cluster.agreement import drawn_as
from dalle_server.cluster.app import Spec, application, build
from dalle_server.config import Settings
from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.errors import DalleServerError
from dalle_server.web.serving.admission import MAX_IN_FLIGHT, max_in_flight
from tests.cluster.engines import loading
from tests.cluster.ray_here import ROOT

pytestmark = pytest.mark.cluster
SERVE_CONFIG = ROOT / "deploy" / "ray-serve.yaml"
KUBERAY = ROOT / "deploy" / "kuberay.yaml"
INFO = RunnerInfo("torch", "cuda:0", "NVIDIA A", "bf16", "asked for", {"torch": "2.13"})


def deployment(spec: Spec) -> Any:
    return application(spec, loading())._bound_deployment


def test_as_many_replicas_as_pictures_want() -> None:
    scaled = deployment(Spec(settings={"num_slots": 6}, replicas="1:8"))._deployment_config
    found = scaled.autoscaling_config
    assert (found.min_replicas, found.max_replicas, found.target_ongoing_requests) == (1, 8, 6)
    assert (scaled.max_ongoing_requests, scaled.max_queued_requests) == (12, 8 * 6 + 64)
    fixed = deployment(Spec(replicas="3", drain_timeout_s=40))._deployment_config
    assert (fixed.num_replicas, fixed.autoscaling_config, fixed.graceful_shutdown_timeout_s) == (3, None, 40)


def test_a_replica_takes_its_resources_and_computes_in_no_more_threads() -> None:
    spec = Spec(resources="CPU=4,tpu_host=0.5")
    options = deployment(spec).ray_actor_options
    assert (options["num_cpus"], options["num_gpus"], options["resources"]) == (4, 0, {"tpu_host": 0.5})
    assert spec.checked_settings()["num_threads"] == 4
    assert "num_threads" not in Spec(resources="CPU=4,GPU=1").checked_settings()
    assert Spec(settings={"num_threads": 1}, resources="CPU=4").checked_settings()["num_threads"] == 1


def test_a_front_hands_on_what_concerns_the_engine_and_nothing_else() -> None:
    settings = Settings(model_version="nano", num_slots=3, api_keys=("a:12345678",), replicas="2", port=1)
    spec = Spec.of(settings)
    assert spec.settings == {"model_version": "nano", "num_slots": 3}
    assert spec.to_json() == Spec.of(settings.model_copy(update={"port": 2})).to_json()
    assert spec.to_json() != replace(spec, revision="2").to_json()


def test_a_front_takes_as_many_requests_as_the_replicas_can_draw() -> None:
    one, two = (Settings(num_slots=8, cluster="auto", replicas=replicas) for replicas in ("1", "1:2"))
    assert max_in_flight(two) == max_in_flight(one) + 8
    assert max_in_flight(Settings(cluster="auto")) == MAX_IN_FLIGHT


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"replicas": "8:1"}, "MIN:MAX"),
        ({"replica": 2}, "args has no field 'replica'"),
        ({"settings": {"port": 1}}, "settings has no field 'port'"),
        ({"settings": {"dtype": "fp8"}}, "dtype: expected"),
        ({"resources": "GPU"}, "CPU=2"),
    ],
)
def test_a_mistake_in_the_config_is_named(args: dict[str, Any], says: str) -> None:
    with pytest.raises((DalleServerError, ValueError), match=says):
        build(args)


def test_compiled_code_draws_alike_everywhere_and_other_runners_where_all_is_alike() -> None:
    compiled = replace(INFO, runner="compiled", device_name="CPU A", build="avx2", dtype="int8")
    other = replace(compiled, device_name="CPU B", build="avx512vnni", versions={"numpy": "3"})
    assert drawn_as("a", compiled) == drawn_as("a", other) != drawn_as("b", compiled)
    assert drawn_as("a", compiled) != drawn_as("a", replace(compiled, dtype="fp32"))
    assert drawn_as("a", INFO) == drawn_as("a", replace(INFO, device="cuda:1"))
    assert drawn_as("a", INFO) != drawn_as("a", replace(INFO, device_name="NVIDIA B"))
    assert drawn_as("a", INFO) != drawn_as("a", replace(INFO, versions={"torch": "2.14"}))
    assert drawn_as("a", INFO) == drawn_as("a", replace(INFO, num_threads=3)), "a GPU draws, not the threads"
    on_cpu = replace(INFO, device="cpu", num_threads=2)
    assert drawn_as("a", on_cpu) != drawn_as("a", replace(on_cpu, num_threads=1))
    assert drawn_as("a", compiled) == drawn_as("a", replace(compiled, device="cpu", num_threads=1))


def check_serve_config(config: Any) -> None:
    """Against Ray Serve's own schema, and its args against ours."""
    schema = ServeDeploySchema.model_validate(config)
    (app,) = schema.applications
    assert (app.name, app.import_path, app.route_prefix) == ("dalle-server", f"{build.__module__}:build", None)
    assert schema.proxy_location == "Disabled"
    assert set(config) <= set(ServeDeploySchema.model_fields), "Ray ignores what it does not know"
    assert set(config["applications"][0]) <= set(type(app).model_fields)
    bound = build(app.args)._bound_deployment
    for each in app.deployments:
        assert each.name == bound.name
        assert each.autoscaling_config["target_ongoing_requests"] == Spec.read(app.args).slots


def test_the_serve_config_is_what_ray_serve_and_we_read() -> None:
    check_serve_config(yaml.safe_load(SERVE_CONFIG.read_text()))


def test_the_kuberay_manifest_deploys_the_same() -> None:
    """KubeRay's own schema is not at hand: what Ray Serve, Kubernetes' names and this package know of it is checked."""
    service, front = yaml.safe_load_all(KUBERAY.read_text())
    check_serve_config(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    (container,) = front["spec"]["template"]["spec"]["containers"]
    names = {each["name"] for each in container["env"] if each["name"].startswith("DALLE_")}
    assert names <= {f"DALLE_{name.upper()}" for name in Settings.model_fields}
    assert front["spec"]["selector"]["matchLabels"] == front["spec"]["template"]["metadata"]["labels"]
    for pods in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"], front["spec"]):
        (container,) = pods["template"]["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") in (None, "1")


def test_the_page_names_files_that_exist() -> None:
    page = Path(ROOT / "docs" / "deploying-on-ray.md").read_text()
    assert "deploy/ray-serve.yaml" in page and "deploy/kuberay.yaml" in page
