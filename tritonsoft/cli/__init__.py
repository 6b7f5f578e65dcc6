"""The command `tritonsoft`, and the street scenes that it, the benchmark and the examples draw."""

INTERRUPTED = 130  # what shells give a program that SIGINT ended


def main() -> None:
    """The console script."""
    try:
        from tritonsoft.cli import app
    except ImportError as error:
        raise SystemExit(
            f"{error}: the tritonsoft command needs its extra: pip install '.[demo]' in a checkout of tritonsoft"
        ) from None
    except KeyboardInterrupt:  # once it is imported, the command ends by itself
        raise SystemExit(INTERRUPTED) from None
    app.main()
