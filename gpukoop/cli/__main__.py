"""``python -m gpukoop.cli``."""

from gpukoop.cli import main

raise SystemExit(main())
