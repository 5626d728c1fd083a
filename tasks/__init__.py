"""Evaluation tasks and what else needs TensorFlow. Importing this package imports none of it.

Where SeqIO has been imported before, as its own programs have, the import registers every task; otherwise `register()`
does.
"""

import sys


def register() -> None:
    """Register every task with SeqIO; this imports TensorFlow."""
    from tasks.seqio_tasks import register as register_tasks

    register_tasks()


if "seqio" in sys.modules:
    register()
