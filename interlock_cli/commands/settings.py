"""The command that lists every setting, from the classes that read them."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from interlock_cli.output import say
from interlock_cli.settings import StackSettings
from services.common.edge.settings import EdgeSettings
from services.common.settings import CommonSettings
from services.features.settings import Settings as FeaturesSettings
from services.inference.settings import InferenceSettings
from services.monitor.settings import Settings as MonitorSettings
from services.registry.settings import RegistrySettings
from services.router.settings import Settings as RouterSettings

_READERS: Final[Mapping[str, type[CommonSettings]]] = {
    "every process": CommonSettings,
    "the edge": EdgeSettings,
    "router": RouterSettings,
    "inference": InferenceSettings,
    "registry": RegistrySettings,
    "features": FeaturesSettings,
    "monitor": MonitorSettings,
    "`interlock up` and its siblings": StackSettings,
}


def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md.")] = False,
) -> None:
    """List every setting with its default; all are environment variables."""
    for line in settings_page() if markdown else _lines():
        say(line)


def settings_page() -> Iterator[str]:
    """Yield the lines of docs/settings.md."""
    yield "# Settings"
    yield ""
    yield "All settings are environment variables. This page is written by `interlock settings --markdown`."
    for reader, kind in _READERS.items():
        yield from ("", f"## Read by {reader}", "", "| variable | default | what it is |", "|---|---|---|")
        for name, field in _own_fields(kind):
            default = _default(field)
            yield f"| `{name}` | {f'`{default}`' if default else ''} | {_text(field)} |"


def _lines() -> Iterator[str]:
    for reader, kind in _READERS.items():
        yield f"Read by {reader}:"
        for name, field in _own_fields(kind):
            default = _default(field)
            yield f"  {name}{f'={default}' if default else ''}\n      {_text(field)}"


def _own_fields(kind: type[CommonSettings]) -> Iterator[tuple[str, FieldInfo]]:
    common = {} if kind is CommonSettings else CommonSettings.model_fields
    for name, field in kind.model_fields.items():
        # One that a reader declares again has another default or meaning there.
        if name not in common or field.default != common[name].default:
            yield f"INTERLOCK_{name.upper()}", field


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    default: Any = field.default
    if default is PydanticUndefined or default in ("", None, {}):
        return ""
    if isinstance(default, bool | tuple):
        return json.dumps(default)
    return str(default)
