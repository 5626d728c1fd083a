"""Evaluation tasks and what else needs TensorFlow. Importing this package imports none of it."""


def register() -> None:
    """Register every task with SeqIO; this imports TensorFlow."""
    from tasks.seqio_tasks import register as register_tasks

    register_tasks()
