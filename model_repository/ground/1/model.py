"""Public model `ground`."""

from mplug.tasks.ground import GroundTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.ground` for what it does."""

    def create(self, context):
        return GroundTask.of_folder(context.folder)
