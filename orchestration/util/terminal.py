"""Consoles of rich's on a program's output, whose texts are escaped as those of plain prints are."""

import sys

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment

from orchestration.util.output import Escaping, escaped


class _EscapeText(RenderHook):
    """Escapes the text of whatever a console prints; the console's own controls stay."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [EscapedText(one) for one in renderables]


class EscapedText:
    """What a console shows, with the control characters of its texts escaped."""

    def __init__(self, inner: RenderableType) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


def console(stderr: bool = False) -> Console:
    """A console of rich's on the standard output, or the standard error."""
    stream = sys.stderr if stderr else sys.stdout
    made = Console(file=stream.plain if isinstance(stream, Escaping) else stream, stderr=stderr)  # type: ignore[arg-type]
    made.push_render_hook(_EscapeText())
    return made
