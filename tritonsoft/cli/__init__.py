"""The command `tritonsoft`, and the street scenes that it, the benchmark and the examples draw."""

from tritonsoft._extras import how_to_install

INTERRUPTED = 130  # what shells give a program that SIGINT ended


def main() -> None:
    """The console script."""
    try:
        from tritonsoft.cli import app
    except ImportError as error:
        raise SystemExit(f"{error}: the tritonsoft command needs more packages: {how_to_install('demo')}") from None
    except KeyboardInterrupt:  # once it is imported, the command ends by itself
        raise SystemExit(INTERRUPTED) from None
    app.main()
