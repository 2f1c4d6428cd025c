"""What runs Sightline in containers: each file fits its schema, and all of them fit each other and the code.

No container is started here. `compose-spec.json` is the Compose Specification's own schema (Apache 2.0).
"""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values
from pydantic import BaseModel
from sqlalchemy import Engine, text

from flows.config.settings import PREFIX, Settings, load_settings
from storage.sources import addresses
from storage.sources.addresses import Address
from tests.support.tools import tool

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
COMPOSE = sorted(INFRA.glob("compose*.yaml"))
KUSTOMIZATIONS = sorted(KUBERNETES.rglob("kustomization.yaml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
UID = 10001


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


SERVICES: dict[str, dict[str, Any]] = load(INFRA / "compose.yaml")["services"]


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with what follows it."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def objects(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every object that a kustomization names as a resource."""
    for kustomization in KUSTOMIZATIONS:
        for name in load(kustomization)["resources"]:
            path = kustomization.parent / name
            if path.is_file():
                yield from ((path, one) for one in objects(path))


def job_of_the_pool() -> dict[str, Any]:
    """The job that a run in the pool `gpu` becomes, as Prefect's worker makes it."""
    pool = json.loads((KUBERNETES / "overlays/gpu/pool.json").read_text())
    defaults = {
        name: about["default"]
        for name, about in pool["variables"]["properties"].items()
        if "default" in about
    }
    run = {"name": "run", "command": ["prefect", "flow-run", "execute"]}
    run["env"] = [{"name": name, "value": value} for name, value in defaults.pop("env").items()]
    return apply_values(pool["job_configuration"], defaults | run)["job_manifest"]


def pods() -> list[tuple[str, dict[str, Any]]]:
    with_pods = [one for _, one in manifests() if one["kind"] in ("Deployment", "Job")]
    return [
        (one["metadata"].get("name", "pool"), one["spec"]["template"]["spec"])
        for one in [*with_pods, job_of_the_pool()]
    ]


class TestTheImage:
    def test_is_built_on_a_pinned_one(self):
        [image] = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
        stages = [rest.split(" AS ") for word, rest in dockerfile() if word == "FROM"]

        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", image)
        assert {stage[0] for stage in stages} <= {
            "${PYTHON_IMAGE}",
            *(name for _, *name in stages for name in name),
        }

    def test_holds_the_versions_that_were_tried(self):
        installs = [
            part
            for word, rest in dockerfile()
            if word == "RUN"
            for part in re.split(r"&&|;;", rest)
            if "pip install" in part
        ]

        assert len(installs) == 3
        assert all("-c constraints.txt" in part or "--no-deps --no-index" in part for part in installs)

    def test_runs_as_nobody_in_particular(self):
        users = [rest for word, rest in dockerfile() if word == "USER"]

        assert users == [f"{UID}:{UID}"]
        assert f"useradd --uid {UID}" in (INFRA / "Dockerfile").read_text()

    def test_is_given_what_it_copies(self):
        kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
        copied = {
            path
            for word, rest in dockerfile()
            if word == "COPY" and "--from" not in rest
            for path in rest.split()[:-1]
        }

        assert copied == kept
        assert [path for path in sorted(copied) if not (ROOT / path).exists()] == []

    def test_has_the_version_of_the_package(self):
        assert f"ARG VERSION={VERSION}" in (INFRA / "Dockerfile").read_text()


class TestCompose:
    @pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
    def test_fits_the_specification(self, path: Path):
        schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())

        jsonschema.Draft202012Validator(schema).validate(load(path))

    def test_every_image_is_pinned(self):
        images = [
            service["image"]
            for path in COMPOSE
            for service in load(path)["services"].values()
            if "image" in service
        ]

        assert len(images) >= len(SERVICES)
        for image in images:
            name, _, tag = image.partition(":")
            assert re.match(r"v?\d+\.\d+", tag), image
            assert name != "sightline" or tag.removesuffix("-cuda") == VERSION

    def test_every_service_tells_how_it_is(self):
        assert [name for name, service in SERVICES.items() if not service["healthcheck"]["test"]] == []

    def test_a_service_waits_until_what_it_needs_is_healthy(self):
        needs = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}

        assert needs["worker"].keys() == needs["console"].keys() == {"postgres", "qdrant", "prefect"}
        for wanted in needs.values():
            assert wanted.keys() <= SERVICES.keys()
            assert all(one == {"condition": "service_healthy"} for one in wanted.values())

    def test_the_console_alone_can_be_reached_and_from_this_machine_alone(self):
        published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

        assert published == {"console": ["127.0.0.1:8080:8080"]}
        assert SERVICES["console"]["environment"]["SIGHTLINE_CONSOLE__PORT"] == "8080"

    def test_other_pages_are_for_this_machine_alone_too(self):
        pages = load(INFRA / "compose.pages.yaml")["services"]

        assert all(port.startswith("127.0.0.1:") for service in pages.values() for port in service["ports"])

    def test_only_who_needs_it_gets_out(self):
        out = {name for name, service in SERVICES.items() if "outside" in service["networks"]}

        assert out == {"worker", "console"}
        assert load(INFRA / "compose.yaml")["networks"]["inside"] == {"internal": True}

    @pytest.mark.parametrize("name", SERVICES)
    def test_no_container_may_more_than_it_needs(self, name: str):
        service = SERVICES[name]

        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert service.get("privileged") is None
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"])

    def test_what_is_mounted_is_there(self):
        places = [
            volume.split(":")[0]
            for service in SERVICES.values()
            for volume in service.get("volumes", [])
            if volume.startswith(".")
        ]

        assert len(places) == 4
        assert [place for place in places if not (INFRA / place).exists()] == []

    def test_a_service_is_given_each_secret_that_it_reads(self):
        for name, service in SERVICES.items():
            assert set(re.findall(r"/run/secrets/(\w+)", json.dumps(service))) <= set(
                service.get("secrets", [])
            ), name
        [script] = (INFRA / "postgres").iterdir()
        read = set(re.findall(r"/run/secrets/(\w+)", script.read_text()))
        assert read <= set(SERVICES["postgres"]["secrets"])

    def test_no_secret_is_in_a_file(self):
        assert "infra/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
        for name, service in SERVICES.items():
            for variable in service.get("environment", {}):
                assert not re.search("PASSWORD$|API_KEY$|AUTH_STRING$|DATABASE_URL$", variable), (
                    name,
                    variable,
                )


