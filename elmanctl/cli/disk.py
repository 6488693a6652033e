"""The `disk` command: disk usage of runs, what can be freed, orphaned files, space left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context

from elmanctl.cli import context, output
from elmanctl.cli.completion import run_names
from elmanctl.errors import LedgerError, NotFound
from elmanctl.folders import as_written, nearest_existing
from elmanctl.ledger.disk import Space, allocated_bytes, measure, space_of
from elmanctl.ledger.reserve import parts_held
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.search.cleaning import plan_cleaning
from elmanctl.search.disk_forecast import Forecast, forecast
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.file_owners import OwnedFile, scan
from elmanctl.search.selection import list_runs, no_runs_in
from elmanctl.settings import DiskSettings

_LARGEST = 10
_FIGURES = ("size_bytes", "freeable_bytes", "needed_bytes", "orphan_bytes")


def disk(
    ctx: Context,
    run: Annotated[
        str | None,
        Argument(help="Run; default: all runs", autocompletion=run_names),
    ] = None,
    as_json: context.JsonFlag = False,
) -> None:
    """Show disk usage of runs, what can be freed, and the space left

    Measures the files themselves and changes nothing. FREEABLE is what `clean` would remove now,
    NEEDED the forecast for the rest of the search, ORPHANED the files that no record refers to.

    \b
    Examples:
        elmanctl disk
        elmanctl disk e88-480m --json
    """
    if run is not None:
        _disk_of_one(context.chosen_run(ctx, run), as_json=as_json)
        return
    settings = context.resolve_settings(ctx, {}).settings
    runs = Path(settings.paths.runs).expanduser()
    folders = [RunPaths(as_written(folder)) for folder in reversed(list_runs(runs))]
    space = space_of(nearest_existing(as_written(runs)))
    rows = [_row(paths, space) for paths in folders]
    if as_json:
        output.print_json({"space": _space_data(space, settings.disk), "runs": rows})
        return
    _say_space(space, settings.disk)
    if not rows:
        output.say(no_runs_in(runs))
        return
    output.print_table(
        [
            output.Column("RUN"),
            *output.columns("SIZE", "FREEABLE", "NEEDED", right=True),
            output.Column("ORPHANED", right=True, dispensable=1),
        ],
        [[row["run"], *_sizes(row, *_FIGURES)] for row in rows],
    )
    for row in rows:
        if row["warning"]:
            output.warn(f"{row['run']}: {row['warning']}")


def _row(paths: RunPaths, space: Space) -> dict[str, Any]:
    """Return the sizes of one run; its total alone if its ledger cannot be read."""
    try:
        state = context.load_readable(paths)
    except (LedgerError, NotFound) as exc:
        unknown = dict.fromkeys(("freeable_bytes", "needed_bytes", "orphan_bytes"))
        size_bytes = measure(paths.folder)
        name = paths.folder.name
        return {"run": name, "size_bytes": size_bytes, **unknown, "warning": exc.message}
    view = _View(paths, state, space)
    return {
        "run": paths.folder.name,
        "size_bytes": view.size_bytes,
        "freeable_bytes": _sum(view.plan),
        "needed_bytes": view.forecast.needed_bytes if view.forecast else None,
        "orphan_bytes": _sum(view.orphans),
        "warning": view.forecast.warning if view.forecast else None,
    }


class _View:
    """The files of one run: their owners, what `clean` would remove, and the forecast."""

    def __init__(self, paths: RunPaths, state: RunState, space: Space) -> None:
        self.settings = effective_settings(state).disk
        self.held = scan(paths, state)
        self.plan = plan_cleaning(paths, state, self.settings, files=self.held)
        self.orphans = [item for item in self.held if item.orphan is not None]
        self.forecast: Forecast | None = forecast(state, space, self.settings)
        self.size_bytes = _sum(self.held) + allocated_bytes(paths.folder.stat())

    def categories(self) -> list[dict[str, Any]]:
        """Return files, bytes and freeable bytes of each category, the largest first."""
        rows: dict[str, dict[str, Any]] = {}
        for item in self.held:
            blank = {"category": item.category, "files": 0, "size_bytes": 0, "freeable_bytes": 0}
            row = rows.setdefault(item.category, blank)
            row["files"] += 1
            row["size_bytes"] += item.size_bytes
        for removable in self.plan:
            rows[removable.category]["freeable_bytes"] += removable.size_bytes
        return sorted(rows.values(), key=lambda row: (-row["size_bytes"], row["category"]))

    def largest(self) -> list[dict[str, Any]]:
        """Return the evaluations with the largest files."""
        sizes: dict[str, int] = {}
        for item in self.held:
            if item.evaluation is not None:
                sizes[item.evaluation] = sizes.get(item.evaluation, 0) + item.size_bytes
        ranked = sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))[:_LARGEST]
        return [{"evaluation": name, "size_bytes": size} for name, size in ranked]


def _disk_of_one(paths: RunPaths, *, as_json: bool) -> None:
    space = space_of(paths.folder)
    state = context.load_readable(paths)
    view = _View(paths, state, space)
    orphans: list[dict[str, Any]] = [
        {"path": item.name, "size_bytes": item.size_bytes, "why": item.orphan}
        for item in view.orphans
    ]
    if as_json:
        output.print_json(
            {
                "space": _space_data(space, view.settings),
                "run": paths.folder.name,
                "size_bytes": view.size_bytes,
                "freeable_bytes": _sum(view.plan),
                "recorded_sizes": dict(state.disk.sizes),
                "reserve_parts": parts_held(paths.folder),
                "forecast": _forecast_data(view.forecast),
                "categories": view.categories(),
                "biggest": view.largest(),
                "orphans": orphans,
            }
        )
        return
    _say_space(space, view.settings)
    _say_run(paths, view)
    output.print_table(
        [output.Column("CATEGORY"), *output.columns("FILES", "SIZE", "FREEABLE", right=True)],
        [
            [row["category"], str(row["files"]), *_sizes(row, "size_bytes", "freeable_bytes")]
            for row in view.categories()
        ],
    )
    output.print_line()
    output.print_table(
        [output.Column("EVAL"), output.Column("SIZE", right=True)],
        [[row["evaluation"], *_sizes(row, "size_bytes")] for row in view.largest()],
    )
    if orphans:
        output.print_line()
        output.print_table(
            [
                output.Column("ORPHANED"),
                output.Column("SIZE", right=True),
                output.Column("WHY", wraps=True),
            ],
            [[row["path"], *_sizes(row, "size_bytes"), row["why"]] for row in orphans],
        )


def _say_run(paths: RunPaths, view: _View) -> None:
    freeable_bytes = _sum(view.plan)
    name, size = paths.folder.name, output.format_bytes(view.size_bytes)
    output.say(
        f"{name}: {size}; `elmanctl clean {name}` would free {output.format_bytes(freeable_bytes)}"
    )
    if view.forecast is not None and view.forecast.evaluations_left:
        output.say(
            f"{output.counted(view.forecast.evaluations_left, 'evaluation')} left, "
            f"{output.format_bytes(view.forecast.evaluation_bytes)} each: "
            f"{output.format_bytes(view.forecast.needed_bytes)} needed"
        )
        if view.forecast.warning:
            output.warn(view.forecast.warning)


def _say_space(space: Space, settings: DiskSettings) -> None:
    inodes = "" if space.free_inodes is None else f" and {space.free_inodes} inodes"
    output.say(
        f"{output.format_bytes(space.free_bytes)}{inodes} free on the file system; "
        f"floor: {settings.floor_gb:g} GB and {settings.floor_inodes} inodes"
    )
    left = space.quota.left_bytes
    if left is None:
        output.say(space.quota.note)
    else:
        output.say(f"{output.format_bytes(left)} left of your quota ({space.quota.note})")


def _space_data(space: Space, settings: DiskSettings) -> dict[str, Any]:
    return {
        "free_bytes": space.free_bytes,
        "free_inodes": space.free_inodes,
        "quota_left_bytes": space.quota.left_bytes,
        "quota_left_inodes": space.quota.left_inodes,
        "quota_note": space.quota.note,
        "usable_bytes": space.usable_bytes,
        "floor_gb": settings.floor_gb,
        "floor_inodes": settings.floor_inodes,
    }


def _forecast_data(found: Forecast | None) -> dict[str, Any] | None:
    if found is None:
        return None
    keys = ("evaluation_bytes", "evaluations_left", "needed_bytes", "room_bytes", "fits")
    return {key: getattr(found, key) for key in keys}


def _sum(held: Sequence[OwnedFile]) -> int:
    return sum(item.size_bytes for item in held)


def _sizes(row: dict[str, Any], *keys: str) -> list[str | None]:
    """Format sizes as cells: rounded on a terminal, exact elsewhere."""
    return [None if row[key] is None else output.shown_bytes(row[key]) for key in keys]
