"""Those commands of helm that this project's documents and tests use, by Helm's own Go SDK.

    helm lint CHART [--values FILE] [--set KEY=VALUE]
    helm template NAME CHART [--namespace NAMESPACE] [--values FILE] [--set KEY=VALUE]
    helm install|upgrade NAME CHART [--namespace NAMESPACE] [--create-namespace] [--wait] [--timeout SECONDS] ...
    helm uninstall NAME [--namespace NAMESPACE] [--wait]

They mean what they mean there. A command or an option that is not here is refused.
"""

import argparse
import pathlib
import sys

import helm_python as helm


def merged(into, values):
    """Puts `values` over `into`, map by map, as Helm does with its files and --set."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merged(into[key], value)
        else:
            into[key] = value
    return into


def values_of(options):
    values = {}
    for file in options.values:
        merged(values, helm.values_from_yaml(pathlib.Path(file).read_text()))
    for expression in options.set:
        merged(values, helm.parse_set_string(expression))
    return values


def rendered(chart, name, namespace, values):
    """What `helm template` prints: each template that is not empty, with its source, in the order of their names."""
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        templates = loaded.render(values, name=name, namespace=namespace)
    text = ""
    for source in sorted(templates):
        if not source.endswith("NOTES.txt") and not source.rsplit("/", 1)[-1].startswith("_") and templates[source].strip():
            text += f"---\n# Source: {source}\n{templates[source].strip()}\n"
    return text


def lint(options):
    report = helm.lint(options.chart, values_of(options), strict=True)
    for message in report["messages"]:
        print(f"[{['UNKNOWN', 'INFO', 'WARNING', 'ERROR'][message['severity']]}] {message['path']}: {message['error']}")
    bad = [message for message in report["messages"] if message["severity"] > 1]
    print(f"{report['total_charts_linted']} chart(s) linted, {len(bad)} chart(s) failed")
    return 1 if bad or report["errors"] else 0


def template(options):
    print(rendered(options.chart, options.name, options.namespace, values_of(options)), end="")


def install(options):
    values = values_of(options)
    with helm.Config(namespace=options.namespace) as config:
        release = config.install(
            options.chart, options.name, values, namespace=options.namespace, create_namespace=options.create_namespace,
            wait="watcher" if options.wait else None, timeout=options.timeout,
        )
    tell(release)


def upgrade(options):
    values = values_of(options)
    with helm.Config(namespace=options.namespace) as config:
        release = config.upgrade(
            options.chart, options.name, values, namespace=options.namespace,
            wait="watcher" if options.wait else None, timeout=options.timeout,
        )
    tell(release)


def tell(release):
    print(f"NAME: {release['name']}\nNAMESPACE: {release.get('namespace')}\nSTATUS: {release.get('status')}")
    if release.get("notes"):
        print(f"NOTES:\n{release['notes']}")


def uninstall(options):
    with helm.Config(namespace=options.namespace) as config:
        config.uninstall(options.name, wait="watcher" if options.wait else None, timeout=options.timeout)
    print(f'release "{options.name}" uninstalled')


def main():
    parser = argparse.ArgumentParser(prog="helm", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (lint, template, install, upgrade, uninstall):
        options = commands.add_parser(command.__name__, allow_abbrev=False)
        options.set_defaults(command=command)
        if command is not lint:
            options.add_argument("name")
            options.add_argument("--namespace", "-n", default="default")
        if command is not uninstall:
            options.add_argument("chart")
            options.add_argument("--values", "-f", action="append", default=[])
            options.add_argument("--set", action="append", default=[])
        if command in (install, upgrade, uninstall):
            options.add_argument("--wait", action="store_true")
            options.add_argument("--timeout", type=int, default=300)
        if command is install:
            options.add_argument("--create-namespace", action="store_true")
    options = parser.parse_args()
    try:
        return options.command(options)
    except helm.HelmError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
