"""python -m reasonbrain.cli"""

from reasonbrain.cli import main

main()
