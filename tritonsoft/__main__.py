"""``python -m tritonsoft``."""

from tritonsoft.cli import main

main()
