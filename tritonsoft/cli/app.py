"""The command `tritonsoft`: `demo` shows what shrinking does to labels, `audit` measures it on a dataset, `doctor`
checks an installation, `bench` times it."""

import io
import sys

import typer

from tritonsoft.cli.audit import audit
from tritonsoft.cli.bench import bench
from tritonsoft.cli.demo import demo
from tritonsoft.cli.doctor import doctor

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Soft labels for semantic segmentation: see what they keep, audit a dataset, check an installation, time it.",
)
for command in (demo, audit, doctor, bench):
    app.command()(command)


def main() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that its encoding lacks becomes a question mark, no error
        sys.stdout.reconfigure(errors="replace")
    app()
