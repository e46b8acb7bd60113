"""Public model `caption`: see its row in `mplug.tasks.table`."""

from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """The task that this version folder was built for."""
