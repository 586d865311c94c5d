"""Progress bars with a rate, on standard error, so that standard output stays a program's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
console = Console(stderr=True)


class RateColumn(ProgressColumn):
    """Units per second, measured over the last moments."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first step."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


def progress(*, transient: bool = True) -> Progress:
    """A rich progress bar with count, rate and time left; silent where standard error is no terminal.

    Tasks are added with ``unit=`` naming what is counted.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def track(items: Sequence[T] | Iterable[T], description: str, *, unit: str, total: int | None = None) -> Iterator[T]:
    """Goes through ``items`` behind a bar."""
    with progress() as bar:
        task = bar.add_task(description, total=total if total is not None else len(items), unit=unit)  # type: ignore[arg-type]
        for item in items:
            yield item
            bar.advance(task)
