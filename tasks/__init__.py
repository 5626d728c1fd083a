"""Evaluation tasks and what else needs TensorFlow. Importing this package imports none of it.

Where SeqIO has been imported before, as its own programs have, the import registers every task; otherwise `register()`
does.
"""

import sys


def register() -> None:
    """Register every task with SeqIO; this imports TensorFlow."""
    # Whoever needs one module of this package need not load all tasks.
    from tasks import registry

    registry.register()


if "seqio" in sys.modules:
    register()