def test_no_role_of_an_application_is_a_superuser(engine: Engine):
    """The statements that make the roles, run in a real Postgres and taken back."""
    [script] = (INFRA / "postgres").iterdir()
    [statements] = re.findall(r"<<'SQL'\n(.*)SQL\n", script.read_text(), re.DOTALL)
    roles = [line for line in statements.splitlines() if line.startswith("create role")]
    with engine.connect() as connection:
        for line in roles:
            connection.execute(text(re.sub(r":'\w+'", "'a password'", line)))
        rights = "rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls"
        names = "('sightline', 'prefect')"
        found = connection.execute(text(f"select rolname, {rights} from pg_roles where rolname in {names}"))
        made = dict(found.tuples().all())
        connection.rollback()

    assert made == {"sightline": False, "prefect": False}
    assert SERVICES["postgres"]["environment"].keys() == {
        "POSTGRES_PASSWORD_FILE"
    }  # its user stays `postgres`
    assert "revoke connect on database sightline from public" in statements


class TestSecrets:
    def write(self, folder: Path) -> dict[str, str]:
        subprocess.run([INFRA / "make-secrets.sh", folder], check=True, capture_output=True)
        return {path.name: path.read_text() for path in folder.iterdir()}

    def test_all_that_compose_mounts_are_made_once(self, tmp_path: Path):
        made = self.write(tmp_path / "secrets")

        wanted = load(INFRA / "compose.yaml")["secrets"]
        assert made.keys() == wanted.keys()
        assert {name: {"file": f"./secrets/{name}"} for name in wanted} == wanted
        assert len(set(made.values())) == len(made)
        assert [name for name, value in made.items() if value != value.strip()] == []
        assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
        assert self.write(tmp_path / "secrets") == made

    def test_they_are_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        made = self.write(tmp_path)
        monkeypatch.setenv("SIGHTLINE_SECRETS_DIR", str(tmp_path))

        settings = load_settings()

        url = settings.database_url.get_secret_value()
        assert (
            url
            == f"postgresql+psycopg://sightline:{made['application_database_password']}@postgres:5432/sightline"
        )
        assert settings.qdrant.api_key.get_secret_value() == made["sightline_qdrant__api_key"]
        assert settings.console.password.get_secret_value() == made["sightline_console__password"]


