"""The chart as its tests see it: rendered with some values, and taken apart."""

import copy
import pathlib
import re

import helm as cli
import helm_python as helm

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "latchkey"


def text(values=None, *expressions):
    """What `helm template` prints for these values and --set expressions."""
    merged = copy.deepcopy(values or {})
    for expression in expressions:
        cli.merged(merged, helm.parse_set_string(expression))
    return cli.rendered(CHART, "latchkey", "latchkey", merged)


def documents(rendered):
    """The objects in a stream of YAML documents."""
    parts = re.split(r"^---$", rendered, flags=re.MULTILINE)
    objects = [helm.values_from_yaml(part) for part in parts if re.sub(r"(?m)^\s*#.*$", "", part).strip()]
    return [found for found in objects if found]


def objects(values=None, *expressions):
    return documents(text(values, *expressions))


def one(kind, values=None, *expressions, name=None):
    found = [
        document for document in objects(values, *expressions)
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def pod(values=None, *expressions):
    return one("DaemonSet", values, *expressions)["spec"]["template"]


ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(template):
    """What of a pod's template Pod Security's level restricted forbids, rule by rule."""
    spec = template["spec"]
    found = {f"{key}: true" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)}
    for volume in spec["volumes"]:
        if not ALLOWED_VOLUMES & volume.keys():
            found.add(f"volume {volume['name']}: hostPath {volume['hostPath']['path']}")
    for container in spec.get("initContainers", []) + spec["containers"]:
        name = container["name"]
        security = {**spec["securityContext"], **container.get("securityContext", {})}
        if security.get("privileged"):
            found.add(f"{name}: privileged")
        if security.get("allowPrivilegeEscalation") is not False:
            found.add(f"{name}: allowPrivilegeEscalation")
        if security.get("capabilities", {}).get("drop") != ["ALL"] or "add" in security.get("capabilities", {}):
            found.add(f"{name}: capabilities")
        if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            found.add(f"{name}: seccomp")
        if security.get("runAsNonRoot") is not True:
            found.add(f"{name}: root")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.add(f"{name}: hostPort")
        if security.get("readOnlyRootFilesystem") is not True:  # not of the level, but ours
            found.add(f"{name}: writable root")
    return found
