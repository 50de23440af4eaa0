import argparse
from pathlib import Path

import pytest

from dalle_server.cli.flags import add_flags, as_markdown
from dalle_server.config import Settings, load_settings, parse_arg_boolean, parse_arg_dalle_version
from dalle_server.errors import ConfigError

ROOT = Path(__file__).parent.parent
NOWHERE = "~no-such-user/x"


def test_defaults_are_the_originals() -> None:
    settings = load_settings(environ={})
    assert (settings.port, settings.host, settings.model_version) == (8000, "0.0.0.0", "mini")
    assert (settings.save_to_disk, settings.img_format, settings.output_dir) == (False, "JPEG", Path("generations"))


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('port = 1\nhost = "file"\nmax-images = 3\n')
    environ = {"DALLE_CONFIG": str(file), "DALLE_PORT": "2", "DALLE_HOST": "env", "DALLE_MODEL_DIR": "", "PORT": "9"}
    settings = load_settings({"port": "4", "host": None}, environ)
    assert (settings.port, settings.host, settings.max_images, settings.model_dir) == (4, "env", 3, None)


@pytest.mark.parametrize(("word", "value"), [("True", True), ("y", True), ("ON", True), ("0", False), ("No", False)])
def test_boolean_words(word: str, value: bool) -> None:
    assert parse_arg_boolean(word) is value
    assert load_settings({"save_to_disk": word}, {}).save_to_disk is value


def test_names_in_any_case() -> None:
    assert load_settings({"runner": "native"}, {}).runner == "compiled"  # its name in 0.1.0
    settings = load_settings({"model_version": "Mega-Full", "img_format": "png", "runner": "Torch"}, {})
    assert (settings.model_version, settings.img_format, settings.runner) == ("mega_full", "PNG", "torch")
    assert parse_arg_dalle_version("MEGA") == "mega"


@pytest.mark.parametrize(
    ("flags", "environ", "file", "says"),
    [
        (
            {"save_to_disk": "maybe"},
            {},
            "",
            "--save_to_disk: expected a boolean word .* not 'maybe'",
        ),
        ({"port": "x"}, {}, "", "--port: expected a valid integer, not 'x'"),
        (
            {"model_version": "maxi"},
            {},
            "",
            "expected one of nano, mini, mega, mega_full, janus_pro_1b, janus_pro_7b, not 'maxi'",
        ),
        ({"img_format": "gif"}, {}, "", "--img_format: expected 'JPEG' or 'PNG'"),
        ({}, {"DALLE_PORT": "70000"}, "", "DALLE_PORT in the environment: expected less than or equal to 65535"),
        ({}, {}, "modell_version = 'mini'", "did you mean model_version?"),
        ({}, {}, "zzz = 1", "zzz in .* is no setting; `dalle-server serve --help` lists"),
        ({}, {}, "port = [1]", "port in .*s.toml: expected a valid integer"),
        ({"device": "cudda"}, {}, "", r"--device: expected text of the form '\^\(auto.*, not 'cudda'"),
        ({"host": ""}, {}, "", "--host: expected text with at least 1 character"),
        ({}, {}, "output_dir = 7", "expected a path, not 7"),
        ({}, {}, "port = true", "port in .*s.toml: expected a number, not True"),
        ({}, {}, "num_slots = true", "num_slots in .*s.toml: expected a number, not True"),
        ({}, {}, "request_timeout_s = false", "request_timeout_s in .*s.toml: expected a number, not False"),
        ({}, {}, "port 1", "is not valid TOML"),
        ({"request_timeout_s": "nan"}, {}, "", "expected a finite number"),
        ({"model_dir": NOWHERE}, {}, "", f"--model_dir: expected a path whose ~ is a known home, not '{NOWHERE}'"),
        ({}, {"DALLE_CACHE_DIR": NOWHERE}, "", "DALLE_CACHE_DIR in the environment: expected a path whose ~"),
        ({}, {}, f"data_dir = '{NOWHERE}'", "data_dir in .*s.toml: expected a path whose ~"),
        ({"output_dir": NOWHERE}, {}, "", "--output_dir: expected a path whose ~"),
        ({"models": f"mini,{NOWHERE}"}, {}, "", "--models: expected a path whose ~"),
        ({"models": f"mini,a={NOWHERE}"}, {}, "", "--models: expected a path whose ~"),
        ({"database": f"sqlite:///{NOWHERE}"}, {}, "", "--database: expected a path whose ~ is a known home$"),
    ],
)
def test_wrong_settings_stop_start_up_and_say_where(
    flags: dict[str, str], environ: dict[str, str], file: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(file)
    with pytest.raises(ConfigError, match=says):
        load_settings(flags, environ, path)


def test_the_home_directory_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "s.toml").write_text('data_dir = "~/here"')
    assert load_settings({}, {"DALLE_CONFIG": "~/s.toml"}).data_dir == tmp_path / "here"