def settings_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper()


def test_every_setting_that_is_set_anywhere_is_one():
    known = set(settings_of(Settings, PREFIX))
    for path in (path for path in INFRA.rglob("*") if path.is_file() and path.parent.name != "secrets"):
        if path.suffix in (".png", ".txt"):
            continue
        used = set(re.findall(r"\bSIGHTLINE_[A-Z0-9_]+\b", path.read_text()))
        if not path.is_relative_to(INFRA / "prometheus") and not path.is_relative_to(INFRA / "grafana"):
            # there they are metrics, and elsewhere the names of files with secrets
            files = re.findall(r"\bsightline_(?:[a-z0-9]+_+)+[a-z0-9]+\b", path.read_text())
            used |= {name.upper() for name in files}
        groups = {name for name in used if name.endswith("__") and any(own.startswith(name) for own in known)}
        assert used <= known | groups, path


class TestPrometheus:
    def test_takes_its_configuration(self):
        config = INFRA / "prometheus/prometheus.yml"
        command = [tool("promtool"), "check", "config", "--syntax-only", str(config)]

        checked = subprocess.run(command, capture_output=True, text=True, check=False)

        assert checked.returncode == 0, checked.stderr

    def test_what_is_scraped_is_a_service_and_its_secrets_are_at_hand(self):
        config = load(INFRA / "prometheus/prometheus.yml")

        targets = {one["job_name"]: one["static_configs"][0]["targets"] for one in config["scrape_configs"]}
        assert targets == {"sightline": ["console:8080"], "qdrant": ["qdrant:6333"]}
        secrets = set(re.findall(r"/run/secrets/(\w+)", json.dumps(config)))
        assert secrets == set(SERVICES["prometheus"]["secrets"])
        for name in targets.values():
            assert name[0].split(":")[0] in SERVICES

    def test_grafana_asks_it_and_reads_the_dashboards_where_they_are_mounted(self):
        provisioning = INFRA / "grafana/provisioning"
        [source] = load(provisioning / "datasources/prometheus.yaml")["datasources"]
        [provider] = load(provisioning / "dashboards/sightline.yaml")["providers"]

        assert source["url"] == "http://prometheus:9090"
        assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


