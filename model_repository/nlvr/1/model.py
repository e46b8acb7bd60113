"""Public model `nlvr`."""

from mplug.tasks.judgement import NlvrTask
from mplug.triton.models import TaskModel


class TritonPythonModel(TaskModel):
    """See `mplug.tasks.judgement` for what it does."""

    def create(self, context):
        return NlvrTask.of_folder(context.folder)