def test_missing_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration file /nowhere/s.toml"):
        load_settings(environ={}, config_file="/nowhere/s.toml")
    with pytest.raises(ConfigError, match=f"cannot read the configuration file {NOWHERE}: expected a path whose ~ is"):
        load_settings(environ={"DALLE_CONFIG": NOWHERE})


def test_keys_never_show() -> None:
    assert "sesame" not in repr(Settings(api_keys=("alice:sesame-sesame",)))
    with pytest.raises(ConfigError) as caught:
        load_settings({"api_keys": 5}, {})
    assert "5" not in str(caught.value)


def test_lists_come_as_words_and_as_toml_arrays(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('cors_origins = ["https://a", "https://b"]')
    assert (
        load_settings({}, {}, path).cors_origins
        == load_settings({"cors_origins": "https://a, https://b"}, {}).cors_origins
    )


def test_every_setting_is_a_flag_with_a_description() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    given = dict.fromkeys(Settings.model_fields, "1")
    parsed = vars(parser.parse_args([word for name in given for word in (f"--{name}", "1")]))
    assert parsed == given
    assert all(field.description for field in Settings.model_fields.values())


def test_configuration_page_is_what_the_program_writes() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "run `python -m dalle_server.cli.flags > docs/configuration.md`"


def test_unknown_variables_are_ignored_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        settings = load_settings({}, {"DALLE_PROT": "1", "DALLE_API_KEY": "a-secret-key", "DALLE_PORT": "81"})
    assert settings.port == 81
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the environment variable DALLE_PROT is no setting; did you mean DALLE_PORT?; it is ignored",
        "the environment variable DALLE_API_KEY is no setting; did you mean DALLE_API_KEYS?; it is ignored",
    ]
    assert "a-secret-key" not in caplog.text


def test_what_kubernetes_and_docker_set_for_a_service_called_dalle_is_not_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    links = {
        "DALLE_SERVICE_HOST": "10.0.0.1",
        "DALLE_SERVICE_PORT": "8000",
        "DALLE_SERVICE_PORT_HTTP": "8000",
        "DALLE_PORT": "tcp://10.0.0.1:8000",
        "DALLE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "DALLE_PORT_8000_TCP_PROTO": "tcp",
        "DALLE_PORT_8000_TCP_PORT": "8000",
        "DALLE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "DALLE_CUDA_SERVICE_HOST": "10.0.0.2",
        "DALLE_CUDA_PORT": "tcp://10.0.0.2:8000",
        "DALLE_CUDA_PORT_8000_TCP_ADDR": "10.0.0.2",
        "DALLE_NAME": "/web/dalle",
        "DALLE_ENV_PYTHON_VERSION": "3.12",
    }
    assert load_settings({}, links) == load_settings({}, {})
    assert caplog.records == []
    with pytest.raises(ConfigError, match="DALLE_PORT in the environment: expected a valid integer"):
        load_settings({}, {"DALLE_PORT": "eight"})


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("port = 81\n", encoding="utf-8-sig")
    assert load_settings({}, {}, path).port == 81
