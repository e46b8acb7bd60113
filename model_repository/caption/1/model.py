"""Public model `caption`."""

from mplug.tasks.caption import CaptionTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.caption` for what it does."""

    def create(self, context):
        return CaptionTask.of_folder(context.folder)
