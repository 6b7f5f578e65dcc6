"""The command `tritonsoft`: `demo` shows what shrinking does to labels, `audit` measures it on a dataset, `shrink`
shrinks one, `doctor` checks an installation, `bench` times it."""

import contextlib
import errno
import io
import sys
from typing import Annotated

import typer

from tritonsoft.cli.audit import audit
from tritonsoft.cli.bench import bench
from tritonsoft.cli.demo import demo
from tritonsoft.cli.doctor import doctor
from tritonsoft.cli.interrupt import ending_on_interrupt
from tritonsoft.cli.shrink import shrink
from tritonsoft.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Soft labels for semantic segmentation: see what they keep, audit or shrink a dataset, check and time this.",
)
for command in (demo, audit, shrink, doctor, bench):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tritonsoft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that its encoding lacks becomes a question mark, no error
        sys.stdout.reconfigure(errors="replace")
    with ending_on_interrupt():
        try:
            app()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            with contextlib.suppress(OSError):  # or Python would try once more, and say so at length
                sys.stdout.close()
            raise SystemExit(f"the output cannot be written: {error.strerror}") from None
