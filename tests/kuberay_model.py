"""The part of KubeRay's and Kubernetes' objects that `cluster/kuberay` uses, as strict types: an unknown key is an error.

Field names and types are those of KubeRay's v1.7 custom resource definitions; the rules of its controllers that no
schema says are the validators.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]
Image = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.\-/]+:[\w][\w.\-]*$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Label | None = None
    labels: dict[str, str] = {}


class EnvVar(Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")]
    value: str


class SecretRef(Strict):
    name: Label


class EnvFrom(Strict):
    secretRef: SecretRef


class Port(Strict):
    containerPort: Annotated[int, Field(ge=1, le=65535)]
    name: Label


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Capabilities(Strict):
    drop: list[str]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Mount(Strict):
    name: Label
    mountPath: str


class Container(Strict):
    name: Label
    image: Image
    imagePullPolicy: Literal["IfNotPresent"]
    env: list[EnvVar] = []
    envFrom: list[EnvFrom] = []
    ports: list[Port] = []
    resources: Resources
    securityContext: ContainerSecurity
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: Label


class EmptyDir(Strict):
    medium: Literal["Memory"] | None = None
    sizeLimit: Quantity


class Volume(Strict):
    name: Label
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: int
    fsGroup: int


class Toleration(Strict):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class PodSpec(Strict):
    restartPolicy: Literal["Never"]
    terminationGracePeriodSeconds: int | None = None
    securityContext: PodSecurity
    tolerations: list[Toleration] = []
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> "PodSpec":
        volumes = {volume.name for volume in self.volumes}
        for container in self.containers:
            missing = {mount.name for mount in container.volumeMounts} - volumes
            if missing:
                raise ValueError(f"mounts without a volume: {missing}")
        return self


class PodTemplate(Strict):
    metadata: Metadata
    spec: PodSpec


class Auth(Strict):
    mode: Literal["token"]


class Autoscaler(Strict):
    version: Literal["v2"]
    idleTimeoutSeconds: Annotated[int, Field(ge=1)]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    resources: Resources


class Group(Strict):
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _resources_stand_in_one_place(self) -> "Group":
        # KubeRay refuses `labels` here, and derives memory and GPUs from the limits.
        doubled = {"labels", "resources", "num-gpus", "memory"} & set(self.rayStartParams)
        if doubled:
            raise ValueError(f"rayStartParams say what the group says elsewhere: {doubled}")
        return self


class HeadGroup(Group):
    serviceType: Literal["ClusterIP"]


class WorkerGroup(Group):
    groupName: Label
    replicas: Annotated[int, Field(ge=0)]
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=1)]
    idleTimeoutSeconds: Annotated[int, Field(ge=1)] | None = None
    labels: dict[str, str]

    @model_validator(mode="after")
    def _replicas_lie_between(self) -> "WorkerGroup":
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError("minReplicas <= replicas <= maxReplicas")
        return self


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: Autoscaler
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]

    @model_validator(mode="after")
    def _token_auth_needs_a_version_that_has_it(self) -> "ClusterSpec":
        # `authOptions.mode: token` is refused below 2.52, and without rayVersion.
        if tuple(int(part) for part in re.findall(r"\d+", self.rayVersion)[:2]) < (2, 52):
            raise ValueError("token auth needs Ray 2.52")
        return self


class Submitter(Strict):
    backoffLimit: Annotated[int, Field(ge=0)]


class JobSpec(Strict):
    submissionMode: Literal["K8sJobMode"]
    entrypoint: str
    entrypointNumCpus: Annotated[int, Field(ge=1)]
    runtimeEnvYAML: str
    backoffLimit: Annotated[int, Field(ge=0)]
    submitterConfig: Submitter
    activeDeadlineSeconds: Annotated[int, Field(ge=1)]
    preRunningDeadlineSeconds: Annotated[int, Field(ge=1)]
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    submitterPodTemplate: PodTemplate
    rayClusterSpec: ClusterSpec


class JobMetadata(Strict):
    # KubeRay adds a suffix for the cluster's name, which may have 53 characters.
    name: Annotated[Label, StringConstraints(max_length=47)]


class ClusterMetadata(Strict):
    name: Annotated[Label, StringConstraints(max_length=53)]


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: JobMetadata
    spec: JobSpec


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: ClusterMetadata
    spec: ClusterSpec


def strict_schema(node: Any) -> Any:
    """A CRD's `openAPIV3Schema` as a JSON schema that refuses unknown keys, as the API server's strict check does.

    `metadata` and pods' free-form objects stay open where the definition says so (`x-kubernetes-preserve-unknown-
    fields`); `x-kubernetes-int-or-string` becomes a union, `nullable` adds null.
    """
    if isinstance(node, list):
        return [strict_schema(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    made = {
        key: {name: strict_schema(inner) for name, inner in value.items()}
        if key in ("properties", "patternProperties")
        else strict_schema(value)
        if key in ("items", "additionalProperties", "allOf", "anyOf", "oneOf", "not")
        else value
        for key, value in node.items()
    }
    if node.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made.pop("anyOf", None)
        return {"anyOf": [{"type": "integer"}, {"type": "string"}], **made}
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if "properties" in node and not is_open:
        made["additionalProperties"] = False
    if node.get("nullable") and "type" in node:
        made["type"] = [node["type"], "null"]
    return made
