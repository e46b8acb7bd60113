"""Public model `vqa`."""

from mplug.tasks.vqa import VqaTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.vqa` for what it does."""

    def create(self, context):
        return VqaTask.of_folder(context.folder)
