"""The command `tritonsoft`, and the street scenes that it, the benchmark and the examples draw."""


def main() -> None:
    """The console script."""
    try:
        from tritonsoft.cli import app
    except ImportError as error:
        raise SystemExit(
            f"{error}: the tritonsoft command needs its extra: pip install '.[demo]' in a checkout of tritonsoft"
        ) from None
    app.main()
