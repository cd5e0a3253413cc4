"""python -m reasonbrain.cli"""

from . import main

main()
