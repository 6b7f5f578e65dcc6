"""``python -m tritonsoft.cli``."""

from tritonsoft.cli import main

main()
