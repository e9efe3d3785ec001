"""The command line: `gpucnn train | eval | predict | import-weights | summary | doctor`."""

from gpucnn.cli.app import app as app
from gpucnn.cli.app import main as main