class TestKubernetes:
    @pytest.mark.parametrize("path", sorted({path for path, _ in manifests()}), ids=lambda path: path.name)
    def test_every_object_is_what_kubernetes_takes(self, path: Path):
        for one in objects(path):
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)

    @pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
    def test_what_a_kustomization_names_is_there(self, path: Path):
        wanted = load(path)
        for name in wanted["resources"]:
            assert (path.parent / name).exists(), name
        for generated in wanted.get("configMapGenerator", []):
            for file in generated.get("files", []):
                assert (path.parent / file.split("=")[-1]).is_file(), file
        base = {(one["kind"], one["metadata"]["name"]) for _, one in manifests()}
        for patch in wanted.get("patches", []):
            [change] = objects(path.parent / patch["path"])
            assert (change["kind"], change["metadata"]["name"]) in base

    @pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to build with")
    @pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
    def test_what_is_built_is_what_kubernetes_takes(self, path: Path):
        command = ["kubectl", "kustomize", str(path.parent)]
        built = subprocess.run(command, capture_output=True, text=True, check=True).stdout

        found = list(yaml.safe_load_all(built))
        for one in found:
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
        labelled = [
            one["spec"]["template"]["metadata"]["labels"]
            for one in found
            if one["kind"] in ("Deployment", "Job")
        ]
        assert labelled
        assert all(labels["app.kubernetes.io/name"] == "sightline" for labels in labelled)
        images = re.findall(r"image: (.*)", built)
        cuda = "-cuda" if path.parent.name != "base" else ""
        assert set(images) == {f"sightline:{VERSION}{cuda}"}

    @pytest.mark.parametrize("address", sorted(addresses.METADATA, key=str), ids=str)
    def test_no_pod_reaches_where_clouds_hand_out_credentials(self, address: Address):
        [policy] = [
            one for _, one in manifests() if one["kind"] == "NetworkPolicy" and "egress" in one["spec"]
        ]
        rules = policy["spec"]["egress"]

        assert all(rule["to"] for rule in rules)  # without it a rule is for every address
        blocks = [to["ipBlock"] for rule in rules for to in rule["to"] if "ipBlock" in to]
        wide = [one for one in blocks if address in ip_network(one["cidr"])]
        assert wide
        assert all(any(address in ip_network(out) for out in one["except"]) for one in wide)

    @pytest.mark.parametrize("chart", ["prefect-server", "prefect-worker", "qdrant"])
    def test_the_charts_have_memory_limits(self, chart: str):
        values = load(KUBERNETES / f"helm/{chart}.yaml")
        part = {"prefect-server": "server", "prefect-worker": "worker"}.get(chart)

        assert "memory" in (values if part is None else values[part])["resources"]["limits"]

    @pytest.mark.parametrize(("name", "pod"), pods(), ids=[name for name, _ in pods()])
    def test_no_pod_may_more_than_it_needs(self, name: str, pod: dict[str, Any]):
        [container] = pod["containers"]

        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == UID
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            one["name"] for one in pod["volumes"]
        }
        assert {"/data", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
        assert name in ("reindex", "pool") or "readinessProbe" in container

    def test_a_run_in_the_pool_becomes_a_job_that_kubernetes_takes(self):
        job = job_of_the_pool()

        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert container["command"] + container["args"] == ["env", "prefect", "flow-run", "execute"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert container["image"] == f"sightline:{VERSION}-cuda"

    def test_the_flows_of_the_pool_are_there(self):
        deployments = load(KUBERNETES / "overlays/gpu/prefect.yaml")["deployments"]
        pool = load(KUBERNETES / "helm/prefect-worker.yaml")["worker"]["config"]["workPool"]

        assert len(deployments) == 3
        for one in deployments:
            module, _, name = one["entrypoint"].rpartition(".")
            code = (
                ROOT / f"{module.replace('.', '/')}.py"
            ).read_text()  # importing it takes the model's libraries
            assert re.search(rf"^@job_flow\ndef {name}\(", code, re.MULTILINE)
            assert one["work_pool"] == {"name": pool}

    def test_the_charts_run_what_compose_runs(self):
        qdrant = load(KUBERNETES / "helm/qdrant.yaml")["image"]["tag"]
        server = load(KUBERNETES / "helm/prefect-server.yaml")["global"]["prefect"]["image"]["prefectTag"]
        worker = load(KUBERNETES / "helm/prefect-worker.yaml")["worker"]["image"]["prefectTag"]

        assert SERVICES["qdrant"]["image"] == f"qdrant/qdrant:{qdrant}"
        assert SERVICES["prefect"]["image"] == f"prefecthq/prefect:{server}"
        assert worker == f"{server}-kubernetes"

    def test_prefects_server_is_of_the_version_that_flows_are_written_against(self):
        pinned = (INFRA / "constraints.txt").read_text()
        [version] = re.findall(r"^prefect==(.*)$", pinned, re.MULTILINE)

        assert SERVICES["prefect"]["image"] == f"prefecthq/prefect:{version}-python3.11"

    def test_what_its_readme_names_is_there(self):
        readme = (KUBERNETES / "README.md").read_text()

        files = re.findall(r"infra/kubernetes/[\w./-]+|infra/make-secrets\.sh", readme)
        assert files
        assert [path for path in files if not (ROOT / path).exists()] == []
        made = (INFRA / "make-secrets.sh").read_text()
        assert [
            name for name in re.findall(r"infra/secrets/(\w+)", readme) if f"secret {name} " not in made
        ] == []
