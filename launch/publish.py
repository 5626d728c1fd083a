"""A sweep's answer as a W&B report: made and checked by W&B's own library, kept as a file, and published on request."""

from __future__ import annotations

import os
from contextlib import redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from launch.store import read_json, write_json_atomic
from launch.tracking import STEP, sign_in
from sweeps.wandb_report import PAGE, Content, commands, to_markdown
from tandem.config import TrackingConfig
from tandem.errors import EnvironmentFailure

# In a sweep's directory: what would be published, and what has been.
SPECIFICATION, PUBLISHED = "wandb_report.json", "wandb_report_published.json"


def specify(folder: Path, made: Content, group: str, tracking: TrackingConfig) -> Path:
    """Leave the report's specification, as the server takes it, as a file; without network. Panels are bound to the
    runs of `group`."""
    report = _report(made, group, tracking.project, tracking.entity or "", bound=False)
    model = report._to_model()
    specification = model.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    about = {"title": report.title, "description": report.description, "project": tracking.project}
    write_json_atomic(folder / SPECIFICATION, {**about, "entity": tracking.entity, "spec": specification})
    return folder / SPECIFICATION


def publish(folder: Path, made: Content, group: str, tracking: TrackingConfig) -> str:
    """Publish the report, or publish it anew where the folder says that it has been; its address.

    Raises EnvironmentFailure without a key, an answer from the server, or the project of the sweep's runs.
    """
    server = sign_in("publish=true")
    import wandb

    try:
        with redirect_stderr(StringIO()):  # it says in its own words what is said below
            entity = tracking.entity or wandb.Api().default_entity or ""
            report = _report(made, group, tracking.project, entity, bound=True)
            known = _known(folder)
            where = {"server": server, "entity": entity, "project": tracking.project}
            if {key: known.get(key) for key in where} == where:
                report.id = known["id"]
            report.save()
    # Its calls raise bare exceptions, ValueErrors with advice among them.
    except Exception as error:
        text = " ".join(str(error).split())
        absent = "; job=sync sends the runs, and makes the project" if "not found" in text else ""
        raise EnvironmentFailure(f"publish=true: {text}{absent}") from error
    # The library leaves a title's question mark as it is, and what follows would be no part of the path.
    address = quote(report.url, safe=":/,")
    write_json_atomic(folder / PUBLISHED, {**where, "id": report.id, "url": address})
    return address


def _known(folder: Path) -> dict[str, Any]:
    path = folder / PUBLISHED
    return read_json(path) if path.exists() else {}


def _report(made: Content, group: str, project: str, entity: str, bound: bool) -> Any:
    """The library's own report. `bound` has its runs looked up by entity and project, which asks the server."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    from wandb_workspaces import expr

    wr: Any = import_module("wandb_workspaces.reports.v2")  # whose types are narrower than what it takes
    where = {"entity": entity, "project": project} if bound else {}
    runs = wr.Runset(name=group, filters=[expr.Metric("Group") == group], **where)
    columns = [wr.Config(axis) for axis in made.axes] + [wr.SummaryMetric(name) for name in made.headlines]
    panels: list[Any] = [
        wr.ScatterPlot(title=f"{_short(name)} by {axis}", x=wr.Config(axis), y=wr.SummaryMetric(name))
        for axis in made.numeric
        for name in made.headlines
    ]
    panels += [wr.BarPlot(title=_short(name), metrics=[wr.SummaryMetric(name)]) for name in made.headlines]
    if made.curves:
        panels.append(wr.LinePlot(title="Training: cross entropy", x=STEP, y=list(made.curves)))
    panels.append(wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(each) for each in columns]))
    panels += [wr.RunComparer(diff_only="split"), wr.MediaBrowser(title="Pictures of each run", media_keys=[PAGE])]
    done = sum(point.results is not None for point in made.points)
    text = [*made.leads, f"{done} of {len(made.points)} points are done."]
    return wr.Report(
        project=project,
        entity=entity,
        title=made.title,
        description=made.leads[0] if made.leads else "",
        width="fluid",
        blocks=[
            *map(wr.P, text),
            wr.H2("The answer"),
            wr.MarkdownBlock(to_markdown(made.answer)),
            wr.H2("The runs"),
            wr.PanelGrid(runsets=[runs], panels=panels),
            wr.H2("All measures"),
            *(wr.MarkdownBlock(to_markdown(table)) for table in made.tables),
            wr.H2("Each point again"),
            wr.MarkdownBlock(commands(made)),
        ],
    )


def _short(name: str) -> str:
    """`answer/speed/tandem/speedup_decode` as a title."""
    _, _, drafter, field = name.split("/", 3)
    return f"{field} of {drafter}"
