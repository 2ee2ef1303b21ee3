"""The part of the Compose specification that `cluster/compose.yaml` uses, as strict types: an unknown key is an error."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Loopback = Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:\d+:\d+$")]
Duration = Annotated[str, StringConstraints(pattern=r"^\d+s$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


class Build(Strict):
    context: Literal[".."]
    dockerfile: str


class Health(Strict):
    test: list[str]
    interval: Duration
    timeout: Duration
    retries: int


class Deploy(Strict):
    replicas: Annotated[int, Field(ge=1)]


class Needed(Strict):
    condition: Literal["service_healthy"]


class Limits(Strict):
    nofile: int


class Service(Strict):
    image: str
    build: Build | None = None
    user: Literal["1000:100"]
    cap_drop: list[Literal["ALL"]]
    security_opt: list[Literal["no-new-privileges:true"]]
    shm_size: str | None = None
    stop_grace_period: Duration | None = None
    ulimits: Limits | None = None
    environment: dict[str, str]
    secrets: list[str] = []
    volumes: list[str]
    command: list[str]
    ports: list[Loopback] = []
    healthcheck: Health | None = None
    deploy: Deploy | None = None
    depends_on: dict[str, Needed] = {}


class SecretFile(Strict):
    file: str


class Nothing(Strict):
    pass


class Compose(Strict):
    name: str
    x_node: Service | dict[str, object] = Field(alias="x-node")
    services: dict[str, Service]
    secrets: dict[str, SecretFile]
    volumes: dict[str, Nothing]

    @model_validator(mode="after")
    def _what_is_named_is_there(self) -> "Compose":
        for name, service in self.services.items():
            missing = set(service.secrets) - set(self.secrets)
            missing |= {volume.split(":")[0] for volume in service.volumes} - set(self.volumes)
            missing |= set(service.depends_on) - set(self.services)
            missing |= {need for need in service.depends_on if self.services[need].healthcheck is None}
            if missing:
                raise ValueError(f"{name} names what is not there: {missing}")
        return self
